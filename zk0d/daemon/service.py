"""The base of every service: signals, systemd, the loop, how it ends.

A service says in :meth:`Service.look` how things are; the base tells systemd and the metrics. It
counts as alive only while its own look says so, never because a thread still runs.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import FrameType

from zk0d.daemon.metrics import Metrics
from zk0d.daemon.notify import Notify

log = logging.getLogger("zk0d")
FIRST_LOOKS = 0.2  #: seconds between two looks until the service is ready
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Condition:
    """How a service is, as seen just now.

    Parameters
    ----------
    status
        One sentence: what is going on and, where something is to be done, what.
    ready
        Whether the service can do its part; a coordinator that is away makes no start fail.
    stuck
        Why no progress is seen; empty while there is progress, or nothing to do. systemd's
        watchdog is not fed while it is set.
    """

    status: str
    ready: bool = True
    stuck: str = ""


class Service(ABC):
    """One long-lived process.

    Parameters
    ----------
    notify
        Where systemd listens; made here if not given.
    """

    name = "service"
    interval = 1.0  #: seconds between two looks
    #: What :attr:`Condition.stuck` may say: each is counted from 0.
    stuck_reasons: tuple[str, ...] = ()

    def __init__(self, metrics: Metrics, notify: Notify | None = None) -> None:
        self.metrics = metrics
        self.notify = notify or Notify()
        self._wake = threading.Event()
        self._ending = ""
        self._reload = False
        self._ready = False
        self._last_status = self._last_event = ""
        self._last_alive = 0.0
        self._withheld = metrics.counter(
            metrics.own("watchdog_pings_withheld"),
            "Checks without progress, after which systemd's watchdog was not fed.",
            ("reason",),
        )
        for reason in self.stuck_reasons:
            self._withheld.labels(reason)

    def start(self) -> None:  # noqa: B027 - a service may have nothing to begin
        """Begin; raises :class:`Zk0dError` if it cannot."""

    @abstractmethod
    def look(self) -> Condition:
        """Do what is due, and say how it is."""

    def reload(self) -> None:  # noqa: B027 - nor anything to read again
        """Read again what can be changed while running."""

    def stop(self) -> None:  # noqa: B027 - nor anything to end
        """End everything that was begun. Called once, however the service ends."""

    def end(self, reason: str) -> None:
        """Ask the loop to end."""
        self._ending = self._ending or reason
        self._wake.set()

    @property
    def ending(self) -> bool:
        return bool(self._ending)

    def run(self) -> None:
        """Run until SIGTERM or SIGINT; SIGHUP reloads. Call from the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop_signal)
        signal.signal(signal.SIGHUP, self._on_reload_signal)
        try:
            self.metrics.serve()
            self.start()
            while not self.ending:
                self._wake.clear()
                if self._reload:
                    self._reloaded()
                self._tell(self.look())
                self._wake.wait(self.interval if self._ready else min(self.interval, FIRST_LOOKS))
        finally:
            self.notify.stopping()
            self.notify.status(f"stopping: {self._ending or 'error'}")
            log.info("%s stops: %s", self.name, self._ending or "error")
            try:
                self.stop()
            finally:
                self.metrics.close()

    def _tell(self, condition: Condition) -> None:
        if condition.ready and not self._ready:
            self._ready = True
            self.notify.ready()
        if condition.status != self._last_status:
            self._last_status = condition.status
            self.notify.status(condition.status)
            # A sentence whose numbers alone move is progress, and no event for the log.
            event = _NUMBER.sub("", condition.status)
            if event != self._last_event:
                self._last_event = event
                log.info("%s", condition.status)
        if condition.stuck:
            self._withheld.labels(condition.stuck).inc()
            return
        wanted = self.notify.watchdog_seconds
        if wanted and time.monotonic() - self._last_alive > wanted / 4:
            self._last_alive = time.monotonic()
            self.notify.alive()

    def _reloaded(self) -> None:
        self._reload = False
        self.notify.reloading()
        self.reload()
        self.notify.ready()

    def _on_stop_signal(self, number: int, _: FrameType | None) -> None:
        self.end(signal.Signals(number).name)

    def _on_reload_signal(self, *_: object) -> None:
        self._reload = True
        self._wake.set()
