"""``zk0d owner``: looks whether this machine's owner needs it, and tells the node to rest.

It has no network. It sees the names of other users' programs, which no other service may.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path

import psutil

from zk0d.config.hours import say_time
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ClientSettings
from zk0d.daemon import usage
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.rest import FILE, Rest, told_of
from zk0d.daemon.service import Condition, Service
from zk0d.machine.roles import SERVICES
from zk0d.machine.state import write_json

#: A rest that is not the hours' ends after so long without its cause: a program may start again.
BACK_SECONDS = 60.0


class RestRules:
    """What ``[limits]`` says of this machine just now.

    Parameters
    ----------
    now, clock, on_battery, running, is_idle, gpu_programs
        Replaced in tests.
    """

    def __init__(
        self,
        limits: LimitsSettings,
        *,
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = time.monotonic,
        on_battery: Callable[[], bool] = usage.on_battery,
        running: Callable[[list[str]], str] = usage.running,
        is_idle: Callable[[], bool | None] = usage.is_idle,
        gpu_programs: Callable[[], Iterable[str]] | None = None,
    ) -> None:
        self._limits = limits
        self._now = now
        self._clock = clock
        self._on_battery = on_battery
        self._running = running
        self._is_idle = is_idle
        self._gpu_programs = gpu_programs or partial(usage.gpu_programs, is_own)
        self._last: Rest | None = None
        self._seen = float("-inf")

    def look(self) -> Rest | None:
        """The rest that counts now."""
        found = self._cause() or self._hours()
        if found is not None:
            self._last, self._seen = found, self._clock()
        elif self._last is not None and not self._last.at_once:
            self._last = None  # hours begin when they begin
        elif self._clock() - self._seen >= BACK_SECONDS:
            self._last = None
        return self._last

    def _hours(self) -> Rest | None:
        hours, now = self._limits.training_hours, self._now()
        if hours.allow(now):
            return None
        begin = hours.next_begin(now)
        when = f"until {say_time(begin, now)} (limits.hours)"
        return Rest("hours", when, begin.timestamp(), at_once=False)

    def _cause(self) -> Rest | None:
        limits = self._limits
        if program := self._running(limits.priority):
            return Rest("program", f"while {program} runs (limits.priority)")
        if not limits.on_battery and self._on_battery():
            return Rest("battery", "while this machine runs on its battery (limits.on-battery)")
        if not limits.only_when_idle:
            return None
        idle = self._is_idle()
        if idle is None:
            return Rest(
                "unknown", "while logind does not say whether it is idle (limits.only-when-idle)"
            )
        if not idle:
            return Rest("idle", "while a session is in use (limits.only-when-idle)")
        for program in self._gpu_programs():
            return Rest("idle", f"while {program} works on the GPU (limits.only-when-idle)")
        return None


def is_own(process: psutil.Process) -> bool:
    """Whether a process is one of zk0d's services."""
    words = " ".join(process.cmdline())
    return any(service.runs_as(words) for service in SERVICES)


class OwnerService(Service):
    """Looks every few seconds and writes what it found."""

    name = "owner"
    interval = 5.0

    def __init__(self, settings: ClientSettings, rules: RestRules | None = None) -> None:
        super().__init__(Metrics(self.name))
        self._file = settings.owner.state / FILE
        self._asked = settings.limits.ask_to_rest
        self._rules = rules or RestRules(settings.limits)

    def start(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def look(self) -> Condition:
        rest = self._rules.look()
        write_json(self._file, told_of(rest))
        if rest is not None:
            return Condition(rest.sentence())
        if self._asked:
            return Condition("the owner does not need this machine")
        return Condition("limits name nothing that comes before training")


def run(config: Path) -> None:
    """Run the service."""
    OwnerService(ClientSettings.load(config)).run()
