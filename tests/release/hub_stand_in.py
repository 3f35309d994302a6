"""A stand-in for the model hub on loopback: what huggingface_hub asks for when it pushes a folder.

It keeps what it is sent, so that a test can look; it is no test of the real hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    #: What was there at each commit, by its name.
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)  #: a commit's name by a tag's


class HubStandIn(ThreadingHTTPServer):
    """``fail_uploads`` answers that many uploads of large files with 503 and hangs up."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.fail_uploads = 0
        self.uploads: list[str] = []
        self.refuse = False
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def server_close(self) -> None:
        """End the thread first: it would poll the closed socket without a pause, for good."""
        self.shutdown()
        super().server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _say(self, status: int, content: Any = None) -> None:
        body = json.dumps(content if content is not None else {}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        if status == 404:
            self.send_header("x-error-code", "RepoNotFound")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").split("?")[0]
        name = name.split("/revision/")[0].removesuffix("/refs")
        found = self.server.repositories.get(name)
        if found is None:
            self._say(404, {"error": "Repository not found"})
            return
        if self.path.split("?")[0].endswith("/refs"):
            self._say(200, {"branches": [], "converts": [], "tags": self._tags(found)})
            return
        siblings = [{"rfilename": path} for path in found.files]
        self._say(
            200, {"id": name, "private": found.private, "siblings": siblings, "sha": "0" * 40}
        )

    def do_PUT(self) -> None:
        body = self._body()
        if self.server.fail_uploads:
            self.server.fail_uploads -= 1
            self._say(503)
            return
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.uploads.append(oid)
        self.server.objects[oid] = body
        self._say(200)

    def do_POST(self) -> None:
        body = self._body()
        if self.server.refuse:
            self._say(403, {"error": "forbidden"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'user'}/{asked['name']}"
            self.server.repositories.setdefault(
                name, Repository(asked.get("private") or asked.get("visibility") == "private")
            )
            self._say(200, {"url": f"{self.server.url}/{name}"})
        elif self.path.endswith("/objects/batch"):
            self._say(
                200, {"transfer": "basic", "objects": [self._object(o) for o in self._wanted(body)]}
            )
        elif "/preupload/" in self.path:
            self._say(200, {"files": [self._mode(f) for f in json.loads(body)["files"]]})
        elif "/commit/" in self.path:
            self._commit(self.path.removeprefix("/api/models/").split("/commit/")[0], body)
        elif self.path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif "/tag/" in self.path:
            name, revision = self.path.removeprefix("/api/models/").split("/tag/")
            tags = self.server.repositories[name].tags
            asked = json.loads(body)["tag"]
            self._say(409 if asked in tags else 200)
            tags.setdefault(asked, revision)
        elif "/paths-info/" in self.path:
            name, revision = self.path.removeprefix("/api/models/").split("/paths-info/")
            there = self.server.repositories[name].snapshots[revision]
            paths = parse_qs(body.decode())["paths"]
            self._say(200, [self._about(path, there[path]) for path in paths if path in there])
        else:
            self._say(404)

    def _wanted(self, body: bytes) -> list[dict[str, Any]]:
        return list(json.loads(body)["objects"])

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """One that is here already needs no upload: that is how a push is taken up again."""
        if wanted["oid"] in self.server.objects:
            return wanted
        href = f"{self.server.url}/upload/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href}}}

    @staticmethod
    def _mode(file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith(".safetensors")
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }

    @staticmethod
    def _tags(found: Repository) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit}
            for name, commit in found.tags.items()
        ]

    @staticmethod
    def _about(path: str, content: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(content).hexdigest()
        lfs = {"size": len(content), "oid": sha256, "pointerSize": 130}
        return {"type": "file", "path": path, "size": len(content), "oid": sha256[:40], "lfs": lfs}

    def _commit(self, name: str, body: bytes) -> None:
        found = self.server.repositories[name]
        for line in body.splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                found.commits.append(value["summary"])
            elif part["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            elif part["key"] == "lfsFile":
                found.files[value["path"]] = self.server.objects[value["oid"]]
        oid = f"{len(found.commits):040d}"
        found.snapshots[oid] = dict(found.files)
        url = f"{self.server.url}/{name}/commit/{oid}"
        self._say(200, {"success": True, "commitOid": oid, "commitUrl": url})
