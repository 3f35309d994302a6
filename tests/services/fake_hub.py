"""A fake model hub: serves folders in the way that huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

COMMIT = "c" * 40


class FakeHub:
    """Repositories by ``models/user/name`` or ``datasets/user/name``, each a folder."""

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.tags: dict[str, list[str]] = {}
        self.gated: set[str] = set()
        self.asked: list[tuple[str, str]] = []  #: method and path
        self.tokens: set[str] = set()
        self.broken = ""  #: paths that end so are answered with 500
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append((request.command, path))
        self.tokens.add(request.headers.get("Authorization", ""))
        parts = path.strip("/").split("/")
        if self.broken and path.endswith(self.broken):
            return _send(request, 500, b"")
        if parts[0] == "api":
            name = "/".join(parts[1:4])
            if problem := self._problem(name):
                return _send(request, *problem)
            rest = parts[4:]
            if rest == ["refs"]:
                tags = [
                    {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": COMMIT}
                    for tag in self.tags.get(name, [])
                ]
                return _json(request, {"branches": [], "converts": [], "tags": tags})
            if rest[:1] == ["revision"] or not rest:
                files = [{"rfilename": file} for file in self._files(name)]
                about = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": files}
                return _json(request, about)
            if rest[:1] == ["tree"]:
                tree = [
                    {
                        "type": "file",
                        "path": file,
                        "size": (folder / file).stat().st_size,
                        "oid": "0",
                    }
                    for folder in [self.repositories[name]]
                    for file in self._files(name)
                ]
                return _json(request, tree)
            return _send(request, 404, b"")
        if "resolve" not in parts:
            return _send(request, 404, b"")
        at = parts.index("resolve")
        name = "/".join(parts[:at] if parts[0] == "datasets" else ["models", *parts[:at]])
        if problem := self._problem(name):
            return _send(request, *problem)
        file = self.repositories[name] / "/".join(parts[at + 2 :])
        if not file.is_file():
            return _send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        etag = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return _send(request, 200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _problem(self, name: str) -> tuple[int, bytes, dict[str, str]] | None:
        if name in self.gated:
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        if name not in self.repositories:
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        return None

    def _files(self, name: str) -> list[str]:
        folder = self.repositories[name]
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _json(request: http.server.BaseHTTPRequestHandler, content: Any) -> None:
    _send(request, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _send(
    request: http.server.BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    headers: dict[str, str] | None = None,
) -> None:
    request.send_response(status)
    for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content)
