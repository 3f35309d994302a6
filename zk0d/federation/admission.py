"""The checks that an update passes before it touches the model, and strikes for nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from zk0d.config.run import TrainingSettings
from zk0d.federation.messages import Measure, MeasureReply, Train, TrainReply
from zk0d.federation.spool import NotAdmitted
from zk0d.federation.update import Manifest, Payload
from zk0d.record.events import HeldOut, NodeFigures, UpdateRefused

#: Fewer updates have no median to be far from.
FEWEST_FOR_MEDIAN = 3
#: So long a node sits out that had too many updates refused.
COOLDOWN_ROUNDS = 10
#: What an encoding may add to a variate's norm.
VARIATE_MARGIN = 1.1


def check_reply(
    task: Train, reply: TrainReply, payload: Payload | None, model: Manifest, usable_frames: int
) -> Payload:
    """Check a node's answer to ``task`` as far as it can be without reading its values.

    Parameters
    ----------
    usable_frames
        What the node said in the query.

    Raises
    ------
    UpdateError
        Naming the tensor that is missing, extra or of another shape.
    NotAdmitted
        With reason ``wrong_base``, ``wrong_round``, ``no_payload``, ``wrong_kind``,
        ``wrong_codec``, ``no_variate``, ``implausible_samples`` or ``not_finite``.
    """
    if payload is None:
        raise NotAdmitted("the answer has no update.", reason="no_payload")
    if reply.round != task.round:
        raise NotAdmitted(
            f"the update is of round {reply.round}, this is {task.round}.", reason="wrong_round"
        )
    if reply.base != task.base:
        raise NotAdmitted(
            f"the update is against weights {reply.base[:12]}, the round's are {task.base[:12]}.",
            reason="wrong_base",
        )
    if payload.manifest.kind != "delta":
        raise NotAdmitted("weights came where a difference was asked for.", reason="wrong_kind")
    if payload.manifest.codec != task.training.uplink_codec:
        raise NotAdmitted(
            f"the update is encoded as {payload.manifest.codec}, {task.training.uplink_codec} was"
            " asked for.",
            reason="wrong_codec",
        )
    _check_work(task.training, reply.figures, usable_frames)
    figures = reply.figures
    numbers = (figures.loss, figures.policy_loss, figures.proximal_loss, figures.grad_norm)
    if not np.isfinite(numbers).all():
        raise NotAdmitted("the answer's losses are not numbers.", reason="not_finite")
    check_held_out(figures.held_out, task.evaluation.eval_frames)
    model.check_same_tensors(payload.manifest)
    if task.training.drift_correction != "none":
        _check_variate(task.training.variate_codec, payload.companion("variates"), model)
    return payload


def _check_work(training: TrainingSettings, figures: NodeFigures, usable_frames: int) -> None:
    bounds = training.step_bounds
    # Without a pace nobody has a reason to count fewer, and nobody gains by it.
    fewest = bounds.fewest if training.round_minutes else 1
    if not fewest <= figures.steps <= bounds.most:
        asked = f"{fewest} to {bounds.most}" if training.round_minutes else f"{bounds.most}"
        raise NotAdmitted(
            f"{figures.steps} steps are claimed, {asked} were asked for.",
            reason="implausible_samples",
        )
    most = figures.steps * training.batch_size if usable_frames else 0
    if not 0 < figures.samples <= most:
        raise NotAdmitted(
            f"{figures.samples} samples are claimed, {figures.steps} steps have at most {most}.",
            reason="implausible_samples",
        )


def check_held_out(found: HeldOut, most_frames: int) -> None:
    """Check a node's figures on its held-out episodes: made up they may be, but no more than that.

    Parameters
    ----------
    most_frames
        That were asked for; 0 for all there are.

    Raises
    ------
    NotAdmitted
        With reason ``not_finite`` or ``implausible_samples``.
    """
    losses = found.losses if found.loss is None else (found.loss, *found.losses)
    if not np.isfinite(losses).all():
        raise NotAdmitted("a loss on held-out episodes is not a number.", reason="not_finite")
    if most_frames and found.frames > most_frames:
        raise NotAdmitted(
            f"{found.frames} held-out frames are claimed, {most_frames} were asked for.",
            reason="implausible_samples",
        )


def check_measured(task: Measure, reply: MeasureReply) -> None:
    """Check what a node found of weights.

    Raises
    ------
    NotAdmitted
        As :func:`check_held_out`, or with reason ``wrong_round`` or ``wrong_base``.
    """
    if reply.of != task.of:
        raise NotAdmitted(
            f"the figures are of round {reply.of}, those of {task.of} were asked for.",
            reason="wrong_round",
        )
    if reply.base != task.base:
        raise NotAdmitted("the figures are of other weights.", reason="wrong_base")
    if reply.held_out.loss is None:
        raise NotAdmitted("the answer has no loss.", reason="not_finite")
    check_held_out(reply.held_out, task.evaluation.eval_frames)


def _check_variate(codec: str, variate: Payload | None, model: Manifest) -> None:
    if variate is None:
        raise NotAdmitted(
            "the update came without a variate, which drift-correction asks for; update this node.",
            reason="no_variate",
        )
    if variate.manifest.codec != codec:
        raise NotAdmitted(
            f"the variate is encoded as {variate.manifest.codec}, {codec} was asked for.",
            reason="wrong_codec",
        )
    model.check_same_tensors(variate.manifest)


def check_norm(norm: float, weights_norm: float, max_ratio: float) -> None:
    """Refuse what is too long or nothing, whatever the others sent.

    Raises
    ------
    NotAdmitted
        With reason ``norm_cap`` or ``zero_update``.
    """
    if not norm:
        raise NotAdmitted("the update changes nothing.", reason="zero_update")
    if max_ratio and norm > max_ratio * weights_norm:
        raise NotAdmitted(
            f"the update's norm is {norm:.4g}, the weights' own {weights_norm:.4g}, and"
            f" max-update-ratio allows {max_ratio:g} of it.",
            reason="norm_cap",
        )


def check_variate_norm(norm: float, clip: float) -> None:
    """Refuse what no mean of clipped gradients can be.

    Raises
    ------
    NotAdmitted
        With reason ``norm_cap``.
    """
    if norm > VARIATE_MARGIN * clip:
        raise NotAdmitted(
            f"the variate's norm is {norm:.4g}; gradients are clipped to {clip:g}.",
            reason="norm_cap",
        )


def outliers[Key](
    norms: Mapping[Key, float], factor: float, what: str = "update"
) -> dict[Key, NotAdmitted]:
    """What is far longer than the round's median, by the keys of ``norms``."""
    if not factor or len(norms) < FEWEST_FOR_MEDIAN:
        return {}
    middle = float(np.median(list(norms.values())))
    return {
        key: NotAdmitted(
            f"the {what}'s norm is {norm:.4g}, more than {factor:g} times the round's median"
            f" {middle:.4g}.",
            reason="norm_outlier",
        )
        for key, norm in norms.items()
        if norm > factor * middle
    }


