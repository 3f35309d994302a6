"""One round's answers: checked as they come, kept on disk, refused, or given up."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from flwr.app import Message

from zk0d.config.run import RunSettings, TrainingSettings
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation.admission import (
    Standing,
    check_norm,
    check_reply,
    check_variate_norm,
    outliers,
)
from zk0d.federation.aggregate import Combined
from zk0d.federation.cohort import OFFLINE, Cohort, content
from zk0d.federation.envelope import Refused
from zk0d.federation.late import LateNodes, Work
from zk0d.federation.messages import Train, TrainReply, UpdateRejected
from zk0d.federation.nodes import Node
from zk0d.federation.schedule import RoundPlan
from zk0d.federation.spool import Spool, SpooledUpdate
from zk0d.federation.transport import Transport
from zk0d.federation.update import Payload
from zk0d.record.events import (
    AnyEvent,
    NodeLost,
    NodeRound,
    NodeSitsOut,
    RoundCommitted,
    UpdateAccepted,
    UpdateRefused,
)
from zk0d.record.reasons import Reason

log = logging.getLogger("flwr")


@dataclass(frozen=True, eq=False)
class Accepted:
    """A node's update that may count."""

    node: Node
    round: int  #: that it was asked for
    staleness: int  #: rounds since
    reply: TrainReply
    update: SpooledUpdate
    variate: SpooledUpdate | None
    bytes: int
    sha256: str
    seconds: float  #: from the round's sending to the answer

    @property
    def key(self) -> str:
        """The node's."""
        return self.node.key

    @property
    def weight(self) -> float:
        """Samples, of which those of a late update count less."""
        return self.reply.figures.samples / (1.0 + self.staleness)

    def share(self, training: TrainingSettings) -> float:
        """What its update counts by in a mean: near 1, so that the sum keeps its precision.

        By pace all count equally but for being late, because an update of more steps is longer by
        itself. That is FedNova's direction (Wang et al. 2020) for nodes that weigh by samples.
        """
        if training.round_minutes:
            return 1.0 / (1.0 + self.staleness)
        return self.weight / training.frames

    def norm(self, training: TrainingSettings) -> float:
        """The update's norm as of ``local-steps`` steps.

        One of ``n`` times the steps is longer, between ``sqrt(n)`` times (as of a random walk) and
        ``n`` times (as straight ahead). By the lower bound nobody stands out by pace alone: of the
        most and the fewest steps the norms are then at most four times apart.
        """
        return self.update.norm / math.sqrt(self.reply.figures.steps / training.local_steps)

    def variate_norm(self, training: TrainingSettings) -> float:
        """Its variate's norm by its samples, as it counts."""
        assert self.variate is not None
        return self.variate.norm * self.reply.figures.samples / training.frames


