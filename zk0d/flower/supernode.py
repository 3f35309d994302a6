"""Flower's SuperNode: other waits between its looks for work, a way to leave in between, a name.

Flower looks every 3 s, and every 0.5 s for an answer that is ready; both are numbers in its
loop. A trivial round spends most of its time there. Here the wait is short while a run is under way
and grows while nothing happens. At Flower's 3 s the node stops asking and has the coordinator tell
it of the next message (:mod:`zk0d.flower.wait_line`). That wait is also the moment when no message
is in work and no reply is left to send (:mod:`zk0d.flower.own_replies`): a SuperNode that got
SIGUSR1 leaves there. These are the only places that reach into Flower's loop and into its requests,
each of which names this process (:mod:`zk0d.flower.sessions`); ``tests/flower`` fails when Flower
changes either.
"""

from __future__ import annotations

import os
import signal
import sys
import time as real_time
from collections.abc import Callable, Sequence
from typing import Any

from zk0d.daemon.looks import Looks
from zk0d.errors import ConfigError
from zk0d.flower import own_replies, pulls
from zk0d.flower.sessions import SESSION_HEADER, SESSION_VARIABLE
from zk0d.flower.version import check_version
from zk0d.flower.wait_line import HEARTBEAT_PATH, Signer, Told, WaitLine, answer_heartbeat, line_of

IDLE_WAIT = 3.0  #: the constant in Flower's loop after a look that found nothing
REPLY_WAIT = 0.5  #: the constant in Flower's loops that wait for an answer
SHORT_REPLY_WAIT = 0.05  #: ours for an answer that comes at once
FIRST_WAIT = 0.2
LEAVE_SIGNAL = signal.SIGUSR1
GROWTH = 1.2
#: A node that is told of nothing looks this often, whatever was lost on the way.
LOOK_ANYWAY_SECONDS = 300.0
#: A coordinator that does not hold the request, such as an older one, is asked again after this.
TRY_AGAIN_SECONDS = 60.0
#: Why a SuperNode ended, as :func:`reason_of` says it, and what that means.
ENDS = {
    "refused": "the coordinator still holds this node's old session (up to 60 s)",
    "connection": "the coordinator did not let the SuperNode in",
}


def _end() -> None:
    # Flower ends in order on this signal: it tells the coordinator.
    os.kill(os.getpid(), signal.SIGTERM)


class Pacing:
    """Stands for the ``time`` module inside Flower's loop.

    Parameters
    ----------
    line
        To be told of messages by; without it a node asks every :data:`IDLE_WAIT`.
    """

    def __init__(
        self,
        sleep: Callable[[float], None] = real_time.sleep,
        end: Callable[[], None] = _end,
        line: WaitLine | None = None,
        clock: Callable[[], float] = real_time.monotonic,
    ) -> None:
        self._sleep = sleep
        self._end = end
        self._line = line
        self._clock = clock
        self._wait = FIRST_WAIT
        self._answer = Looks(SHORT_REPLY_WAIT, REPLY_WAIT, clock)
        self._leaving = False
        self._try_again = float("-inf")

    def leave(self, *_: object) -> None:
        """End as soon as no message is in work."""
        self._leaving = True
        if self._line is not None:
            self._line.hang_up()

    def sleep(self, seconds: float) -> None:
        """Wait as long as makes sense where Flower says ``seconds``."""
        if seconds == IDLE_WAIT:
            if self._leaving:
                self._end()
            if self._wait < IDLE_WAIT or not self._is_told():
                self._sleep(self._wait)
                self._wait = min(self._wait * GROWTH, IDLE_WAIT)
            self._answer.news()  # if there is a message now, its answer is waited for from here on
        elif seconds == REPLY_WAIT:
            # A message is being worked on: the run's next one will come soon after.
            self._wait = FIRST_WAIT
            self._sleep(self._answer.wait)
        else:
            self._sleep(seconds)

    def _is_told(self) -> bool:
        """Wait for the coordinator's word; whether it gives one."""
        if self._line is None or self._clock() < self._try_again:
            return False
        look_anyway = self._clock() + LOOK_ANYWAY_SECONDS
        while self._clock() < look_anyway:
            told = Told.FAILED if self._leaving else self._line.wait()
            if self._leaving:
                self._end()
                return True
            if told is Told.LOOK_NOW:
                self._wait = FIRST_WAIT
                break
            if told is Told.FAILED:
                self._try_again = self._clock() + TRY_AGAIN_SECONDS
                return False
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(real_time, name)


def session_name(service: str, pid: int) -> str:
    """How the SuperNode process ``pid`` of a service calls itself to the SuperLink."""
    return f"{service}-{pid}"


def name_requests(session: str, signer: Signer, line: WaitLine) -> None:
    """Have every request of this process carry its name, and give ``signer`` Flower's way to sign.

    A heartbeat that ``line`` makes superfluous is not sent.
    """
    from flwr.supernode import fleet_http_connection

    class Named(fleet_http_connection.NodeAuthHttpInterceptor):  # type: ignore[misc]
        def __init__(self, *keys: Any) -> None:
            super().__init__(*keys)
            signer.by = self

        def intercept(self, context: Any, call_next: Any) -> Any:
            if line.tells_alive and context.request.url.path == HEARTBEAT_PATH:
                return answer_heartbeat(context.request)
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
    signer = Signer()
    line = line_of(sys.argv[1:], signer)
    session = session_name(os.environ.pop(SESSION_VARIABLE, ""), os.getpid())
    name_requests(session, signer, line)
    pulls.install()
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    start_client_internal.time = pacing = Pacing(line=line)
    own_replies.install(start_client_internal)
    signal.signal(LEAVE_SIGNAL, pacing.leave)
    flower_supernode()


if __name__ == "__main__":
    main()
