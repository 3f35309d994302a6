"""The rounds' files over HTTP: who may fetch and send what, and without a gateway the bytes.

``GET /down/SHA256`` gives weights, ``PUT /up/TICKET/SHA256`` takes a piece of an update, ``GET
/up/TICKET`` lists the pieces that are there; with ``?room=BYTES`` it is refused where so many more
have none. Behind the gateway nginx carries the bytes: it asks here whether a piece may come
(``/may``), and sends the file that an answer names (``X-Accel-Redirect``). Without a gateway, on
loopback, the same application carries them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

from pydantic import TypeAdapter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from zk0d.config.machine import ServerSettings
from zk0d.errors import disk_trouble
from zk0d.federation.capability import Capability, Denied, OpenRound, OpenRounds
from zk0d.federation.depot import Depot
from zk0d.federation.messages import Piece
from zk0d.machine.gateway import (
    ACCEL_PREFIX,
    GATEWAY_HEADER,
    PIECE_HEADER,
    STATUS_HEADER,
    WHY_HEADER,
)
from zk0d.services.spent import Spent

log = logging.getLogger("zk0d")

#: Longest piece that is taken; the gateway's own limit is the same.
MOST_PIECE_BYTES = 16 * 2**20
#: Silence after which a body is given up, as in the gateway, and what it has to move at least.
BODY_SECONDS, LEAST_BYTES_PER_SECOND = 20.0, 4096
#: A refused body has so long to pass.
PASS_SECONDS = 5.0
#: A mirror may keep what it has fetched for so long.
MIRROR_SECONDS = 3600
#: In the SuperLink's state folder.
SPENT = "transfers.jsonl"
_PIECE = re.compile(r"/zk0d/v1/up/([0-9a-f]{32})/([0-9a-f]{64})")
_HEX32, _HEX64 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_RANGE = re.compile(r"bytes=(\d{1,15})-(\d{0,15})")
_HELD = TypeAdapter(list[Piece])


class Transfers:
    """The application's part for files.

    Parameters
    ----------
    body_seconds
        Replaced in tests.
    """

    def __init__(self, settings: ServerSettings, *, body_seconds: float = BODY_SECONDS) -> None:
        self.depot = Depot(settings.transfers)
        self.depot.make()
        self._rounds = OpenRounds(settings.runs)
        self._body_seconds = body_seconds
        self._spent = Spent(settings.superlink.state / SPENT)

    def routes(self, prefix: str) -> list[Route]:
        """Where it answers."""
        return [
            Route(f"{prefix}/down/{{sha256}}", _told(self._down), methods=["GET", "HEAD"]),
            Route(f"{prefix}/up/{{ticket}}", _told(self._list), methods=["GET"]),
            Route(f"{prefix}/up/{{ticket}}/{{sha256}}", _told(self._put), methods=["PUT"]),
            Route(f"{prefix}/may", _told(self._may), methods=["GET"]),
        ]

    def sweep(self) -> None:
        """Remove what nobody waits for; from time to time."""
        self.depot.sweep(self._rounds.tickets())

        def is_open(run: str, name: str) -> bool:
            opened = self._rounds.of(run)
            return opened is not None and opened.name == name

        with contextlib.suppress(OSError):  # a full disk; the book is only longer than it has to be
            self._spent.keep(is_open)

    async def _down(self, request: Request) -> Response:
        """A round's weights, to a node that was asked."""
        token = _token(request)
        capability, opened = self._rounds.check(token, "down")
        sha256 = request.path_params["sha256"]
        if sha256 not in opened.files:
            raise Denied(404, "the round has no such file.")
        wanted = _wanted(request, opened.files[sha256])
        if self._spent.fetched(token) + wanted > capability.budget:
            raise Denied(403, "this capability's bytes are spent.")
        self._note(token, capability, opened, wanted)
        kept = f"public, max-age={MIRROR_SECONDS}" if capability.is_mirrors else "private"
        about = {"Cache-Control": f"{kept}, immutable", "ETag": f'"{sha256}"'}
        path = self.depot.weights(capability.run, sha256)
        if GATEWAY_HEADER in request.headers:
            return Response(headers={"X-Accel-Redirect": f"{ACCEL_PREFIX}{path.name}", **about})
        if not path.exists():
            raise Denied(404, "the round is just over.")
        return FileResponse(path, media_type="application/octet-stream", headers=about)

    async def _list(self, request: Request) -> Response:
        """The pieces of an update that need not be sent again."""
        capability, _ = self._rounds.check(_token(request), "up")
        _check_ticket(capability, request.path_params["ticket"])
        if (room := request.query_params.get("room", "")).isdecimal():
            self.depot.check_room(min(int(room), MOST_PIECE_BYTES), keep=False)
        held = await asyncio.to_thread(self.depot.held, capability.ticket)
        return Response(_HELD.dump_json(held), media_type="application/json")

    async def _may(self, request: Request) -> Response:
        """Nginx asks before it takes a piece; with which words it refuses one stands in headers."""
        try:
            self._admit(request, request.headers.get(PIECE_HEADER, ""))
        except Denied as error:
            log.info("transfer refused (%d): %s", error.status, error.message)
            headers = {STATUS_HEADER: str(error.status), WHY_HEADER: error.message}
            return Response(status_code=HTTPStatus.FORBIDDEN, headers=headers)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def _put(self, request: Request) -> Response:
        """A piece of an update."""
        ticket, sha256, size = self._admit(request, request.url.path)
        try:
            await self._take(request, ticket, sha256, size)
        except OSError as error:
            raise Denied(507, _not_written(error)) from None
        return Response(status_code=HTTPStatus.CREATED)

    def _admit(self, request: Request, path: str) -> tuple[str, str, int]:
        """Ticket, name and length of a piece that may come."""
        token = _token(request)
        capability, opened = self._rounds.check(token, "up")
        found = _PIECE.fullmatch(path)
        if found is None:
            raise Denied(404, "a piece's name is its SHA-256, under its ticket.")
        ticket, sha256 = found[1], found[2]
        _check_ticket(capability, ticket)
        size = _length(request)
        granted = self._spent.pieces(token)
        new = sha256 not in granted
        if granted.get(sha256, size) != size:
            raise Denied(422, "a piece of that name came with another length.")
        if new and sum(granted.values()) + size > capability.budget:
            raise Denied(413, "that is more than an update of this round has.")
        self.depot.check_room(size)
        if new:
            self._note(token, capability, opened, size, sha256)
        return ticket, sha256, size

    def _note(
        self, token: str, capability: Capability, opened: OpenRound, size: int, piece: str = ""
    ) -> None:
        """Note bytes that will move; what cannot be noted does not move."""
        try:
            self._spent.grant(token, capability, opened, size, piece)
        except OSError as error:
            raise Denied(507, _not_written(error)) from None

    async def _take(self, request: Request, ticket: str, sha256: str, size: int) -> None:
        """Write a body into the depot; nothing of it stays if it is not what its name says."""
        digest, loop = hashlib.sha256(), asyncio.get_running_loop()
        deadline = loop.time() + self._body_seconds + size / LEAST_BYTES_PER_SECOND
        stream = request.stream()
        with self.depot.writing(ticket, sha256) as file:
            while True:
                wait = min(self._body_seconds, deadline - loop.time())
                try:
                    part = await asyncio.wait_for(_next(stream), max(wait, 0.0))
                except TimeoutError:
                    raise Denied(408, "the piece came too slowly.") from None
                except ClientDisconnect:
                    raise Denied(400, "the piece was cut off.") from None
                if part is None:
                    break
                digest.update(part)
                file.write(part)
            if digest.hexdigest() != sha256:
                raise Denied(422, "the piece is not what its name says.")


