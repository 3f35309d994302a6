"""What a contributor's line moved, day by day, and whether it rests now.

The ClientApps count, each of which lives for one message, so the counts lie in a file. Services
and ``zk0bot status`` read it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt

from zk0d.config.amounts import say_bytes
from zk0d.config.base import Settings
from zk0d.config.hours import say_time
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ClientSettings, is_this_machine
from zk0d.daemon.book import Book
from zk0d.daemon.metered import is_metered

BOOK = "line.json"
#: Days that are kept.
MOST_DAYS = 31
#: NetworkManager is not asked more often by a service.
METERED_SECONDS = 30.0


def local_time() -> time.struct_time:
    """The owner's day and hour."""
    return time.localtime()


def day_of(moment: time.struct_time) -> str:
    """The day's name, as it is noted: ``2026-11-30``."""
    return time.strftime("%Y-%m-%d", moment)


def newest_days[Day](days: dict[str, Day]) -> dict[str, Day]:
    """Those that are kept."""
    return dict(sorted(days.items())[-MOST_DAYS:])


class DayBytes(Settings):
    """Weights and updates of one day."""

    down: NonNegativeInt = 0
    up: NonNegativeInt = 0

    @property
    def both(self) -> int:
        """Both ways together."""
        return self.down + self.up


class RoundNeed(Settings):
    """What a round of a run moves, noted when the day did not hold it."""

    day: str
    run: str
    size: NonNegativeInt


class LineRecord(Settings):
    """The file's content."""

    version: Literal[1] = 1
    days: dict[str, DayBytes] = Field(default_factory=dict)
    need: RoundNeed | None = None

    def on(self, moment: time.struct_time) -> DayBytes:
        """What moved on this day."""
        return self.days.get(day_of(moment), DayBytes())


class LineBook(Book[LineRecord]):
    """The file, in a folder of the ClientApps' own.

    Parameters
    ----------
    now
        Replaced in tests.
    """

    def __init__(self, folder: Path, now: Callable[[], time.struct_time] = local_time) -> None:
        super().__init__(folder / BOOK, LineRecord)
        self._now = now

    def today(self) -> DayBytes:
        """What moved since midnight."""
        return self.read().on(self._now())

    def add(self, *, down: int = 0, up: int = 0, durable: bool = False) -> str:
        """Note bytes that moved; what is wrong with those that were noted before, if so.

        Parameters
        ----------
        durable
            Whether they outlive a power cut at once.
        """

        def more(record: LineRecord) -> LineRecord:
            moment = self._now()
            before = record.on(moment)
            today = DayBytes(down=before.down + down, up=before.up + up)
            days = newest_days({**record.days, day_of(moment): today})
            return record.model_copy(update={"days": days})

        return self._lost(self.change(more, durable=durable))

    def note_need(self, run: str, size: int) -> str:
        """Note that a round of a run moves more than the day has left; otherwise as :meth:`add`."""
        need = RoundNeed(day=day_of(self._now()), run=run, size=size)
        return self._lost(self.change(lambda record: record.model_copy(update={"need": need})))

    def _lost(self, trouble: str) -> str:
        if not trouble:
            return ""
        return (
            f"{self.path}: the bytes of this day cannot be read ({trouble}); the count begins"
            " at 0, so the line may move more than limits.bytes-per-day today."
        )


def why_it_rests(
    limits: LimitsSettings,
    record: LineRecord,
    moment: time.struct_time,
    *,
    metered: Callable[[], bool],
    run: str = "",
    needs: int = 0,
    besides: int = 0,
) -> str:
    """Until when a line rests and why, as the end of a sentence; empty if it does not.

    Parameters
    ----------
    metered
        Whether the connection is; asked only if it matters.
    run, needs
        What is about to move: a round of this run, or of any, and its bytes if they are known.
    besides
        Bytes of this day that another record has.
    """
    here = datetime(*moment[:5])
    if not limits.line_hours.allow(here):
        begin = say_time(limits.line_hours.next_begin(here), here)
        return f"until {begin} (limits.transfer-hours is {limits.transfer_hours})"
    if budget := limits.bytes_per_day:
        spent = record.on(moment).both + besides
        noted = record.need
        # More than a day has is another refusal, and the round's own.
        if not needs and noted is not None and noted.size <= budget:
            counts = noted.run == run if run else noted.day == day_of(moment)
            needs = noted.size if counts else 0
        if spent + max(needs, 1) > budget:
            said = f"{say_bytes(spent)} of the day's {say_bytes(budget)} are spent"
            said += f", a round moves {say_bytes(needs)}" if needs else ""
            return f"until midnight ({said}; limits.bytes-per-day)"
    if not limits.metered and metered():
        return (
            "while the connection is metered, as NetworkManager says (limits.metered = true lets it"
            " be used)"
        )
    return ""


class LineWatch:
    """How the line is, for a service that looks often.

    Parameters
    ----------
    asks
        Whether a metered connection matters: not where the coordinator is on this machine.
    releases
        Where bytes of releases are counted.
    now, clock
        Replaced in tests.
    """

    def __init__(
        self,
        limits: LimitsSettings,
        folder: Path,
        *,
        asks: bool,
        releases: Path | None = None,
        metered: Callable[[], bool] = is_metered,
        now: Callable[[], time.struct_time] = local_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.book = LineBook(folder, now)
        self._besides = LineBook(releases, now) if releases is not None else None
        self._asks = asks
        self._ask = metered
        self._now = now
        self._clock = clock
        self._metered = False
        self._asked = float("-inf")
        self.resting = ""  #: as of the last look

    @classmethod
    def of(cls, settings: ClientSettings) -> Self:
        """That of a contributor's ClientApps."""
        here = is_this_machine(settings.coordinator.presence_page)
        folder, releases = settings.superexec.state, settings.policies_folder
        return cls(settings.limits, folder, asks=not here, releases=releases)

    def rests(self) -> str:
        """As :func:`why_it_rests`."""
        self.resting = why_it_rests(
            self.limits,
            self.book.read(),
            self._now(),
            metered=self._is_metered,
            besides=self._besides.today().both if self._besides is not None else 0,
        )
        return self.resting

    def _is_metered(self) -> bool:
        if self._asks and self._clock() - self._asked >= METERED_SECONDS:
            self._metered, self._asked = self._ask(), self._clock()
        return self._metered

    def facts(self) -> dict[str, Any] | None:
        """What ``zk0bot status`` tells, by JSON's names; ``None`` to a user that may not see it."""
        if self.book.is_hidden():
            return None
        record = self.book.read()
        return {
            "days": {day: each.model_dump() for day, each in sorted(record.days.items())},
            "today": record.on(self._now()).model_dump(),
            "bytes_per_day": self.limits.bytes_per_day or None,
            "rests": self.rests(),
        }
