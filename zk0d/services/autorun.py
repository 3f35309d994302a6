"""Runs that begin by themselves: ``[autorun]`` of ``server.toml``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from zk0d.config.machine import AutorunSettings
from zk0d.config.run import RunSettings, run_settings
from zk0d.errors import UnavailableError, Zk0dError
from zk0d.flower.control import COMPLETED, FINISHED, FlowerRun

log = logging.getLogger("zk0d")

LOOK_SECONDS = 5.0
LONGEST_PAUSE = 6 * 3600.0


class Runs(Protocol):
    """What starts runs: :class:`zk0d.flower.control.Control`."""

    def runs(self) -> list[FlowerRun]: ...

    def start_run(self, settings: RunSettings) -> int: ...


class Autorun:
    """Starts a run when enough nodes have been online for a while, and the next one after it.

    Parameters
    ----------
    check
        Raises if that run could not end here as its settings ask.
    """

    def __init__(
        self,
        settings: AutorunSettings,
        runs: Runs,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._run = run_settings(settings.run_table, where="autorun.run")
        self._runs = runs
        self._clock = clock
        self._check = check
        self._next_look = 0.0
        self._enough_since: float | None = None
        self._idle_since: float | None = None  #: since the last run's end; None during a run
        self._began_one = False
        self._sentence = ""

    def look(self, online: int) -> str:
        """Start a run if it is time; what it waits for, or ``""`` during a run."""
        now = self._clock()
        if online < self._settings.min_nodes:
            self._enough_since = None
        elif self._enough_since is None:
            self._enough_since = now
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._sentence = self._decide(now, online)
        return self._sentence

    def _decide(self, now: float, online: int) -> str:
        runs = self._runs.runs()
        if any(run.status != FINISHED for run in runs):
            self._idle_since, self._began_one = None, True
            return ""
        if self._idle_since is None:
            self._idle_since = now
        # A service that has just started has seen no run end: there is nothing to pause after.
        pause = self._pause(runs) if self._began_one else 0.0
        if now - self._idle_since < pause:
            at = time.strftime(
                "%H:%M", time.localtime(time.time() + pause - now + self._idle_since)
            )
            return f"the next run begins after {at}"
        if self._enough_since is None:
            needed = self._settings.min_nodes
            return f"a run begins when {needed} nodes are online"
        if now - self._enough_since < self._settings.settle_seconds:
            return "a run begins in a moment"
        try:
            self._check()
            number = self._runs.start_run(self._run)
        except UnavailableError:
            raise
        except Zk0dError as error:
            log.error("autorun: %s", error.message)
            return f"the run could not be started: {error.message}"
        log.info(
            "run %d begins by itself, with %d nodes online", number, online, extra={"run": number}
        )
        self._idle_since, self._began_one = None, True
        return ""

    def _pause(self, runs: list[FlowerRun]) -> float:
        failures = 0
        for run in reversed(runs):
            if run.outcome == COMPLETED:
                break
            failures += 1
        return min(self._settings.pause_minutes * 60.0 * 2.0 ** min(failures, 20), LONGEST_PAUSE)
