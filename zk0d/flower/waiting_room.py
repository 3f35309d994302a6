"""Nodes that wait are told of a message, and need not ask for one every few seconds.

A node without work asks the SuperLink to hold its request until there is a message for it. The
request is signed and checked as all of a node's are, and its answer says only whether to look now:
the message itself comes by Flower's own way. It counts as a heartbeat, so a node that waits sends
no others. A SuperLink that does not know the request costs a node nothing; it asks as before. The
node's side is :mod:`zk0d.flower.wait_line`.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import threading
from typing import TYPE_CHECKING, Any

from zk0d.flower.sessions import LET_IN

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("zk0d")

PATH = "/v1/fleet/zk0d-wait"
#: A request is held for at most so long; the gateway gives up after 60 s of silence.
HOLD_SECONDS = 30.0
#: And for at least this part of it, so that nodes that came together do not stay together.
LEAST_HELD = 0.9
#: From a message to the word of it. Flower pushes a message's content after it, and a node that
#: looks before the content is there has to ask for it again (:mod:`zk0d.flower.pulls`).
TELL_SECONDS = 0.05
#: Requests that are held at once, of all nodes; each has a connection.
MOST_HELD = 4096
LOOK_NOW, NOTHING_CAME = 200, 204
#: What is not held. A node asks as before then.
REFUSED, REPLACED, NO_ROOM = 401, 409, 503


class Waiter:
    """A request that is held."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._told = asyncio.Event()
        self.node = 0  #: whose it is, once that is known
        self.status = NOTHING_CAME

    def tell(self, status: int, after: float = 0.0) -> None:
        """End the wait with this answer, in so many seconds; from any thread."""
        self.status = status
        self._loop.call_soon_threadsafe(self._loop.call_later, after, self._told.set)

    async def wait(self) -> None:
        await self._told.wait()


class Room:
    """The requests that are held, one a node; for all threads.

    Parameters
    ----------
    most
        How many there may be.
    """

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiters: dict[int, Waiter] = {}
        self._closed = False

    def __len__(self) -> int:
        return len(self._waiters)

    def enter(self, waiter: Waiter) -> bool:
        """Whether there is room. A request of the node that was held before is answered."""
        with self._lock:
            before = self._waiters.pop(waiter.node, None)
            fits = not self._closed and len(self._waiters) < self._most
            if fits:
                self._waiters[waiter.node] = waiter
        if before is not None:
            before.tell(REPLACED)
        return fits

    def leave(self, waiter: Waiter) -> None:
        with self._lock:
            if self._waiters.get(waiter.node) is waiter:
                del self._waiters[waiter.node]

    def tell(self, node: int) -> None:
        """There is a message for this node."""
        with self._lock:
            waiter = self._waiters.pop(node, None)
        if waiter is not None:
            waiter.tell(LOOK_NOW, TELL_SECONDS)

    def close(self) -> None:
        """Nobody waits any longer: the SuperLink ends."""
        with self._lock:
            self._closed = True
            waiters, self._waiters = list(self._waiters.values()), {}
        for waiter in waiters:
            waiter.tell(NO_ROOM)


class WaitingRoom:
    """ASGI middleware: answers :data:`PATH` when there is a message, or after a while.

    Parameters
    ----------
    hold
        Seconds; replaced in tests.
    """

    def __init__(self, app: ASGIApp, room: Room, hold: float = HOLD_SECONDS) -> None:
        self._app = app
        self._room = room
        self._hold = hold

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        status = await self._wait(scope, receive)
        headers = [] if status == NOTHING_CAME else [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _wait(self, scope: Scope, receive: Receive) -> int:
        # Imported here because the node's supervisor reads this module's numbers, without Flower.
        from sqlalchemy.exc import OperationalError
        from starlette.concurrency import run_in_threadpool

        if scope["method"] != "POST" or await _has_body(receive):
            return REFUSED
        waiter = Waiter(asyncio.get_running_loop())
        try:
            status = await run_in_threadpool(self._enter, scope, waiter)
            if status != REFUSED:
                scope.get(LET_IN, _nothing)()
            return await self._hold_for(waiter, receive) if status == NOTHING_CAME else status
        except OperationalError as error:  # the database is locked, or its disk is full
            log.warning("a node that wants to wait is not held: %s", error.orig)
            return NO_ROOM
        finally:
            self._room.leave(waiter)

    def _enter(self, scope: Scope, waiter: Waiter) -> int:
        """The answer to a request that is not to be held; else :data:`NOTHING_CAME`."""
        node = node_of(scope)
        if node is None:
            return REFUSED
        waiter.node = node
        if not self._room.enter(waiter):
            return NO_ROOM
        # After it has entered, so that a message is either found here or told.
        return LOOK_NOW if greet(scope, node) else NOTHING_CAME

    async def _hold_for(self, waiter: Waiter, receive: Receive) -> int:
        waits = [asyncio.ensure_future(waiter.wait()), asyncio.ensure_future(receive())]
        seconds = self._hold * random.uniform(LEAST_HELD, 1.0)
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        return waiter.status


async def _has_body(receive: Receive) -> bool:
    """Whether a request says anything; there is nothing to say."""
    part = await receive()
    while part.get("more_body") and not part.get("body"):
        part = await receive()
    return bool(part.get("body"))


def _nothing() -> None: ...


def node_of(scope: Scope) -> int | None:
    """The number of the node that signed a request, as Flower checks it; ``None`` if none did."""
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.superlink.routers.fleet.node_auth import authenticate_node
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    request = Request(scope)
    try:
        key = base64.b64decode(request.headers["flwr-public-key"], validate=True)
        # Of this message Flower looks at the key alone; the others have the node's number.
        request.state.protobuf_request = ActivateNodeRequest(public_key=key)
        authenticate_node(request)
    except (KeyError, ValueError, HTTPException):
        return None
    number: int | None = _linkstate(scope).get_node_id_by_public_key(key)
    return number


def greet(scope: Scope, node: int) -> bool:
    """Note that a node is alive; whether its next look would find a message."""
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
    from flwr.server.superlink.linkstate import sql_linkstate as flower
    from sqlalchemy import select

    message = flower.MessageInsModel
    found = select(message.message_id).where(
        message.dst_node_id == flower.uint64_to_int64(node),
        message.delivered_at == "",
        message.created_at + message.ttl > flower.now().timestamp(),
    )
    state = _linkstate(scope)
    with state.session() as session:
        state.acknowledge_node_heartbeat(node, HEARTBEAT_DEFAULT_INTERVAL)
        return session.scalar(found.limit(1)) is not None


def install(room: Room) -> None:
    """Have this process's SuperLink tell ``room`` of each message for a node, and of its own end.

    This reaches into Flower's LinkState; ``tests/flower`` fails when Flower changes it.
    """
    import uvicorn
    from flwr.server.superlink.linkstate import sql_linkstate as flower

    store = flower.SqlLinkState.store_message_and_object_tree
    handle_exit = uvicorn.Server.handle_exit

    def store_and_tell(self: Any, message: Any, *rest: Any) -> Any:
        stored = store(self, message, *rest)
        if stored[0] and not message.metadata.reply_to_message_id:
            room.tell(message.metadata.dst_node_id)
        return stored

    def ends(self: Any, *signal: Any) -> None:
        room.close()  # a SuperLink that ends waits for the requests that it holds
        handle_exit(self, *signal)

    flower.SqlLinkState.store_message_and_object_tree = store_and_tell
    uvicorn.Server.handle_exit = ends  # type: ignore[method-assign, assignment]


def _linkstate(scope: Scope) -> Any:
    return scope["app"].state.linkstate_factory.state()
