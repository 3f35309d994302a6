"""The presence page: whether a key is online, and the current round. Read only, nothing else.

A node cannot see from its own side whether the coordinator still counts it as online: Flower's
SuperNode can stop its heartbeats and look healthy. So the node asks here.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from zk0d.errors import UnavailableError
from zk0d.federation.nodes import Node
from zk0d.flower.sessions import KeyUse
from zk0d.pages import HEADERS
from zk0d.record.state import RunState

PREFIX = "/zk0d/v1"
VERSION = 1
_FINGERPRINT = re.compile(rf"{PREFIX}/nodes/([0-9a-f]{{64}})")


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
    """The page, on loopback; a gateway shows it to nodes.

    Raises
    ------
    UnavailableError
        If the port is taken.
    """

    def __init__(self, presence: Presence, port: int) -> None:
        self._presence = presence
        try:
            self._server = make_server(
                "127.0.0.1", port, self._answer, _ThreadingServer, _SilentHandler
            )
        except OSError as error:
            raise UnavailableError(
                f"superlink.presence-port: 127.0.0.1:{port} cannot be opened ({error.strerror});"
                " end the program that listens there, or set another port."
            ) from None
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(
        self, request: dict[str, Any], start: Callable[[str, list[tuple[str, str]]], Any]
    ) -> list[bytes]:
        status, content = "404 Not Found", {"version": VERSION, "error": "there is no such page"}
        path, page = request.get("PATH_INFO", ""), self._presence.page
        if request["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, content = "405 Method Not Allowed", {"version": VERSION, "error": "read only"}
        elif page and path == f"{PREFIX}/":
            return self._send("200 OK", page, HEADERS, start)
        elif found := _FINGERPRINT.fullmatch(path):
            status, content = "200 OK", self._presence.of(found[1])
        body = json.dumps(content).encode()
        return self._send(status, body, [("Content-Type", "application/json")], start)

    @staticmethod
    def _send(
        status: str,
        body: bytes,
        headers: list[tuple[str, str]],
        start: Callable[[str, list[tuple[str, str]]], Any],
    ) -> list[bytes]:
        length = ("Content-Length", str(len(body)))
        start(status, [*headers, length, ("Cache-Control", "no-store")])
        return [body]


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _SilentHandler(WSGIRequestHandler):
    timeout = 10  # a caller that says nothing does not hold a thread

    def log_message(self, *_: object) -> None:
        return None
