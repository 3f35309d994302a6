"""A node that waits is told of a message, and of nothing that is not its own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.flower import test_replies
from zk0d.flower import waiting
from zk0d.flower.supernode import (
    FIRST_WAIT,
    GROWTH,
    IDLE_WAIT,
    LOOK_ANYWAY_SECONDS,
    TRY_AGAIN_SECONDS,
    Line,
    Pacing,
    Told,
)
from zk0d.flower.waiting import (
    LOOK_NOW,
    NOTHING_CAME,
    PATH,
    PULL_PATH,
    PULLED_SECONDS,
    REFUSED,
    Room,
    WaitingRoom,
)


class Node:
    """One that signs as Flower's does."""

    def __init__(self) -> None:
        private, public = generate_key_pairs()
        self.key = public_key_to_bytes(public)
        self._sign = NodeAuthHttpInterceptor(private, public)

    def headers(self) -> dict[str, str]:
        context = SimpleNamespace(request=httpx.Request("POST", "http://link"))
        self._sign.intercept(context, lambda _: None)
        return {k: v for k, v in context.request.headers.items() if k.startswith("flwr-")}


class SuperLink:
    """Flower's place is taken by one that answers a look as it is told to."""

    def __init__(self, hold: float = 30.0) -> None:
        self.room = Room()
        self.now = 0.0

        async def answer(request: Request) -> Response:
            return Response(status_code=int(request.headers.get("wanted-status", "200")))

        self.app = Starlette(
            routes=[Route("/{path:path}", answer, methods=["POST"])],
            middleware=[Middleware(WaitingRoom, room=self.room, hold=hold, clock=lambda: self.now)],
        )

    async def ask(self, path: str, headers: dict[str, str], **more: Any) -> int:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://link") as client:
            return (await client.post(path, headers=headers, **more)).status_code

    async def look(self, node: Node, status: int = 200) -> int:
        return await self.ask(PULL_PATH, {**node.headers(), "wanted-status": str(status)})

    async def wait(self, node: Node) -> int:
        return await self.ask(PATH, node.headers())

    async def begin_to_wait(self, node: Node) -> asyncio.Task[int]:
        task = asyncio.create_task(self.wait(node))
        while node.key not in self.room._waiting and not task.done():
            await asyncio.sleep(0)
        return task


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(story(), 60)

    asyncio.run(whole())


def test_a_node_that_waits_is_told_of_its_message_and_not_of_others() -> None:
    link, left, right = SuperLink(), Node(), Node()

    async def story() -> None:
        for node in (left, right):
            await link.look(node)
        waits = [await link.begin_to_wait(node) for node in (left, right)]
        link.room.tell(left.key)
        assert await waits[0] == LOOK_NOW
        assert not waits[1].done()
        link.room.close()
        assert await waits[1] == NOTHING_CAME

    run(story)


def test_a_message_between_the_look_and_the_wait_is_not_missed() -> None:
    link, node = SuperLink(hold=0.0), Node()

    async def story() -> None:
        await link.look(node)
        link.room.tell(node.key)
        assert await link.wait(node) == LOOK_NOW
        assert await link.wait(node) == LOOK_NOW, "until it has looked"
        await link.look(node)
        assert await link.wait(node) == NOTHING_CAME

    run(story)


def test_a_look_that_flower_refuses_hides_no_message() -> None:
    """Anybody can send a node's key."""
    link, node = SuperLink(), Node()

    async def story() -> None:
        await link.look(node)
        link.room.tell(node.key)
        assert await link.look(node, status=401) == 401
        assert await link.wait(node) == LOOK_NOW

    run(story)


def test_only_a_key_that_looked_may_wait_and_its_word_ages() -> None:
    link, node = SuperLink(hold=0.0), Node()

    async def story() -> None:
        assert await link.wait(node) == LOOK_NOW, "as after the SuperLink's restart"
        await link.look(node, status=401)
        assert await link.wait(node) == LOOK_NOW
        await link.look(node)
        assert await link.wait(node) == NOTHING_CAME
        link.now = PULLED_SECONDS + 1
        assert await link.wait(node) == LOOK_NOW

    run(story)


