"""A child that is started again, later each time, and whose every end has a reason."""

from __future__ import annotations

import logging
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from prometheus_client import Counter

from zk0d.daemon.child import Child
from zk0d.daemon.metrics import Metrics
from zk0d.errors import ChildError

_logger = logging.getLogger("zk0d")

Reason = Callable[[int, Sequence[str]], str]


class State(StrEnum):
    """What a supervised child is doing."""

    NEW = "new"
    RUNNING = "running"
    WAITING = "waiting"  #: ended; will be started again
    STOPPED = "stopped"  #: on purpose


@dataclass(frozen=True)
class End:
    """How an instance of the child ended."""

    status: int  #: exit status, negative for a signal
    reason: str
    seconds: float  #: it lived so long
    said: str


@dataclass(frozen=True)
class Backoff:
    """Seconds between starts: doubled from ``shortest`` to ``longest``, with jitter.

    A child that lived for ``stable`` seconds begins at ``shortest`` again.
    """

    shortest: float = 1.0
    longest: float = 60.0
    stable: float = 60.0
    jitter: float = 0.2

    def seconds(self, deaths: int) -> float:
        """The wait after so many deaths in a row."""
        wait = min(self.shortest * 2.0 ** min(deaths - 1, 30), self.longest)
        return wait * (1 + random.uniform(-self.jitter, self.jitter))


def child_counters(metrics: Metrics) -> tuple[Counter, Counter]:
    """Starts by child, and starts after an end by child and reason."""
    return (
        metrics.counter("child_starts", "Starts of a supervised process.", ("child",)),
        metrics.counter(
            "child_restarts",
            "Starts of a supervised process after an unexpected end.",
            ("child", "reason"),
        ),
    )


class Supervised:
    """One child, kept running by a look from time to time. Look from one thread only.

    Parameters
    ----------
    log
        Where its output goes, as :class:`Child` says.
    reason
        Says from an exit status and the last lines why it ended; a short name, or ``""`` if it
        cannot tell.
    reasons
        What ``reason`` and :meth:`restart` may say: each is counted from 0.
    most_deaths
        Deaths in a row after which :meth:`look` raises :class:`ChildError`; 0 never.
    death_signal
        What it gets if we die, as :class:`Child` says.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        metrics: Metrics,
        *,
        log: Path | Callable[[str], None],
        reason: Reason = lambda status, lines: "",
        reasons: tuple[str, ...] = (),
        backoff: Backoff = Backoff(),
        most_deaths: int = 0,
        death_signal: signal.Signals = signal.SIGKILL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.state = State.NEW
        self.last_end: End | None = None
        self.starts = 0
        self._argv, self._env, self._cwd = list(argv), dict(env), cwd
        self._starts_total, self._restarts_total = child_counters(metrics)
        self._starts_total.labels(name)
        for known in (_plain_reason(1), _plain_reason(-9), *reasons):
            self._restarts_total.labels(name, known)
        self._log = log
        self._reason = reason
        self._backoff = backoff
        self._most_deaths = most_deaths
        self._death_signal = death_signal
        self._clock = clock
        self._child: Child | None = None
        self._started = 0.0
        self._next_start = 0.0
        self._deaths = 0

    @property
    def child(self) -> Child | None:
        """The newest instance, whether it runs or has ended."""
        return self._child

    @property
    def pid(self) -> int | None:
        """Of the running instance."""
        return self._child.pid if self._child and self.state is State.RUNNING else None

    @property
    def alive(self) -> bool:
        """Whether the newest instance runs, whatever the last look saw."""
        return self._child is not None and self._child.alive

    @property
    def running_seconds(self) -> float:
        """How long the present instance has run; 0 if there is none."""
        return self._clock() - self._started if self.state is State.RUNNING else 0.0

    @property
    def waits(self) -> float:
        """Seconds until the next start; 0 if none is due."""
        if self.state is not State.WAITING:
            return 0.0
        return max(0.0, self._next_start - self._clock())

    def start(self) -> None:
        """Start the first instance, or one after a stop."""
        if self.state in (State.NEW, State.STOPPED):
            self._spawn()

    def look(self) -> State:
        """Notice an end; start again when it is time.

        Raises
        ------
        ChildError
            If it died too often in a row.
        """
        if self.state is State.RUNNING and self._child is not None and not self._child.alive:
            self._ended(self._child)
        if self.state is State.WAITING and self._clock() >= self._next_start:
            self._spawn()
        return self.state

    def restart(self, reason: str) -> None:
        """End the present instance for ``reason``; the next look starts another at once."""
        if self.state is State.RUNNING and self._child is not None:
            self._child.stop(grace=2.0)
            self._note(self._child, reason)
            self.state, self._next_start = State.WAITING, self._clock()

    def stop(self, reason: str, grace: float = 8.0) -> None:
        """End it for good; nothing of its process group is left."""
        if self.state is State.RUNNING and self._child is not None:
            self._child.stop(grace)
            self._note(self._child, reason)
        self.state = State.STOPPED

    def signal(self, number: int) -> None:
        """Send the present instance a signal."""
        if self.state is State.RUNNING and self._child is not None:
            self._child.signal(number)

    def wait_longer(self, seconds: float) -> None:
        """Put the next start off: it would fail for a reason that needs this long to pass."""
        if self.state is State.WAITING:
            self._next_start = max(self._next_start, self._clock() + seconds)

    def _spawn(self) -> None:
        if self.last_end is not None and self.state is State.WAITING:
            self._restarts_total.labels(self.name, self.last_end.reason).inc()
        self._child = Child(
            self.name, self._argv, self._env, self._log, self._cwd, self._death_signal
        )
        self._started = self._clock()
        self.starts += 1
        self._starts_total.labels(self.name).inc()
        self.state = State.RUNNING
        _logger.info("%s started (pid %d)", self.name, self._child.pid)

    def _ended(self, child: Child) -> None:
        lived = self._clock() - self._started
        # Its own children must not outlive it.
        child.stop(grace=0.5)
        self._note(child, "")
        self._deaths = 1 if lived >= self._backoff.stable else self._deaths + 1
        if self._most_deaths and self._deaths >= self._most_deaths:
            self.state = State.STOPPED
            assert self.last_end is not None
            raise ChildError(
                f"{self.name} died {self._deaths} times in a row, last because"
                f" {self.last_end.reason}{f': {self.last_end.said}' if self.last_end.said else ''}."
            )
        self._next_start = self._clock() + self._backoff.seconds(self._deaths)
        self.state = State.WAITING

    def _note(self, child: Child, reason: str) -> None:
        status = child.exit_status or 0
        why = reason or self._reason(status, child.recent()) or _plain_reason(status)
        self.last_end = End(status, why, self._clock() - self._started, child.last_words())
        level = logging.INFO if reason else logging.WARNING
        _logger.log(level, "%s ended after %.0f s: %s", self.name, self.last_end.seconds, why)


def _plain_reason(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