def _not_written(error: OSError) -> str:
    said = disk_trouble(error) or f"the disk fails ({error.strerror})"
    return f"the coordinator could not write the piece: {said}."


def _told(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """A refusal as an answer with a sentence."""

    async def told(request: Request) -> Response:
        try:
            return await handler(request)
        except Denied as error:
            log.info("transfer refused (%d): %s", error.status, error.message)
            headers = {}
            if request.method == "PUT":
                headers["Connection"] = "close"
                await _let_pass(request)
            return PlainTextResponse(f"{error.message}\n", error.status, headers)

    return told


async def _let_pass(request: Request) -> None:
    """Read what is left of a refused body, within bounds, and keep nothing of it.

    A gateway that still passes it on would meet a reader that has gone, and say that instead.
    """
    size = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect, RuntimeError):
        async with asyncio.timeout(PASS_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_PIECE_BYTES:
                    return


def _token(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token if kind.lower() == "bearer" else ""


def _check_ticket(capability: Capability, ticket: str) -> None:
    if ticket != capability.ticket:
        raise Denied(403, "this capability is another node's, or of another round.")


def _length(request: Request) -> int:
    """A body's length; behind the gateway it says so, because the body does not come here."""
    behind = GATEWAY_HEADER in request.headers
    said = request.headers.get("x-content-length" if behind else "content-length", "")
    if not re.fullmatch(r"\d{1,12}", said):
        raise Denied(411, "a piece needs a Content-Length.")
    size = int(said)
    if not 0 < size <= MOST_PIECE_BYTES:
        raise Denied(413, f"a piece has at most {MOST_PIECE_BYTES >> 20} MiB, and a byte at least.")
    return size


def _wanted(request: Request, size: int) -> int:
    """Bytes of a file of ``size`` that are asked for."""
    found = _RANGE.fullmatch(request.headers.get("range", ""))
    if found is None:
        return size
    last = int(found[2]) if found[2] else size - 1
    return max(0, min(last, size - 1) + 1 - int(found[1]))


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)
