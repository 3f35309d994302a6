"""Two SuperNodes with one key, and what looks like them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.supernode import fleet_http_connection
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from zk0d.flower.sessions import (
    KEPT_SECONDS,
    MOST_SESSIONS,
    ONLINE_SECONDS,
    SESSION_HEADER,
    KeyUse,
    SessionWatch,
    read_uses,
)
from zk0d.flower.supernode import name_requests, session_name
from zk0d.flower.wait_line import Signer

KEY = b"-----BEGIN PUBLIC KEY-----\nleft\n"
OWN = hashlib.sha256(KEY).hexdigest()
PULL, ACTIVATE = "/v1/fleet/pull-messages", "/v1/fleet/activate-node"


class Link:
    """A SuperLink that lets in whom it is told to, at a time that the test says."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.now = 0.0

        async def answer(request: Request) -> Response:
            return Response(status_code=int(request.headers["wanted-status"]))

        self.app = Starlette(
            routes=[Route("/{path:path}", answer, methods=["POST"])],
            middleware=[Middleware(SessionWatch, file=file, clock=lambda: self.now)],
        )

    def hear(
        self, session: str, at: float, *, path: str = PULL, status: int = 200, key: bytes = KEY
    ) -> None:
        self.now = at
        headers = {
            "flwr-public-key": base64.b64encode(key).decode(),
            "wanted-status": str(status),
            **({SESSION_HEADER: session} if session else {}),
        }

        async def ask() -> None:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://link") as client:
                await client.post(path, headers=headers)

        asyncio.run(ask())

    def refuse(self, session: str, at: float) -> None:
        self.hear(session, at, path=ACTIVATE, status=412)

    def use(self) -> KeyUse:
        return read_uses(self.file).get(OWN, KeyUse())


@pytest.fixture
def link(tmp_path: Path) -> Link:
    return Link(tmp_path / "sessions.json")


def test_a_process_that_is_refused_for_a_minute_beside_another_shares_its_key(link: Link) -> None:
    for at in range(0, 200, 10):
        link.hear("first", at)
        if at in (20, 40, 80, 150):
            link.refuse(f"copy-{at}", at + 1)
        shared = at > 80
        assert link.use() == KeyUse(("first",), shared), at
    assert not list(link.file.parent.glob(".*")), "no draft is left"


def test_two_admitted_machines_with_one_key_are_found(link: Link) -> None:
    """As after an outage: Flower then takes the heartbeats of both."""
    for at in range(0, 100, 20):
        link.hear("first", at)
        link.hear("copy", at + 5)
    assert link.use() == KeyUse(("first", "copy"), shared=True)


def test_a_restarted_node_does_not_share_its_key(link: Link) -> None:
    """Killed at 100; its old session counts online until 160, and it is refused until then."""
    for at in range(0, 101, 20):
        link.hear("before", at)
    for at in (105, 112, 125, 150):
        link.refuse(f"try-{at}", at)
        assert link.use() == KeyUse(("before",)), "nobody else is let in yet"
    for at in range(170, 500, 10):
        link.hear("after", at)
        assert not link.use().shared
    assert link.use() == KeyUse(("after",))


def test_a_suspended_process_does_not_share_its_key(link: Link) -> None:
    for at in (0, 10, 4000, 4010, 4100):
        link.hear("laptop", at)
        assert link.use() == KeyUse(("laptop",))


def test_sharing_ends_when_one_of_the_two_is_gone(link: Link) -> None:
    link.hear("first", 0)
    link.refuse("copy", 1)
    link.hear("first", 70)
    assert link.use().shared
    link.hear("first", 2 + KEPT_SECONDS)
    assert link.use() == KeyUse(("first",))


def test_a_process_without_a_name_is_one_too(link: Link) -> None:
    """A node of an earlier version."""
    link.hear("", 0)
    link.refuse("copy", 1)
    link.hear("", 70)
    assert link.use() == KeyUse(("",), shared=True)


def test_an_unsigned_request_counts_for_nothing(link: Link) -> None:
    """Anybody can send a key; only an answer that Flower gives to its owner says whose it was."""
    link.hear("first", 0)
    for status, path in ((401, PULL), (404, "/v1/fleet/nonsense"), (415, ACTIVATE), (412, PULL)):
        link.hear("stranger", 1, path=path, status=status)
    link.hear("first", 70)
    assert link.use() == KeyUse(("first",))


def test_keys_are_apart_and_a_silent_one_is_forgotten(link: Link) -> None:
    link.hear("first", 0)
    link.hear("first", 70, key=b"right")
    assert read_uses(link.file) == {
        OWN: KeyUse(),
        hashlib.sha256(b"right").hexdigest(): KeyUse(("first",)),
    }
    assert ONLINE_SECONDS < 70
    link.hear("first", 1 + KEPT_SECONDS, key=b"right")
    assert OWN not in read_uses(link.file)


def test_a_node_cannot_fill_the_list(link: Link) -> None:
    for number in range(5 * MOST_SESSIONS):
        link.hear(f"made-up-{number}", 2.0 * number)
    assert len(link.use().sessions) <= MOST_SESSIONS


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": {}}', '{"a": 1}'])
def test_a_file_that_means_nothing_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "s").write_text(text)
    assert read_uses(tmp_path / "s") == {}
    assert read_uses(tmp_path / "missing") == {}


def test_a_full_disk_costs_no_node_its_answer(link: Link) -> None:
    link.file.with_name(f".{link.file.name}.partial").mkdir()
    link.hear("first", 0)
    assert link.use() == KeyUse()


def test_flowers_supernode_names_itself_in_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.primitives.asymmetric import generate_key_pairs

    plain = fleet_http_connection.NodeAuthHttpInterceptor
    monkeypatch.setattr(fleet_http_connection, "NodeAuthHttpInterceptor", plain)
    line: Any = SimpleNamespace(tells_alive=False)
    name_requests(session_name("service", 7), Signer(), line)
    made = fleet_http_connection.NodeAuthHttpInterceptor(*generate_key_pairs())

    class Context:
        request = httpx.Request("POST", "http://link/v1/fleet/pull-messages")

    sent: list[Any] = []
    made.intercept(Context, sent.append)
    assert sent == [Context]
    assert Context.request.headers[SESSION_HEADER] == "service-7"
    assert Context.request.headers["flwr-public-key"], "and Flower's own are there"
