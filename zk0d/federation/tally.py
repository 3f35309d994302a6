"""What one round has so far, and what the journal says of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from zk0d.config.run import RunSettings
from zk0d.federation.fleet import Fleet
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.nodes import Node
from zk0d.federation.schedule import RoundPlan
from zk0d.federation.spool import SpooledUpdate
from zk0d.federation.update import Manifest


@dataclass
class Accepted:
    """A node's update that may count."""

    reply: TrainReply
    update: SpooledUpdate
    bytes: int
    sha256: str
    seconds: float  #: from the round's sending to the answer


@dataclass
class RoundTally:
    """What one round has so far."""

    task: Train
    plan: RoundPlan
    model: Manifest
    weights_norm: float
    sent: float
    nodes: dict[str, Node]  #: those that were asked, by key
    accepted: dict[str, Accepted] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    @property
    def open(self) -> list[str]:
        """Keys of the nodes that have neither answered nor been given up."""
        done = {*self.accepted, *self.refused, *self.lost}
        return [key for key in self.nodes if key not in done]

    def facts(self, settings: RunSettings, fleet: Fleet) -> dict[str, Any]:
        """What the journal's ``round.committed`` line says, but for evaluation and times."""
        replies = [each.reply for each in self.accepted.values()]
        task = self.task
        return {
            "nodes": [self._node(key, fleet) for key in sorted(self.accepted, key=fleet.name)],
            "refused": fleet.named(self.refused),
            "lost": fleet.named(self.lost),
            "samples": sum(reply.samples for reply in replies),
            "train_loss": _weighted(replies, "policy_loss"),
            "proximal_loss": _weighted(replies, "proximal_loss"),
            "holdout_loss": _holdout(replies),
            "learning_rate": task.schedule.rate(task.first_step),
            "proximal_mu": task.proximal_mu,
            "reasons": list(self.plan.reasons),
            "boosts": dict(self.plan.boosts),
            "codec": {"uplink": settings.uplink_codec, "downlink": settings.downlink_codec},
            "aggregation": settings.aggregation,
            "weights_norm": self.weights_norm,
            "bytes_down": self.model.size * len(self.nodes),
            "bytes_up": sum(each.bytes for each in self.accepted.values()),
        }

    def _node(self, key: str, fleet: Fleet) -> dict[str, Any]:
        each, member = self.accepted[key], fleet.members.get(key)
        reply = each.reply
        # What neither the learner nor anything else on the node has measured: the way there and
        # back, and the wait for a poll.
        transfer = max(0.0, each.seconds - sum(reply.seconds.values()))
        return {
            "node": fleet.name(key),
            "key": key,
            "samples": reply.samples,
            "steps": reply.steps,
            "loss": reply.loss,
            "policy_loss": reply.policy_loss,
            "proximal_loss": reply.proximal_loss,
            "holdout_loss": reply.holdout_loss,
            "holdout_frames": reply.holdout_frames,
            "grad_norm": reply.grad_norm,
            "update_norm": each.update.norm,
            "learning_rate": reply.learning_rate,
            "bad_batches": reply.bad_batches,
            "dataset_frames": member.usable_frames if member else None,
            "bytes_up": each.bytes,
            "bytes_down": self.model.size,
            "sha256": each.sha256,
            "answer_seconds": each.seconds,
            "seconds": reply.seconds | {"transfer": transfer},
        }


def _weighted(replies: Iterable[TrainReply], what: str) -> float:
    """Mean of a number of the replies, weighted by samples."""
    replies = list(replies)
    total = sum(reply.samples for reply in replies)
    return float(sum(getattr(reply, what) * reply.samples for reply in replies) / total)


def _holdout(replies: Iterable[TrainReply]) -> float | None:
    """Mean loss on the nodes' own held-out frames, weighted by their number."""
    measured = [
        (reply.holdout_loss, reply.holdout_frames)
        for reply in replies
        if reply.holdout_loss is not None and reply.holdout_frames
    ]
    if not measured:
        return None
    return sum(loss * frames for loss, frames in measured) / sum(n for _, n in measured)
