"""The presence page: whether a key is online, and the current round. Read only, nothing else.

A node cannot see from its own side whether the coordinator still counts it as online: Flower's
SuperNode can stop its heartbeats and look healthy. So the node asks here.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from zk0d.errors import UnavailableError
from zk0d.federation.nodes import Node
from zk0d.flower.sessions import KeyUse
from zk0d.pages import HEADERS
from zk0d.record.state import RunState
from zk0d.services.transfers import Transfers

PREFIX = "/zk0d/v1"
VERSION = 1
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_READING = ("GET", "HEAD")
_METHODS = [*_READING, "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_NOT_KEPT = {"Cache-Control": "no-store"}


class Presence:
    """The last look at the nodes and the run; written by one thread, read by others."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._uses: Mapping[str, KeyUse] = {}
        self._run: dict[str, Any] | None = None
        self.page = b""  #: the page for people; empty where it is switched off

    def update(
        self, nodes: Iterable[Node], run: RunState | None, uses: Mapping[str, KeyUse]
    ) -> None:
        """Take a new look."""
        self._nodes, self._uses = {node.key: node for node in nodes}, uses
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
        }


class PresencePage:
    """The page, on loopback, and what nodes fetch and send beside it; a gateway shows both.

    Raises
    ------
    UnavailableError
        If the port is taken.
    """

    def __init__(self, presence: Presence, port: int, transfers: Transfers | None = None) -> None:
        self._presence = presence
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
            *(transfers.routes(PREFIX) if transfers else ()),
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
        return JSONResponse(self._presence.of(key), headers=_NOT_KEPT)

    async def _other(self, request: Request) -> Response:
        reads = request.method in _READING
        content = {"version": VERSION, "error": "there is no such page" if reads else "read only"}
        status = HTTPStatus.NOT_FOUND if reads else HTTPStatus.METHOD_NOT_ALLOWED
        return JSONResponse(content, status, _NOT_KEPT)
