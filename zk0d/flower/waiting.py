"""Nodes that wait are told of a message, and need not ask for one every few seconds.

A node without work asks the SuperLink to hold its request until there is a message for it. The
request is signed as all of a node's are, and its answer says only whether to look now: the message
itself comes by Flower's own way. A SuperLink that does not know the request costs a node nothing;
it asks as before.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zk0d.flower.replay import KEY_HEADER, TIME_HEADER

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATH = "/v1/fleet/zk0d-wait"
PULL_PATH = "/v1/fleet/pull-messages"
#: A request is held for so long; the gateway gives up after 60 s of silence.
HOLD_SECONDS = 30.0
#: Only a key with which Flower gave out messages so recently may wait.
PULLED_SECONDS = 600.0
LOOK_NOW, NOTHING_CAME, REFUSED = 200, 204, 401
_SIGNATURE_HEADER = b"flwr-signature"


class Room:
    """Which keys have a message that they have not looked for, and who waits; for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[bytes] = set()
        self._waiting: dict[bytes, Callable[[], None]] = {}
        self.closed = False

    def enter(self, key: bytes, wake: Callable[[], None]) -> bool:
        """Have ``wake`` called once there is something; whether it is worth to wait.

        Whoever waited with this key before is woken: a node waits once.
        """
        with self._lock:
            before = self._waiting.pop(key, None)
            waits = not self.closed and key not in self._told
            if waits:
                self._waiting[key] = wake
        if before is not None:
            before()
        return waits

    def leave(self, key: bytes, wake: Callable[[], None]) -> None:
        with self._lock:
            if self._waiting.get(key) is wake:
                del self._waiting[key]

    def tell(self, key: bytes) -> None:
        """There is a message for this key."""
        with self._lock:
            self._told.add(key)
            wake = self._waiting.pop(key, None)
        if wake is not None:
            wake()

    def looks(self, key: bytes) -> bool:
        """A node looks for messages; whether it had been told of one."""
        with self._lock:
            told = key in self._told
            self._told.discard(key)
        return told

    def close(self) -> None:
        """Nobody waits any longer: the SuperLink ends."""
        with self._lock:
            self.closed = True
            waiting, self._waiting = list(self._waiting.values()), {}
        for wake in waiting:
            wake()


class WaitingRoom:
    """ASGI middleware: answers :data:`PATH` when there is a message, or after a while."""

    def __init__(
        self,
        app: ASGIApp,
        room: Room,
        hold: float = HOLD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._room = room
        self._hold = hold
        self._clock = clock
        self._pulled: dict[bytes, float] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path") if scope["type"] == "http" else None
        if path == PATH:
            await _answer(send, await self._wait(scope, receive))
        elif path == PULL_PATH:
            await self._pull(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _pull(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(dict(scope["headers"]))
        # Before Flower looks: what is stored from here on is told again.
        told = self._room.looks(key)

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == LOOK_NOW:
                    self._pulled[key] = self._clock()
                elif told:  # it may be somebody else, who only has the node's key
                    self._room.tell(key)
            await send(message)

        await self._app(scope, receive, answered)

    async def _wait(self, scope: Scope, receive: Receive) -> int:
        headers = dict(scope["headers"])
        if scope["method"] != "POST" or not is_signed(headers):
            return REFUSED
        key = _key(headers)
        if self._clock() - self._pulled.get(key, float("-inf")) > PULLED_SECONDS:
            self._pulled.pop(key, None)
            return LOOK_NOW
        more = True
        while more:
            part = await receive()
            if part.get("body"):  # there is nothing to say here
                return REFUSED
            more = part.get("more_body", False)
        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(told.set)

        if not self._room.enter(key, wake):
            return NOTHING_CAME if self._room.closed else LOOK_NOW
        waits = [asyncio.ensure_future(told.wait()), asyncio.ensure_future(receive())]
        try:
            await asyncio.wait(waits, timeout=self._hold, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._room.leave(key, wake)
            for each in waits:
                each.cancel()
        return LOOK_NOW if told.is_set() and not self._room.closed else NOTHING_CAME


def is_signed(headers: dict[bytes, bytes]) -> bool:
    """Whether a request has a signature that Flower would take; a copy is refused elsewhere."""
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
    from flwr.supercore.date import now
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

    try:
        moment = headers[TIME_HEADER]
        age = (now() - datetime.datetime.fromisoformat(moment.decode("ascii"))).total_seconds()
        signature = base64.b64decode(headers[_SIGNATURE_HEADER], validate=True)
        return -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE and bool(
            verify_signature(bytes_to_public_key(_key(headers)), moment, signature)
        )
    except (KeyError, ValueError, TypeError):
        return False


def install(room: Room) -> None:
    """Have this process's SuperLink tell ``room`` of each message for a node, and of its own end.

    This reaches into Flower's LinkState; ``tests/flower`` fails when Flower changes it.
    """
    import uvicorn
    from flwr.server.superlink.linkstate import sql_linkstate as flower
    from sqlalchemy import select

    store, handle_exit = flower.SqlLinkState.store_message_ins, uvicorn.Server.handle_exit

    def store_message_ins(self: Any, message: Any) -> Any:
        stored = store(self, message)
        if stored:
            number = flower.uint64_to_int64(message.metadata.dst_node_id)
            found = select(flower.NodeModel.public_key).where(flower.NodeModel.node_id == number)
            with self.session() as session:
                key = session.scalar(found)
            if key:
                room.tell(bytes(key))
        return stored

    def ends(self: Any, *signal: Any) -> None:
        room.close()  # a SuperLink that ends waits for the requests that it holds
        handle_exit(self, *signal)

    flower.SqlLinkState.store_message_ins = store_message_ins
    uvicorn.Server.handle_exit = ends  # type: ignore[method-assign, assignment]


def _key(headers: dict[bytes, bytes]) -> bytes:
    try:
        return base64.b64decode(headers.get(KEY_HEADER, b""), validate=True)
    except ValueError:
        return b""


async def _answer(send: Send, status: int) -> None:
    headers = [] if status == NOTHING_CAME else [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
