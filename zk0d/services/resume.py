"""Goes on with a run that died of something that was not its own: a killed ServerApp, a reboot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from zk0d.config.run import RunSettings
from zk0d.errors import UnavailableError, Zk0dError
from zk0d.flower.control import FINISHED
from zk0d.record.state import RunState
from zk0d.services.autorun import Runs

log = logging.getLogger("zk0d")

#: Seconds before the first and the longest wait; doubles from one to the other.
FIRST_WAIT, LONGEST_WAIT = 5.0, 600.0


class Resume:
    """Starts an interrupted run again, at its last committed round, for as long as it takes.

    Parameters
    ----------
    runs
        What starts runs.
    clock
        Seconds; replaced in tests.
    """

    def __init__(self, runs: Runs, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._clock = clock
        self._of: tuple[str, int] = ("", -1)  #: the run and round that the tries are counted for
        self._tries = 0
        self._next = 0.0

    def look(self, run: RunState | None) -> str:
        """Go on with ``run`` if it was interrupted and it is time; what is being done, or ``""``.

        Raises
        ------
        UnavailableError
            If the SuperLink does not answer.
        """
        if run is None or not run.interrupted:
            return ""
        now = self._clock()
        if self._of != (run.run, run.round):
            self._of, self._tries, self._next = (run.run, run.round), 0, now + FIRST_WAIT
        if now < self._next:
            return f"resuming it in {self._next - now:.0f} s"
        if any(state.status != FINISHED for state in self._runs.runs()):
            return "resuming it"
        self._tries += 1
        self._next = now + min(FIRST_WAIT * 2.0 ** min(self._tries, 60), LONGEST_WAIT)
        try:
            number = self._runs.start_run(RunSettings(resume=run.run))
        except UnavailableError:
            raise
        except Zk0dError as error:
            log.error("resume: %s", error.message)
            return f"it cannot be resumed: {error.message}"
        log.info(
            "run %s resumes after round %d, as Flower's run %d",
            run.run,
            run.round,
            number,
            extra={"run": run.run, "round": run.round},
        )
        return "resuming it"
