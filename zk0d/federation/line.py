"""What one ClientApp moves over its owner's line: refused before it begins, slowed, and counted.

Weights and updates are. Messages are not, which a SuperNode takes before anybody here sees them;
what of weights and updates lies in a message is counted.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from zk0d.config.amounts import say_bytes
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import (
    COORDINATOR_VARIABLE,
    LIMITS_VARIABLE,
    LINE_FOLDER_VARIABLE,
    RELEASES_LINE_VARIABLE,
    is_this_machine,
)
from zk0d.daemon.line import LineBook, local_time, why_it_rests
from zk0d.daemon.metered import is_metered
from zk0d.errors import ConfigError, TryAgainError, Zk0dError

log = logging.getLogger("flwr")

#: A line that rested so long may catch up: answers take their time on the way.
CATCH_UP_SECONDS = 1.0
#: A file is fetched in parts of so many seconds, so that no coordinator waits for a slow reader.
PART_SECONDS, LEAST_PART = 4.0, 64 * 1024
#: Sent at once, at most: without a rate, and with one in so many seconds.
MOST_AT_ONCE, STEP_SECONDS = 256 * 1024, 0.25
#: Counts are written so often, so that one that is killed forgets little.
NOTE_SECONDS = 5.0


class Pace:
    """Holds what moves to a rate.

    Parameters
    ----------
    rate
        Bytes a second; 0 for any.
    """

    def __init__(
        self, rate: int, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self.rate = rate
        self._clock = clock
        self._sleep = sleep
        self._due = clock()  #: when what moved so far may have moved

    def moved(self, count: int) -> float:
        """Rest until ``count`` bytes more may have moved; for how long."""
        if not self.rate:
            return 0.0
        now = self._clock()
        self._due = max(self._due, now - CATCH_UP_SECONDS) + count / self.rate
        rest = max(0.0, self._due - now)
        if rest:
            self._sleep(rest)
        return rest


class Line:
    """The line, for one message.

    Parameters
    ----------
    limits
        What its owner lends.
    book
        Where bytes are counted.
    besides
        Where those are counted that another program moves, which the same day has to hold.
    metered, clock, sleep, now
        Replaced in tests.
    """

    def __init__(
        self,
        limits: LimitsSettings,
        book: LineBook | None = None,
        *,
        besides: LineBook | None = None,
        metered: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], time.struct_time] = local_time,
    ) -> None:
        self._limits = limits
        self._book = book
        self._besides = besides
        self._metered = metered
        self._clock = clock
        self._now = now
        self._down = Pace(limits.download_rate, clock, sleep)
        self._up = Pace(limits.upload_rate, clock, sleep)
        self._open = {"down": 0, "up": 0}  #: counted, and not noted yet
        self._noted = clock()

    @property
    def part(self) -> int:
        """Bytes of a file that are asked for at once; 0 for all of it."""
        rate = self._down.rate
        return max(LEAST_PART, round(rate * PART_SECONDS)) if rate else 0

    def check(self, run: str, *, needs: int = 0) -> None:
        """Refuse while the line rests; the coordinator asks again."""
        if rests := self._rests(run, needs):
            if needs and self._limits.bytes_per_day:
                self._write(lambda book: book.note_need(run, needs))
            raise TryAgainError(f"this node's line rests {rests}.", reason="line_rests")

    def begin_round(self, run: str, *, down: int, up: int, seconds: float) -> None:
        """Refuse a round that could not be finished, before any of it moves.

        Parameters
        ----------
        down, up
            Bytes that it moves.
        seconds
            Until its deadline.
        """
        limits, needs = self._limits, down + up
        if 0 < limits.bytes_per_day < needs:
            raise ConfigError(
                f"a round of this run moves {say_bytes(needs)}, and this node lends"
                f" {say_bytes(limits.bytes_per_day)} a day (limits.bytes-per-day).",
                reason="limit_exceeded",
            )
        takes = sum(
            count / rate
            for count, rate in ((down, limits.download_rate), (up, limits.upload_rate))
            if rate
        )
        if takes > seconds:
            raise Zk0dError(
                f"this round's {say_bytes(down)} down and {say_bytes(up)} up take {takes:.0f} s at"
                " this node's rates (limits.download-rate, limits.upload-rate), and its deadline is"
                f" after {seconds:.0f} s.",
                reason="deadline",
            )
        self._note()
        self.check(run, needs=needs)

    def room(self) -> int:
        """Bytes that the day still holds; 0 if any number.

        Raises
        ------
        TryAgainError
            While the line rests.
        """
        self._note()
        self.check("")
        if self._book is None or not self._limits.bytes_per_day:
            return 0
        spent = self._book.today().both + self._moved_besides
        return max(1, self._limits.bytes_per_day - spent)

    def begin_upload(self) -> None:
        """Refuse to send if the connection has become a metered one."""
        if not self._limits.metered and self._metered():
            raise TryAgainError(
                "this node's connection has become a metered one, so this round's update is not"
                " sent (limits.metered).",
                reason="line_rests",
            )

    def received(self, count: int) -> float:
        """Count bytes that came, and rest if they came fast; for how long."""
        self._count("down", count)
        return self._down.moved(count)

    def send(self, block: bytes) -> Iterator[bytes]:
        """A block in parts, each when it may be sent."""
        rate = self._up.rate
        step = min(MOST_AT_ONCE, max(1, round(rate * STEP_SECONDS))) if rate else MOST_AT_ONCE
        for at in range(0, len(block), step):
            part = block[at : at + step]
            self._up.moved(len(part))
            self._count("up", len(part))
            yield part

    def count(self, *, down: int = 0, up: int = 0) -> None:
        """Count what moved inside a message."""
        self._count("down", down)
        self._count("up", up)

    def close(self) -> None:
        """Note what was counted."""
        try:
            self._note(durable=True)
        except TryAgainError as error:  # what moved has moved
            log.error("zk0d: %s", error.message)

    def _count(self, way: str, count: int) -> None:
        self._open[way] += count
        if self._clock() - self._noted >= NOTE_SECONDS:
            self._note()

    def _note(self, *, durable: bool = False) -> None:
        self._noted = self._clock()
        moved, self._open = self._open, {"down": 0, "up": 0}
        if any(moved.values()):
            self._write(lambda book: book.add(**moved, durable=durable))

    def _write(self, write: Callable[[LineBook], str]) -> None:
        """What cannot be counted does not move, if its owner counts."""
        if self._book is None:
            return
        try:
            if trouble := write(self._book):
                log.error("zk0d: %s", trouble)
        except OSError as error:
            said = f"{self._book.path}: the bytes of this day cannot be noted ({error.strerror})"
            if self._limits.bytes_per_day:
                raise TryAgainError(
                    f"{said}, so limits.bytes-per-day would not hold; nothing moves.",
                    reason="disk_full",
                ) from None
            log.error("zk0d: %s.", said)

    def _rests(self, run: str, needs: int) -> str:
        if self._book is None:
            return ""
        return why_it_rests(
            self._limits,
            self._book.read(),
            self._now(),
            metered=self._metered,
            run=run,
            needs=needs,
            besides=self._moved_besides,
        )

    @property
    def _moved_besides(self) -> int:
        return self._besides.today().both if self._besides is not None else 0


def line_of(environment: os._Environ[str] | dict[str, str] = os.environ) -> Line:
    """The line that the SuperExec told its ClientApps of; in a simulation, one without limits."""
    limits, folder = environment.get(LIMITS_VARIABLE), environment.get(LINE_FOLDER_VARIABLE)
    if not limits or not folder:
        return Line(LimitsSettings())
    here = is_this_machine(environment.get(COORDINATOR_VARIABLE, ""))
    releases = environment.get(RELEASES_LINE_VARIABLE)
    return Line(
        LimitsSettings.model_validate_json(limits),
        LineBook(Path(folder)),
        besides=LineBook(Path(releases)) if releases else None,
        metered=(lambda: False) if here else is_metered,
    )
