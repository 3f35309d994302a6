"""A run that waits: it says since when, for what and what would end it, and tries again.

What passes by itself ends no run. Whether a reason does, ``record.reasons`` says.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from zk0d.errors import TryAgainError, Zk0dError
from zk0d.record.events import AnyEvent, RunContinued, RunWaiting
from zk0d.record.journal import TRY_NOW
from zk0d.record.reasons import Reason

log = logging.getLogger("flwr")

#: Seconds that a run lacks something before it says so: most nodes answer sooner.
SAY_AFTER = 30.0
#: Seconds before the second try, and the longest pause; doubles from one to the other.
PAUSES = (5.0, 600.0)
#: The same for an evaluator, which costs nothing to ask.
SHORT_PAUSES = (1.0, 60.0)
#: Seconds between two looks in a pause.
LOOK_SECONDS = 1.0


class Waiting:
    """What one run waits for.

    Parameters
    ----------
    folder
        The run's own, in which ``zk0bot run --resume`` asks for a try at once.
    record
        Takes each event of the run.
    clock, sleep
        Seconds that no setting of the clock changes; replaced in tests.
    """

    def __init__(
        self,
        folder: Path,
        record: Callable[[AnyEvent], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._asked = folder / TRY_NOW
        self._record = record
        self._clock = clock
        self._sleep = sleep
        self._now: RunWaiting | None = None

    def take_up(self, before: RunWaiting | None) -> None:
        """Go on with what an earlier ServerApp of the run waited for."""
        self._now = before

    def because(self, reason: str, message: str, until: str, *, pause: float = 0.0) -> None:
        """Say that the run waits; the same again is not said twice.

        Parameters
        ----------
        message, until
            For what it waits, and what ends it; each the part of a sentence.
        pause
            Seconds until the next try; 0 if it looks all the time.
        """
        now, last = time.time(), self._now
        if last and (last.reason, last.message, last.until) == (reason, message, until):
            if not pause:
                return
        else:
            log.warning("zk0d: the run waits: %s; it continues %s", message, until)
        self._now = RunWaiting(
            reason=reason,
            message=message,
            until=until,
            since=last.since if last else now,
            next_try=now + pause if pause else 0.0,
        )
        try:
            self._record(self._now)
        except TryAgainError as error:  # the disk that it waits for
            log.error("zk0d: %s", error.message)

    def for_error(self, error: Zk0dError, pause: float) -> None:
        """Say that the run waits because of an error that passes."""
        reason = Reason.of(error.reason)
        self.because(reason, error.message.rstrip("."), reason.until, pause=pause)

    def over(self, *reasons: Reason) -> None:
        """Say that the run continues, if it waited (for one of ``reasons``)."""
        last = self._now
        if last is None or (reasons and Reason.of(last.reason) not in reasons):
            return
        self._record(RunContinued(reason=last.reason, seconds=max(0.0, time.time() - last.since)))
        self._now = None
        log.info("zk0d: the run continues")

    def rest(self, seconds: float, ends: Callable[[], bool] = lambda: False) -> None:
        """Let a pause pass, unless ``ends`` or somebody asks for a try at once."""
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0 and not (self._is_asked() or ends()):
            self._sleep(min(left, LOOK_SECONDS))

    def _is_asked(self) -> bool:
        try:
            self._asked.unlink()
        except OSError:
            return False
        return True


def pause(tries: int, pauses: tuple[float, float] = PAUSES) -> float:
    """Seconds after so many tries, 0 or more."""
    return min(pauses[0] * 2.0 ** min(tries, 60), pauses[1])
