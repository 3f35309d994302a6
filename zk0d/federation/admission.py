"""What an update must be before it touches the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zk0d.errors import Zk0dError
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.update import Manifest, Payload


class NotAdmitted(Zk0dError):
    """An update that is refused; ``reason`` is what is counted."""

    default_reason = "not_admitted"


@dataclass(frozen=True)
class Admitted:
    """An update that may be folded. ``norm`` is its Euclidean norm."""

    reply: TrainReply
    payload: Payload
    norm: float


def admit(task: Train, reply: TrainReply, payload: Payload | None, model: Manifest) -> Admitted:
    """Check a node's answer to ``task`` against the model's manifest.

    Raises
    ------
    UpdateError
        Naming the tensor that is missing, extra, of another shape, or altered on the way.
    NotAdmitted
        With reason ``wrong_base``, ``wrong_round``, ``no_payload``, ``wrong_kind``,
        ``implausible_samples`` or ``not_finite``.
    """
    if payload is None:
        raise NotAdmitted("the answer came without an update.", reason="no_payload")
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
    most = task.steps * task.batch_size
    if reply.samples > most or reply.steps > task.steps:
        raise NotAdmitted(
            f"{reply.samples} samples are claimed, {most} were asked for.",
            reason="implausible_samples",
        )
    model.check_same_tensors(payload.manifest)
    square = 0.0
    for name, delta in payload.decode():
        part = float(np.dot(delta.ravel(), delta.ravel()))
        # A sum of squares can also overflow: such an update is as little use as a NaN.
        if not np.isfinite(part):
            raise NotAdmitted(f"tensor '{name}' holds NaN or infinity.", reason="not_finite")
        square += part
    numbers = (reply.loss, reply.policy_loss, reply.proximal_loss, reply.grad_norm)
    if not np.isfinite(numbers).all():
        raise NotAdmitted("the answer's losses are no numbers.", reason="not_finite")
    return Admitted(reply, payload, float(np.sqrt(square)))
