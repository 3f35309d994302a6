"""A node's line to a SuperLink that tells it of its next message (``waiting_room.py``)."""

from __future__ import annotations

import argparse
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from enum import Enum
from http.client import HTTPException, HTTPSConnection
from types import SimpleNamespace
from typing import Any

from zk0d.flower.waiting_room import HOLD_SECONDS, LOOK_NOW, NOTHING_CAME, PATH

#: A coordinator that cannot be reached at once is asked by Flower's own requests.
CONNECT_SECONDS = 5.0
#: What a network takes besides the wait itself.
PATIENCE_SECONDS = 10.0
#: A wait that began so recently has told the SuperLink that this node is alive. With Flower's
#: 22.5 s until the next heartbeat that is less than the 60 s for which a node counts as online.
HEARTBEAT_SECONDS = 35.0
HEARTBEAT_PATH = "/v1/fleet/send-node-heartbeat"


class Told(Enum):
    """What came of asking the coordinator to tell of a message."""

    LOOK_NOW = 1
    NOTHING_CAME = 2
    FAILED = 3


class WaitLine:
    """To a SuperLink that holds a request until there is a message for this node.

    Parameters
    ----------
    address
        Of the gateway, ``host:port``.
    trust
        By which its certificate is checked.
    sign
        A request's headers; each signature counts once.
    clock
        Seconds; replaced in tests.
    """

    def __init__(
        self,
        address: str,
        trust: ssl.SSLContext,
        sign: Callable[[str], dict[str, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = f"https://{address}{PATH}"
        self._sign = sign
        host, _, port = address.rpartition(":")
        self._line = HTTPSConnection(
            host.strip("[]"), int(port), timeout=CONNECT_SECONDS, context=trust
        )
        self._clock = clock
        self._hung_up = False
        self._alive = float("-inf")  #: when the wait under way began, if the one before was held

    @property
    def tells_alive(self) -> bool:
        """Whether the SuperLink knows by the wait under way that this node is alive."""
        return self._clock() - self._alive < HEARTBEAT_SECONDS

    def wait(self) -> Told:
        """Ask, and wait for the answer, at most :data:`HOLD_SECONDS` and what a network takes."""
        try:
            if self._line.sock is None:
                self._connect()
            if self._hung_up:
                raise ConnectionAbortedError
            self._line.request("POST", PATH, headers=self._sign(self._url))
            answer = self._line.getresponse()
            answer.read()
        except (OSError, HTTPException):
            self._line.close()
            self._alive = float("-inf")
            return Told.FAILED
        if answer.status == NOTHING_CAME:
            self._alive = self._clock()  # the next wait begins at once
            return Told.NOTHING_CAME
        self._alive = float("-inf")
        # The next wait is not now, and the gateway would close a line that is silent for long.
        self._line.close()
        return Told.LOOK_NOW if answer.status == LOOK_NOW else Told.FAILED

    def _connect(self) -> None:
        self._line.connect()
        self._line.sock.settimeout(HOLD_SECONDS + PATIENCE_SECONDS)

    def hang_up(self) -> None:
        """Let a wait that is under way end now, and none begin; a signal's handler may call it."""
        self._hung_up = True
        if self._line.sock is not None:
            with contextlib.suppress(OSError):
                # The socket's own: TLS's would take itself away from under the read that it ends.
                socket.socket.shutdown(self._line.sock, socket.SHUT_RDWR)


def answer_heartbeat(request: Any) -> Any:
    """What the SuperLink answers to a heartbeat, for one that need not be sent."""
    import httpx
    from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse

    content = SendNodeHeartbeatResponse(success=True).SerializeToString()
    headers = {"content-type": "application/protobuf"}
    return httpx.Response(200, headers=headers, content=content, request=request)


class Signer:
    """Signs requests as Flower's are, once Flower has read the node's key."""

    def __init__(self) -> None:
        self.by: Any = None  #: Flower's interceptor

    def headers(self, url: str) -> dict[str, str]:
        """For a request without a body; raises :class:`OSError` before Flower has the key."""
        import httpx

        if self.by is None:
            raise OSError("the node's key is not read yet")
        context = SimpleNamespace(request=httpx.Request("POST", url))
        self.by.intercept(context, lambda _: None)
        return dict(context.request.headers)


def line_of(arguments: Sequence[str], signer: Signer) -> WaitLine:
    """The line to the SuperLink that ``flower-supernode``'s arguments name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--root-certificates", required=True)
    known, _ = parser.parse_known_args(arguments)
    trust = ssl.create_default_context(cafile=known.root_certificates)
    return WaitLine(known.superlink, trust, signer.headers)
