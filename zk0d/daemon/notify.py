"""What systemd is told: ready, status, watchdog, stopping. Silent where there is no systemd."""

from __future__ import annotations

import os
import time

from sdnotify import SystemdNotifier

SOCKET_VARIABLE = "NOTIFY_SOCKET"
WATCHDOG_VARIABLES = ("WATCHDOG_USEC", "WATCHDOG_PID")


class Notify:
    """The service's end of ``Type=notify``.

    Making it takes the variables out of the environment: a child that had them could speak for us.
    """

    def __init__(self) -> None:
        self._notifier = SystemdNotifier() if os.environ.get(SOCKET_VARIABLE) else None
        meant = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = os.environ.get("WATCHDOG_USEC", "") if meant else ""
        #: Seconds within which systemd wants a sign of life; ``None`` if it does not watch.
        self.watchdog_seconds = int(microseconds) / 1e6 if microseconds.isdigit() else None
        for name in (SOCKET_VARIABLE, *WATCHDOG_VARIABLES):
            os.environ.pop(name, None)

    def ready(self) -> None:
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One sentence for ``systemctl status``."""
        self._send(f"STATUS={' '.join(text.split())}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        # systemd >= 253 wants to know when, so that an older READY=1 does not count.
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def extend_start(self, seconds: float) -> None:
        """Ask for so many seconds more, from now, before the start counts as failed."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, state: str) -> None:
        if self._notifier is not None:
            # sdnotify encodes as Latin-1; this way UTF-8 arrives.
            self._notifier.notify(state.encode().decode("latin-1"))
