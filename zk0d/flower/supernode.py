"""Flower's SuperNode: a shorter wait between its looks for work, a way to leave in between, a name.

Flower looks every 3 s, and every 0.5 s for an answer that is ready; both are numbers in its
loop. A trivial round spends most of its time there. Here the wait is short while a run is under way
and grows to Flower's 3 s while nothing happens, so an idle node costs the coordinator no more than
before. That wait is also the moment when no message is in work and no reply is left to send: a
SuperNode that got SIGUSR1 leaves there. This is the only place that reaches into Flower's loop and
into its requests, each of which names this process (:mod:`zk0d.flower.sessions`); ``tests/flower``
fails when Flower changes either.
"""

from __future__ import annotations

import os
import signal
import time as real_time
from collections.abc import Callable, Sequence
from typing import Any

from zk0d.errors import ConfigError
from zk0d.flower.sessions import SESSION_HEADER, SESSION_VARIABLE
from zk0d.flower.version import check_version

IDLE_WAIT = 3.0  #: the constant in Flower's loop after a look that found nothing
REPLY_WAIT = 0.5  #: the constant in Flower's loops that wait for an answer
FIRST_WAIT = 0.2
LEAVE_SIGNAL = signal.SIGUSR1
GROWTH = 1.2
SHORT_REPLY_WAIT = 0.05
#: Why a SuperNode ended, as :func:`reason_of` says it, and what that means.
ENDS = {
    "refused": "the coordinator still holds this node's old session (up to 60 s)",
    "connection": "the coordinator did not let the SuperNode in",
}


def _end() -> None:
    # Flower ends in order on this signal: it tells the coordinator.
    os.kill(os.getpid(), signal.SIGTERM)


class Pacing:
    """Stands for the ``time`` module inside Flower's loop."""

    def __init__(
        self, sleep: Callable[[float], None] = real_time.sleep, end: Callable[[], None] = _end
    ) -> None:
        self._sleep = sleep
        self._end = end
        self._wait = FIRST_WAIT
        self._leaving = False

    def leave(self, *_: object) -> None:
        """End as soon as no message is in work."""
        self._leaving = True

    def sleep(self, seconds: float) -> None:
        """Wait as long as makes sense where Flower says ``seconds``."""
        if seconds == IDLE_WAIT:
            if self._leaving:
                self._end()
            self._sleep(self._wait)
            self._wait = min(self._wait * GROWTH, IDLE_WAIT)
        elif seconds == REPLY_WAIT:
            # A message is being worked on: the run's next one will come soon after.
            self._wait = FIRST_WAIT
            self._sleep(SHORT_REPLY_WAIT)
        else:
            self._sleep(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


def session_name(service: str, pid: int) -> str:
    """How the SuperNode process ``pid`` of a service calls itself to the SuperLink."""
    return f"{service}-{pid}"


def name_requests(session: str) -> None:
    """Have every request of this process carry its name."""
    from flwr.supernode import fleet_http_connection

    class Named(fleet_http_connection.NodeAuthHttpInterceptor):  # type: ignore[misc]
        def intercept(self, context: Any, call_next: Any) -> Any:
            context.request.headers[SESSION_HEADER] = session
            return super().intercept(context, call_next)

    fleet_http_connection.NodeAuthHttpInterceptor = Named


def reason_of(status: int, lines: Sequence[str]) -> str:
    """Why a SuperNode ended, from what it wrote last: one of :data:`ENDS`, or nothing.

    Raises
    ------
    ConfigError
        If only a person can mend it.
    """
    text = " ".join(lines)
    if "2004" in text:
        return "refused"
    if "Exit Code: 305" in text:
        return "connection"
    if "Exit Code: 302" in text:
        raise ConfigError(
            "supernode.key: Flower cannot use the key; make one with zk0bot node keygen."
        )
    return ""


def main() -> None:
    """Run ``flower-supernode`` with :class:`Pacing` and a name."""
    check_version()
    name_requests(session_name(os.environ.pop(SESSION_VARIABLE, ""), os.getpid()))
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    start_client_internal.time = pacing = Pacing()
    signal.signal(LEAVE_SIGNAL, pacing.leave)
    flower_supernode()


if __name__ == "__main__":
    main()