@pytest.mark.parametrize("missing", ["flwr-signature", "flwr-public-key", "flwr-timestamp"])
def test_an_unsigned_request_does_not_wait(missing: str) -> None:
    link, node, other = SuperLink(), Node(), Node()

    async def story() -> None:
        await link.look(node)
        headers = node.headers()
        assert await link.ask(PATH, {**headers, missing: other.headers()[missing]}) == REFUSED
        del headers[missing]
        assert await link.ask(PATH, headers) == REFUSED

    run(story)


def test_an_old_signature_does_not_wait() -> None:
    node = Node()
    headers = {key.encode(): value.encode() for key, value in node.headers().items()}
    assert waiting.is_signed(headers)
    headers[b"flwr-timestamp"] = b"2020-01-01T00:00:00+00:00"
    assert not waiting.is_signed(headers)


def test_a_node_waits_once() -> None:
    link, node = SuperLink(), Node()

    async def story() -> None:
        await link.look(node)
        first = await link.begin_to_wait(node)
        second = asyncio.create_task(link.wait(node))
        assert await first == LOOK_NOW
        assert not second.done()
        link.room.tell(node.key)
        assert await second == LOOK_NOW
        assert not link.room._waiting

    run(story)


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> test_replies.Link:
    return test_replies.made(monkeypatch)


def test_flower_tells_of_each_message_that_it_stores(flower: test_replies.Link, kept: None) -> None:
    """Where this fails, Flower has changed what we reach into."""
    room, told = Room(), []
    waiting.install(room)
    assert room.enter(b"key", lambda: told.append(1))
    flower.ask()
    assert told == [1]


class FakeLine:
    """Says what the test has it say."""

    def __init__(self, *said: Told) -> None:
        self.said = list(said)
        self.asked = 0

    def wait(self) -> Told:
        self.asked += 1
        return self.said.pop(0) if self.said else Told.NOTHING_CAME

    def hang_up(self) -> None: ...


def idle(line: FakeLine, clock: Callable[[], float]) -> tuple[Pacing, list[float]]:
    """A node for which nothing happened for a while, and how long it slept since."""
    slept: list[float] = []
    pacing = Pacing(slept.append, lambda: slept.append(-1.0), line, clock)  # type: ignore[arg-type]
    while pacing._wait < IDLE_WAIT:
        pacing.sleep(IDLE_WAIT)
    assert line.asked == 0
    slept.clear()
    return pacing, slept


def test_an_idle_node_looks_when_it_is_told() -> None:
    line = FakeLine(Told.NOTHING_CAME, Told.NOTHING_CAME, Told.LOOK_NOW)
    pacing, slept = idle(line, lambda: 0.0)
    pacing.sleep(IDLE_WAIT)
    assert (line.asked, slept) == (3, []), "it looks at once"
    pacing.sleep(IDLE_WAIT)
    pacing.sleep(IDLE_WAIT)
    assert slept == [FIRST_WAIT, FIRST_WAIT * GROWTH], "more may come soon"


def test_an_idle_node_looks_anyway_now_and_then() -> None:
    moments = iter(range(0, 10 * int(LOOK_ANYWAY_SECONDS), 30))
    line = FakeLine()
    pacing, slept = idle(line, lambda: float(next(moments)))
    pacing.sleep(IDLE_WAIT)
    assert slept == []
    assert 0 < line.asked <= LOOK_ANYWAY_SECONDS / 30


def test_a_coordinator_that_tells_nothing_is_asked_as_before() -> None:
    now = [0.0]
    line = FakeLine(Told.FAILED, Told.FAILED)
    pacing, slept = idle(line, lambda: now[0])
    for _ in range(3):
        pacing.sleep(IDLE_WAIT)
    assert (line.asked, slept) == (1, [IDLE_WAIT] * 3)
    now[0] = TRY_AGAIN_SECONDS + 1
    pacing.sleep(IDLE_WAIT)
    assert line.asked == 2


def test_a_node_leaves_while_it_waits() -> None:
    class Leaving(FakeLine):
        def wait(self) -> Told:
            pacing.leave()
            return Told.FAILED

    pacing, slept = idle(Leaving(), lambda: 0.0)
    pacing.sleep(IDLE_WAIT)
    assert slept == [-1.0], "it ends, and asks no more"


def test_a_line_without_a_coordinator_says_so() -> None:
    line = Line("127.0.0.1:1", ssl.create_default_context(), lambda _: {})
    line.hang_up()
    assert line.wait() is Told.FAILED