class RoundAnswers:
    """What one round has so far.

    Parameters
    ----------
    nodes
        Those that were asked, by key.
    late
        Nodes that are still at work on an earlier round.
    before
        An earlier try of the same round, which had too few answers. Those count.
    record
        Takes each event of the run.
    standing
        The nodes' strikes before this round.
    """

    def __init__(
        self,
        task: Train,
        plan: RoundPlan,
        model: Payload,
        weights_norm: float,
        nodes: dict[str, Node],
        *,
        settings: RunSettings,
        cohort: Cohort,
        spool: Spool,
        transport: Transport,
        record: Callable[[AnyEvent], object],
        standing: Callable[[], Standing],
        clock: Callable[[], float],
        late: LateNodes,
        before: RoundAnswers | None = None,
    ) -> None:
        self.task = task
        self.plan = plan
        self._bytes_down = bytes_down(model)
        self.sent = clock()
        self._weights_norm = weights_norm
        self._works = {
            key: Work(node, task, model.manifest, weights_norm, self.sent)
            for key, node in nodes.items()
        }
        self._late = late
        self.nodes = frozenset(nodes)  #: keys of those that were asked
        self.closed = False
        self._settings = settings
        self._cohort = cohort
        self._spool = spool
        self._transport = transport
        self._record = record
        self._standing = standing
        self._clock = clock
        self.accepted: dict[str, Accepted] = dict(before.accepted) if before else {}
        #: Updates of late nodes.
        self.folded: list[Accepted] = list(before.folded) if before else []
        self.refused: dict[str, str] = {}  #: reasons by key
        self.lost: dict[str, str] = {}

    @property
    def open(self) -> list[str]:
        """Keys of the nodes that have neither answered nor been given up."""
        done = {*self.accepted, *self.refused, *self.lost}
        return [key for key in self._works if key not in done]

    @property
    def keys(self) -> set[str]:
        """Nodes of which an update to this round itself counts."""
        return {each.key for each in self.in_order() if not each.staleness}

    @property
    def count(self) -> int:
        """Updates that may count."""
        return len(self.accepted) + len(self.folded)

    @property
    def is_over(self) -> bool:
        """Whether nothing more has to be waited for: all answered, or the quorum did."""
        rounds = self._settings.rounds
        quorum = math.ceil(rounds.quorum * len(self.nodes | self.accepted.keys()))
        return not self.open or len(self.accepted) >= max(quorum, rounds.min_fit_clients)

    def take(self, key: str, number: int, answer: Message) -> None:
        """A node's answer to this round, or to the one that it is late for."""
        work = self._late.done(key, number)
        if number == self.task.round:
            if key in self.keys:
                return  # it was asked twice: a try failed while it was out of sight
            work = self._works.get(key, work)
        if work is not None:
            self.take_to(work, answer)

    def take_to(self, work: Work, answer: Message) -> None:
        """An answer to what a node was asked for, in this round or before; it may count."""
        key = work.node.key
        asked = work.task
        try:
            reply, payload = self._transport.answer(content(answer), key, asked.round)
            del answer
            member = self._cohort.members.get(key)
            payload = check_reply(
                asked, reply, payload, work.model, member.usable_frames if member else 0
            )
            size, sha256 = payload.manifest.size, payload.manifest.sha256
            size += sum(each.manifest.size for each in payload.beside)
            with self._spool.undoing() as spooled:
                update = spooled(f"{key}.{asked.round}", payload)
                check_norm(
                    update.norm, work.weights_norm, self._settings.admission.max_update_ratio
                )
                variate = None
                if given := payload.companion("variates"):
                    variate = spooled(f"{key}.{asked.round}.variate", given, one_file=True)
                    check_variate_norm(variate.norm, asked.training.grad_clip_norm)
        except TryAgainError:
            raise  # our own disk, not the node
        except Zk0dError as error:
            self._refuse(work.node, error, own=work is self._works.get(key))
            return
        accepted = Accepted(
            work.node,
            asked.round,
            self.task.round - asked.round,
            reply,
            update,
            variate,
            size,
            sha256,
            self._clock() - work.sent,
        )
        if work is self._works.get(key):
            self.accepted[key] = accepted
            self.refused.pop(key, None)
            self.lost.pop(key, None)
        else:
            self.folded.append(accepted)
        self._record(
            UpdateAccepted(
                round=self.task.round,
                node=self._cohort.name(key),
                loss=reply.figures.policy_loss,
                samples=reply.figures.samples,
                norm=update.norm,
                staleness=accepted.staleness,
            )
        )

    def _refuse(self, node: Node, error: Zk0dError, *, own: bool) -> None:
        """Leave a node's answer out of the round; an update that is no good is a strike.

        Parameters
        ----------
        own
            Whether it was to this try of the round.
        """
        key = node.key
        if own:
            self.refused[key] = error.reason
        passes, said = Reason.of(error.reason).passes, isinstance(error, Refused)
        strike = not said and not passes
        self._record(
            UpdateRefused(
                round=self.task.round,
                node=self._cohort.name(key),
                key=key,
                reason=error.reason,
                message=error.message,
                strike=strike,
            )
        )
        if said and not passes:
            self._cohort.leave_out(key, error)
        if strike:
            self._tell(node, error)

    def _tell(self, node: Node, error: Zk0dError) -> None:
        """Tell a node what is held against it, and whether it sits out now."""
        key = node.key
        round_, standing = self.task.round, self._standing()
        until = standing.sits_out_until(key)
        if until > round_:
            self._record(
                NodeSitsOut(round=round_, node=self._cohort.name(key), key=key, until=until)
            )
        self._cohort.notify(
            node,
            UpdateRejected(
                run=self.task.run,
                round=round_,
                reason=error.reason,
                message=error.message,
                strikes=standing.strikes(key),
                sits_out_until=until if until > round_ else 0,
            ),
        )

    def lose(self, key: str, number: int, reason: str) -> None:
        """A node is not waited for; its answer may come nevertheless, and counts then."""
        work = self._late.done(key, number)
        if work is None:
            if number != self.task.round or key not in self.open:
                return
            self.lost[key] = reason
            work = self._works[key]
        if not self._late.lost_sight_of(key, work):
            self._cohort.give_up(key, number)
        self._record(NodeLost(round=self.task.round, node=self._cohort.name(key), reason=reason))

    def wait_again_for(self, node: Node) -> bool:
        """Whether a node that went away in this round is to be asked again, now that it is back.

        It may answer to both messages; the first answer counts.
        """
        if self.closed or self.is_over or self.lost.get(node.key) != OFFLINE:
            return False
        self._late.done(node.key, self.task.round)
        del self.lost[node.key]
        self._works[node.key] = replace(self._works[node.key], node=node)
        return True

    def close(self) -> None:
        """Wait no longer, and leave out what is far longer than the rest."""
        for key in self.open:
            if self._late.waits_for(key, self._works[key]):
                self.lost[key] = Reason.LATE
            else:
                self._cohort.give_up(key, self.task.round)
                self.lost[key] = Reason.DEADLINE
            self._record(
                NodeLost(round=self.task.round, node=self._cohort.name(key), reason=self.lost[key])
            )
        self._transport.close(self._late.rounds)
        self.closed = True
        factor = self._settings.admission.norm_outlier_factor
        every = [*self.accepted.values(), *self.folded]
        training = self.task.training
        norms = {each: each.norm(training) for each in every}
        # A mean of few steps is noisy and long, and counts by little: longer alone is no fault.
        variates = {each: each.variate.norm for each in every if each.variate}
        counted = {each: each.variate_norm(training) for each in every if each.variate}
        long, much = outliers(variates, factor, "variate"), outliers(counted, factor)
        refused = {each: error for each, error in long.items() if each in much}
        refused |= outliers(norms, factor)
        for each, error in refused.items():
            # The spool is cleared at the round's end.
            own = self.accepted.get(each.key) is each
            if own:
                del self.accepted[each.key]
            else:
                self.folded.remove(each)
            self._refuse(each.node, error, own=own)

    def in_order(self) -> list[Accepted]:
        """The updates that count, in the order of the nodes' names; a late one is the first."""
        every = [*self.accepted.values(), *self.folded]
        return sorted(every, key=lambda each: (self._cohort.name(each.key), each.round))

    def missing(self) -> str:
        """The nodes with missing updates, and the reasons."""
        told = self._cohort.named({**self.refused, **self.lost})
        missing = ", ".join(f"{name} ({reason})" for name, reason in sorted(told.items()))
        return f"updates of {missing} are missing" if missing else "too few nodes were asked"

    def committed(self, combined: Combined) -> RoundCommitted:
        """The round's event, but for evaluation and times."""
        figures = [each.reply.figures for each in self.in_order()]
        settings, task, cohort = self._settings, self.task, self._cohort
        return RoundCommitted(
            round=task.round,
            nodes=tuple(
                self._node(each, cosine)
                for each, cosine in zip(self.in_order(), combined.cosines, strict=True)
            ),
            refused=cohort.named(self.refused),
            lost=cohort.named(self.lost),
            samples=sum(each.samples for each in figures),
            train_loss=_mean((each.policy_loss, each.samples) for each in figures),
            proximal_loss=_mean((each.proximal_loss, each.samples) for each in figures),
            holdout_loss=_mean(
                (each.holdout_loss, each.holdout_frames)
                for each in figures
                if each.holdout_loss is not None
            ),
            learning_rate=task.schedule.rate(task.first_step),
            proximal_mu=task.proximal_mu,
            reasons=self.plan.reasons,
            boosts=dict(self.plan.boosts),
            codec={
                "uplink": settings.training.uplink_codec,
                "downlink": settings.aggregation.downlink_codec,
            },
            aggregation=settings.aggregation.rule,
            weights_norm=self._weights_norm,
            mean_update_norm=combined.norm,
            agreement=combined.agreement,
            # Of the others nobody knows how far they came.
            bytes_down=sum(self._down(each) for each in self.in_order())
            + self._bytes_down["whole"] * len(self.nodes - self.accepted.keys()),
            bytes_up=sum(each.bytes for each in self.in_order()),
        )

    def _down(self, each: Accepted) -> int:
        """Bytes that came down to a node in this round."""
        if each.staleness:
            return 0
        return self._bytes_down[each.reply.figures.weights or "whole"]

    def _node(self, each: Accepted, cosine: float) -> NodeRound:
        key, figures = each.key, each.reply.figures
        # What neither the learner nor anything else on the node has measured: the way there and
        # back, and the wait for a poll.
        transfer = max(0.0, each.seconds - sum(figures.seconds.values()))
        return NodeRound(
            **figures.model_dump(exclude={"seconds"}),
            node=self._cohort.name(key),
            key=key,
            update_norm=each.update.norm,
            agreement=cosine,
            staleness=each.staleness,
            bytes_up=each.bytes,
            bytes_down=self._down(each),
            sha256=each.sha256,
            answer_seconds=each.seconds,
            seconds=figures.seconds | {"transfer": transfer},
        )


def bytes_down(model: Payload) -> dict[str, int]:
    """A node's bytes by the way that its weights come, as its figures name that."""
    difference = model.companion("delta")
    beside = sum(each.manifest.size for each in model.beside if each is not difference)
    whole = model.manifest.size + beside
    changed = whole if difference is None else difference.manifest.size + beside
    return {"whole": whole, "difference": changed, "held": beside}


def _mean(weighted: Iterable[tuple[float, int]]) -> float | None:
    """Mean of values by their weights; ``None`` if there are none."""
    pairs = list(weighted)
    total = sum(weight for _, weight in pairs)
    return float(sum(value * weight for value, weight in pairs) / total) if total else None
