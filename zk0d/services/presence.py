"""The presence page: whether a key is online, and the current round. It is read only.

Beside it a node with an invite's token enrols (:mod:`zk0d.services.enrolment`).

A node cannot see from its own side whether the coordinator still counts it as online: Flower's
SuperNode can stop its heartbeats and look healthy. So the node asks here.
"""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from zk0d.daemon.clock import uptime
from zk0d.errors import ConfigError, UnavailableError
from zk0d.federation.nodes import Node, current
from zk0d.flower.sessions import KeyUse
from zk0d.machine import rest_note, successor
from zk0d.machine.rest_note import read_note
from zk0d.machine.roster import read_roster
from zk0d.machine.successor import read_word
from zk0d.pages import HEADERS
from zk0d.record.state import RunState
from zk0d.services.enrolment import MOST_BYTES, Enrolment
from zk0d.services.overlap import Overlap
from zk0d.services.releases import ReleasesDoor
from zk0d.services.transfers import Transfers

log = logging.getLogger("zk0d")

PREFIX = "/zk0d/v1"
VERSION = 1
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_READING = ("GET", "HEAD")
_METHODS = [*_READING, "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_NOT_KEPT = {"Cache-Control": "no-store"}
#: A node that rests and does not know until when says so at least this often.
HEARD_SECONDS = 120.0
#: A node that said until when is not expected in the first minutes after it.
LATE_SECONDS = 600.0


@dataclass(frozen=True)
class Resting:
    """A node that told that it rests.

    Parameters
    ----------
    until
        In seconds since 1970; ``None`` if it does not know.
    heard
        When it told, by :func:`zk0d.daemon.clock.uptime`.
    """

    until: float | None
    heard: float

    @property
    def counts(self) -> bool:
        """Whether nobody misses it yet."""
        if self.until is not None:
            return time.time() < self.until + LATE_SECONDS
        return uptime() - self.heard < HEARD_SECONDS


class Presence:
    """The last look at the nodes and the run; written by one thread, read by others.

    Parameters
    ----------
    roster
        The folder of the keys by which a node's word is known.
    overlap
        Which CA nodes may expect, and who has the next one.
    """

    def __init__(self, roster: Path | None = None, overlap: Overlap | None = None) -> None:
        self._roster = roster
        self._overlap = overlap
        self._rests: dict[str, Resting] = {}
        self._nodes: dict[str, Node] = {}
        self._uses: Mapping[str, KeyUse] = {}
        self._run: dict[str, Any] | None = None
        self.page = b""  #: the page for people; empty where it is switched off

    def __contains__(self, key: str) -> bool:
        return key in self._nodes

    def update(
        self, nodes: Iterable[Node], run: RunState | None, uses: Mapping[str, KeyUse]
    ) -> None:
        """Take a new look."""
        before, self._nodes, self._uses = self._nodes, {node.key: node for node in nodes}, uses
        for key, node in self._nodes.items():
            if node.online and key in before and not before[key].online:
                self._rests.pop(key, None)
        self._run = (
            {
                "state": run.phase,
                "round": run.round,
                "rounds": run.wanted,
                "run": run.run,
                # Only what names no node.
                "goes_on": run.waiting.until if run.waiting else "",
            }
            if run
            else None
        )

    @property
    def resting(self) -> dict[str, Resting]:
        """The nodes that rest and are offline for it, by key."""
        offline = {node.key for node in current(self._nodes.values()) if not node.online}
        return {
            key: rest for key, rest in list(self._rests.items()) if rest.counts and key in offline
        }

    def take_note(self, key: str, note: str) -> None:
        """A node says that it rests; it is over when the node comes online again."""
        if self._roster is None or (public := read_roster(self._roster).get(key)) is None:
            return
        try:
            self._rests[key] = Resting(read_note(note, public), uptime())
        except ConfigError as error:
            log.warning("%s: %s", key[:12], error.message)

    def take_word(self, key: str, word: str) -> None:
        """A node says that it has the next CA."""
        if self._roster is None or self._overlap is None or not self._overlap.wants(key):
            return
        if (public := read_roster(self._roster).get(key)) is None:
            return
        try:
            self._overlap.has(key, read_word(word, public))
        except ConfigError as error:
            log.warning("%s: %s", key[:12], error.message)

    def of(self, key: str) -> dict[str, Any]:
        """What the page says about a key; there is no list."""
        node = self._nodes.get(key)
        if node is None:
            return {"version": VERSION, "enrolled": False, "online": False}
        since = datetime.fromtimestamp(node.activated, UTC).isoformat() if node.activated else None
        return {
            "version": VERSION,
            "enrolled": True,
            "online": node.online,
            "since": since,
            **asdict(self._uses.get(key, KeyUse())),
            "run": self._run,
            "authority": self._overlap.told if self._overlap else None,
        }


class PresencePage:
    """The page, on loopback, and what nodes fetch and send beside it; a gateway shows both.

    Raises
    ------
    UnavailableError
        If the port is taken.
    """

    def __init__(
        self,
        presence: Presence,
        port: int,
        transfers: Transfers | None = None,
        enrolment: Enrolment | None = None,
        releases: ReleasesDoor | None = None,
    ) -> None:
        self._presence = presence
        self._enrolment = enrolment
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
            listening.listen(128)
        except OSError as error:
            listening.close()
            raise UnavailableError(
                f"superlink.presence-port: 127.0.0.1:{port} cannot be opened ({error.strerror});"
                " end the program that listens there, or set another port."
            ) from None
        self.port = int(listening.getsockname()[1])
        # Any method comes to these, which know of reading alone.
        routes: list[BaseRoute] = [
            Route(f"{PREFIX}/", self._show, methods=_METHODS),
            Route(f"{PREFIX}/nodes/{{key}}", self._node, methods=_METHODS),
            Route(f"{PREFIX}/enrol", self._enrol, methods=_METHODS),
            *(transfers.routes(PREFIX) if transfers else ()),
            *(releases.routes(PREFIX) if releases else ()),
            Route("/{path:path}", self._other, methods=_METHODS),
        ]
        self._server = uvicorn.Server(
            uvicorn.Config(
                Starlette(routes=routes),
                lifespan="off",
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _show(self, request: Request) -> Response:
        if not self._presence.page or request.method not in _READING:
            return await self._other(request)
        return Response(self._presence.page, headers={**dict(HEADERS), **_NOT_KEPT})

    async def _node(self, request: Request) -> Response:
        key = request.path_params["key"]
        if not _FINGERPRINT.fullmatch(key) or request.method not in _READING:
            return await self._other(request)
        if key in self._presence:
            # The roster's files are read, and a signature is checked.
            if note := request.headers.get(rest_note.HEADER):
                await run_in_threadpool(self._presence.take_note, key, note)
            if word := request.headers.get(successor.HEADER):
                await run_in_threadpool(self._presence.take_word, key, word)
        return JSONResponse(self._presence.of(key), headers=_NOT_KEPT)

    async def _enrol(self, request: Request) -> Response:
        if self._enrolment is None or request.method != "POST":
            return await self._other(request)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                break
        # It checks a signature and writes files.
        answer = await run_in_threadpool(self._enrolment.take, body)
        content = {"version": VERSION, "said": answer.sentence}
        return JSONResponse(content, answer.status, _NOT_KEPT)

    async def _other(self, request: Request) -> Response:
        reads = request.method in _READING
        content = {"version": VERSION, "error": "there is no such page" if reads else "read only"}
        status = HTTPStatus.NOT_FOUND if reads else HTTPStatus.METHOD_NOT_ALLOWED
        return JSONResponse(content, status, _NOT_KEPT)