class Standing:
    """The nodes that had updates refused, by the refusals that count.

    Parameters
    ----------
    refusals
        In the order in which they came.
    most
        Refused updates after which a node sits out :data:`COOLDOWN_ROUNDS`; 0 never. Afterwards it
        begins with none.
    enrolled
        The roster's names by key: a new key washes off no strike.
    """

    def __init__(
        self,
        refusals: Iterable[UpdateRefused],
        most: int,
        enrolled: Mapping[str, str] | None = None,
    ) -> None:
        self._enrolled = enrolled or {}
        self._count: dict[str, int] = {}
        self._until: dict[str, int] = {}
        for refusal in refusals:
            if not refusal.strike:
                continue
            who = self._who(refusal.key)
            count = self._count.get(who, 0) + 1
            if most and count > most:
                count = 1
            self._count[who] = count
            if count == most:
                self._until[who] = refusal.round + COOLDOWN_ROUNDS

    def _who(self, key: str) -> str:
        return self._enrolled.get(key, key)

    def strikes(self, key: str) -> int:
        """Refused updates of a node since it last sat out, or since it began."""
        return self._count.get(self._who(key), 0)

    def sits_out_until(self, key: str) -> int:
        """The last round that the node sits out; 0 if it never had to."""
        return self._until.get(self._who(key), 0)

    def sits_out(self, key: str, round_: int) -> bool:
        """Whether the node has no part in ``round_``."""
        return round_ <= self.sits_out_until(key)
