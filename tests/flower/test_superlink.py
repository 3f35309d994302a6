from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from flwr.server.superlink.linkstate import sql_linkstate
from flwr.superlink import extensions
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from zk0d.errors import ConfigError
from zk0d.flower import replies, superlink
from zk0d.flower.replay import KEPT_SECONDS, ReplayGuard
from zk0d.flower.sessions import SessionWatch
from zk0d.flower.superlink import SECRET_HEADER, ControlGuard, read_secret

SECRET = b"0123456789abcdef0123456789abcdef"


async def _answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.url.path)


@pytest.fixture
def guarded() -> httpx.AsyncClient:
    app = Starlette(
        routes=[Route("/{path:path}", _answer, methods=["GET", "POST"])],
        middleware=[Middleware(ControlGuard, secret=SECRET)],
    )
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://link")


async def _status(client: httpx.AsyncClient, path: str, secret: str = "") -> int:
    headers = {SECRET_HEADER: secret} if secret else {}
    return (await client.post(path, headers=headers)).status_code


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleetx",
        "/V1/FLEET/x",
        "//v1/fleet/x",
        "/docs",
        "/openapi.json",
        "/health",
        "/",
    ],
)
def test_without_the_secret_only_nodes_and_superexecs_get_through(
    guarded: httpx.AsyncClient, path: str
) -> None:
    import asyncio

    async def statuses() -> list[int]:
        wrong = [await _status(guarded, path, s) for s in ("", "x", SECRET.decode()[:-1])]
        return [*wrong, await _status(guarded, path, SECRET.decode())]

    assert asyncio.run(statuses()) == [403, 403, 403, 200]


def test_nodes_and_superexecs_need_no_control_secret(guarded: httpx.AsyncClient) -> None:
    import asyncio

    for path in ("/v1/fleet/pull-messages", "/v1/runtime/pull-task"):
        assert asyncio.run(_status(guarded, path)) == 200


def test_flowers_hook_is_where_we_look_for_it(kept: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its own app has the guard outside of everything else."""
    monkeypatch.setenv("FLWR_DATABASE", ":flwr-in-memory:")
    superlink.install(SECRET, Path("sessions.json"))
    from flwr.superlink import main

    app = main.create_app()
    assert [part.cls for part in app.user_middleware[:3]] == [
        ControlGuard,
        ReplayGuard,
        SessionWatch,
    ]
    assert sql_linkstate.SqlLinkState.get_message_res.__module__ == replies.__name__


def test_an_open_control_api_opens_nothing_else(kept: None) -> None:
    superlink.install(None, Path("sessions.json"))
    assert [part.cls for part in extensions.get_middleware()[:2]] == [ReplayGuard, SessionWatch]


@pytest.mark.parametrize("content", ["", "short\n"])
def test_a_wrong_secret_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "s").write_text(content)
    with pytest.raises(ConfigError, match="is not a control secret; zk0bot server init"):
        read_secret(tmp_path / "s")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_secret(tmp_path / "missing")


@pytest.fixture
def replayed() -> httpx.AsyncClient:
    async def answer(request: Request) -> PlainTextResponse:
        wrong = request.headers.get("flwr-public-key") == "wrong"
        return PlainTextResponse("", status_code=401 if wrong else 200)

    app = Starlette(
        routes=[Route("/{path:path}", answer, methods=["GET", "POST"])],
        middleware=[Middleware(ReplayGuard)],
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://link")


def _ask(client: httpx.AsyncClient, key: str, at: str) -> tuple[int, str]:
    import asyncio

    headers = {"flwr-public-key": key, "flwr-timestamp": at}
    answer = asyncio.run(client.post("/v1/fleet/pull-messages", headers=headers))
    return answer.status_code, answer.text


def test_a_signed_request_counts_once(
    replayed: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _ask(replayed, "left", "10:00") == (200, "")
    assert _ask(replayed, "left", "10:00") == (401, "this request was seen before\n")
    assert _ask(replayed, "left", "10:01") == (200, "")
    assert _ask(replayed, "right", "10:00") == (200, "")
    # Flower itself takes none that is as old as what is forgotten.
    from flwr.common import constant

    longest = constant.TIMESTAMP_TOLERANCE + 2 * constant.SYSTEM_TIME_TOLERANCE
    assert longest < KEPT_SECONDS
    now = time.monotonic()
    monkeypatch.setattr("zk0d.flower.replay.time.monotonic", lambda: now + KEPT_SECONDS + 1)
    assert _ask(replayed, "left", "10:00") == (200, "")


def test_a_request_that_flower_refuses_is_not_remembered(replayed: httpx.AsyncClient) -> None:
    assert _ask(replayed, "wrong", "10:00") == (401, "")
    assert _ask(replayed, "wrong", "10:00") == (401, "")


def test_an_unsigned_request_is_left_to_flower(replayed: httpx.AsyncClient) -> None:
    import asyncio

    for _ in range(2):
        assert asyncio.run(replayed.post("/v1/fleet/x")).status_code == 200
