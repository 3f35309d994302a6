"""Nodes that are late: still at work on a round that has closed.

Their updates count in a later round, by less the staler they are: an update that is ``s`` rounds
late weighs ``1 / (1 + s)`` of a fresh one, as in asynchronous SGD (Zhang et al. 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message

from zk0d.federation.messages import Train
from zk0d.federation.nodes import Node
from zk0d.federation.update import Manifest


@dataclass(frozen=True)
class Work:
    """What a node was asked for: enough to check its answer, whenever that comes."""

    node: Node
    task: Train
    model: Manifest  #: the weights that its update is to
    weights_norm: float
    sent: float  #: when, by the run's clock


class LateNodes:
    """The late nodes of a run, by key.

    Parameters
    ----------
    most
        Rounds that an update may be late; 0 if none may.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._at_work: dict[str, Work] = {}
        self._came: list[tuple[Work, Message]] = []

    def __contains__(self, key: str) -> bool:
        """Whether a node is still at work."""
        return key in self._at_work

    @property
    def rounds(self) -> Mapping[str, int]:
        """The round that each node is at work on, or whose answer waits here."""
        waits = {work.node.key: work.task.round for work, _ in self._came}
        return waits | {key: work.task.round for key, work in self._at_work.items()}

    def waits_for(self, key: str, work: Work) -> bool:
        """Take a node whose round has closed; ``False`` if its update cannot count any more."""
        if not self._most:
            return False
        self._at_work[key] = work
        return True

    def done(self, key: str) -> Work | None:
        """A node that is at work no more: what it was asked for."""
        return self._at_work.pop(key, None)

    def keep(self, key: str, answer: Message) -> None:
        """Hold an answer that came while no round was open."""
        self._came.append((self._at_work.pop(key), answer))

    def came(self, number: int) -> set[str]:
        """The nodes whose answer to round ``number`` itself waits here, if that is sent again."""
        return {work.node.key for work, _ in self._came if work.task.round == number}

    def too_late(self, number: int, now: float) -> list[str]:
        """Give up what is too late for round ``number``: the keys of those still at work.

        So is a node whose own deadline has passed: it does not answer any more.
        """
        self._came = [each for each in self._came if self._counts(each[0], number)]
        gone = [
            key
            for key, work in self._at_work.items()
            if not self._counts(work, number) or now - work.sent > work.task.deadline_seconds
        ]
        for key in gone:
            del self._at_work[key]
        return gone

    def pop(self) -> list[tuple[Work, Message]]:
        """The answers that came while no round was open."""
        came, self._came = self._came, []
        return came

    def _counts(self, work: Work, number: int) -> bool:
        return number - work.task.round <= self._most
