"""The rounds that a contributor's machine trained: for its owner, and for no coordinator.

A ClientApp notes each when the learner has answered. ``zk0bot status`` and ``zk0bot client open``
read them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from zk0d.config.base import Settings
from zk0d.config.machine import ClientSettings
from zk0d.daemon.book import Book
from zk0d.daemon.line import day_of, local_time, newest_days

BOOK = "rounds.json"
#: Rounds that are kept. What days took is kept beside them, however many rounds they had.
MOST_ROUNDS = 1000


class OwnRound(Settings):
    """One round that this node trained.

    Attributes
    ----------
    train_loss
        Mean over the round's steps; ``None`` if it is not a number.
    holdout_loss
        Of the weights with which the round began, on this node's held-out episodes: of the shared
        policy after the round before. ``None`` where the run does not ask for it.
    seconds
        Of evaluation and steps.
    joules
        That its GPU took meanwhile; ``None`` if that is not known.
    """

    run: str
    round: NonNegativeInt
    steps: NonNegativeInt
    train_loss: float | None
    holdout_loss: float | None
    seconds: NonNegativeFloat
    joules: NonNegativeFloat | None

    def repeats(self, other: OwnRound) -> bool:
        """Whether it is the same answer, which a learner may give twice and trains once."""
        return self.model_copy(update={"joules": other.joules}) == other


class DayWork(Settings):
    """What one day took; a round counts on the day on which it ended."""

    rounds: NonNegativeInt = 0
    seconds: NonNegativeFloat = 0.0
    joules: NonNegativeFloat | None = None

    def plus(self, done: OwnRound) -> DayWork:
        """With one round more."""
        known = [each for each in (self.joules, done.joules) if each is not None]
        return DayWork(
            rounds=self.rounds + 1,
            seconds=self.seconds + done.seconds,
            joules=sum(known) if known else None,
        )


class RoundsRecord(Settings):
    """The file's content."""

    version: Literal[1] = 1
    days: dict[str, DayWork] = Field(default_factory=dict)
    rounds: list[OwnRound] = Field(default_factory=list)

    @property
    def of_newest_run(self) -> list[OwnRound]:
        """The rounds of the run that was trained last; of one that was sent again, the last."""
        if not self.rounds:
            return []
        run = self.rounds[-1].run
        by_round = {each.round: each for each in self.rounds if each.run == run}
        return [by_round[number] for number in sorted(by_round)]


class RoundBook(Book[RoundsRecord]):
    """The file, in a folder of the ClientApps' own.

    Parameters
    ----------
    now
        Replaced in tests.
    """

    def __init__(self, folder: Path, now: Callable[[], time.struct_time] = local_time) -> None:
        super().__init__(folder / BOOK, RoundsRecord)
        self._now = now

    @classmethod
    def of(cls, settings: ClientSettings) -> RoundBook:
        """That of a contributor's ClientApps."""
        return cls(settings.superexec.state)

    def add(self, done: OwnRound) -> str:
        """Note a round; why those that were noted before are lost, if they are."""

        def more(record: RoundsRecord) -> RoundsRecord:
            if any(done.repeats(each) for each in record.rounds):
                return record
            day = day_of(self._now())
            days = {**record.days, day: record.days.get(day, DayWork()).plus(done)}
            rounds = [*record.rounds, done][-MOST_ROUNDS:]
            return RoundsRecord(days=newest_days(days), rounds=rounds)

        trouble = self.change(more, durable=True)
        lost = f"{self.path}: the rounds before this one cannot be read ({trouble}) and are lost."
        return lost if trouble else ""

    def facts(self) -> dict[str, Any] | None:
        """What ``zk0bot status`` tells, by JSON's names; ``None`` to a user that may not see it."""
        if self.is_hidden():
            return None
        record = self.read()
        return {
            "days": {day: each.model_dump() for day, each in sorted(record.days.items())},
            "today": record.days.get(day_of(self._now()), DayWork()).model_dump(),
            "rounds": [each.model_dump() for each in record.of_newest_run],
        }
