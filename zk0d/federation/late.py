"""Nodes that are late: still at work on a round that has closed, or out of sight since.

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
        self._away: dict[str, Work] = {}
        self._replaced: list[Work] = []
        self._came: list[tuple[Work, Message]] = []

    def __contains__(self, key: str) -> bool:
        """Whether a node is still at work."""
        return key in self._at_work

    @property
    def rounds(self) -> Mapping[str, int]:
        """The round that each node is at work on, or whose answer waits here."""
        waits = {work.node.key: work.task.round for work, _ in self._came}
        works = {**self._away, **self._at_work}
        return waits | {key: work.task.round for key, work in works.items()}

    def waits_for(self, key: str, work: Work) -> bool:
        """Take a node whose round has closed; ``False`` if its update cannot count any more."""
        return self._take(key, work, self._at_work)

    def lost_sight_of(self, key: str, work: Work) -> bool:
        """The same of one that went offline.

        It may have slept or been cut off, and answer yet; or its machine has restarted, and it does
        not. So it may be asked for another round meanwhile.
        """
        return self._take(key, work, self._away)

    def _take(self, key: str, work: Work, among: dict[str, Work]) -> bool:
        if not self._most:
            return False
        for each in (self._at_work, self._away):
            if key in each:  # one of each node, the newest
                self._replaced.append(each.pop(key))
        among[key] = work
        return True

    def done(self, key: str, number: int) -> Work | None:
        """A node that has answered to round ``number``: what it was asked for."""
        for each in (self._at_work, self._away):
            if key in each and each[key].task.round == number:
                return each.pop(key)
        return None

    def keep(self, work: Work, answer: Message) -> None:
        """Hold an answer that came while no round was open."""
        self._came.append((work, answer))

    def came(self, number: int) -> set[str]:
        """The nodes whose answer to round ``number`` itself waits here, if that is sent again."""
        return {work.node.key for work, _ in self._came if work.task.round == number}

    def too_late(self, number: int, now: float) -> list[Work]:
        """Give up what is too late for round ``number``: what is not waited for any more.

        So is a node whose own deadline has passed: it does not answer any more.
        """
        self._came = [each for each in self._came if self._counts(each[0], number)]
        gone, self._replaced = self._replaced, []
        for among in (self._at_work, self._away):
            for key, work in list(among.items()):
                if not self._counts(work, number) or now - work.sent > work.task.deadline_seconds:
                    gone.append(among.pop(key))
        return gone

    def pop(self) -> list[tuple[Work, Message]]:
        """The answers that came while no round was open."""
        came, self._came = self._came, []
        return came

    def _counts(self, work: Work, number: int) -> bool:
        return number - work.task.round <= self._most
