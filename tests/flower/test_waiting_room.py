"""A node that waits is told of a message, and of nothing that is not its own."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.middleware import Middleware

from zk0d.config.machine import ServerSettings
from zk0d.flower import waiting_room
from zk0d.flower.replay import ReplayGuard
from zk0d.flower.sessions import SESSION_HEADER, SessionWatch, read_uses
from zk0d.flower.waiting_room import (
    LOOK_NOW,
    MOST_HELD,
    NO_ROOM,
    NOTHING_CAME,
    PATH,
    REFUSED,
    REPLACED,
    Room,
    WaitingRoom,
)
from zk0d.machine.gateway import configuration


class Node:
    """One that signs as Flower's does."""

    def __init__(self) -> None:
        private, public = generate_key_pairs()
        self.key = public_key_to_bytes(public)
        self._sign = NodeAuthHttpInterceptor(private, public)
        self.number = 0

    def headers(self) -> dict[str, str]:
        context = SimpleNamespace(request=httpx.Request("POST", "http://link"))
        self._sign.intercept(context, lambda _: None)
        return {k: v for k, v in context.request.headers.items() if k.startswith("flwr-")}


class SuperLink:
    """Flower's state with a run, behind our middlewares."""

    def __init__(
        self, database: Path, *outer: Middleware, hold: float = 30.0, most: int = MOST_HELD
    ) -> None:
        objects = ObjectStoreFactory()
        factory = LinkStateFactory(str(database), NoOpFederationManager(), objects)
        self.state = factory.state()
        self.run = self.state.create_run(
            None, None, "hash", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP
        )
        self.room = Room(most)
        self.app = Starlette(
            middleware=[*outer, Middleware(WaitingRoom, room=self.room, hold=hold)],
        )
        self.app.state.linkstate_factory = factory

    def enrolled(self) -> Node:
        node = Node()
        node.number = self.state.create_node("owner", "owner", node.key, 30.0)
        assert self.state.activate_node(node.number, 30.0)
        return node

    def send(self, node: Node) -> None:
        """Store a message for a node, as a ServerApp that pushes it."""
        message = Message(RecordDict(), dst_node_id=node.number, message_type="train")
        message.metadata.__dict__["_message_id"] = message.object_id
        session = self.state.start_session(self.run)
        stored, _ = self.state.store_message_and_object_tree(
            message, get_object_tree(message), session
        )
        assert stored

    async def ask(self, headers: dict[str, str], method: str = "POST", **more: Any) -> int:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://link") as client:
            return (await client.request(method, PATH, headers=headers, **more)).status_code

    async def wait(self, node: Node) -> int:
        return await self.ask(node.headers())

    async def held(self, node: Node, among: int = 1) -> asyncio.Task[int]:
        """A node's request once it is held, as one of so many."""
        task = asyncio.create_task(self.wait(node))
        while len(self.room) < among and not task.done():
            await asyncio.sleep(0.001)
        return task


@pytest.fixture
def installed(
    kept: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., SuperLink]:
    """A SuperLink that tells its room of what it stores."""

    def make(*outer: Middleware, **more: Any) -> SuperLink:
        link = SuperLink(tmp_path / "link.db", *outer, **more)
        for name, value in (("run", link.run), ("node", SUPERLINK_NODE_ID), ("task", 1)):
            monkeypatch.setattr(TaskIdentity, f"_{name}_id", value)
        waiting_room.install(link.room)
        return link

    return make


Made = Callable[..., SuperLink]


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(story(), 120)

    asyncio.run(whole())


@pytest.mark.slow
def test_a_node_that_waits_is_told_of_its_message_and_not_of_others(installed: Made) -> None:
    link = installed()
    left, right = link.enrolled(), link.enrolled()

    async def story() -> None:
        first, second = await link.held(left), await link.held(right, 2)
        link.send(left)
        assert await first == LOOK_NOW
        assert not second.done()
        assert len(link.room) == 1
        link.room.close()
        assert await second == NO_ROOM

    run(story)


def test_a_message_that_came_before_the_wait_is_not_missed(installed: Made) -> None:
    """As after the SuperLink's restart, or between a look and the wait."""
    link = installed(hold=0.0)
    node = link.enrolled()

    async def story() -> None:
        link.send(node)
        assert await link.wait(node) == LOOK_NOW
        assert await link.wait(node) == LOOK_NOW, "until it has looked"
        assert len(link.state.get_message_ins(node.number, limit=1)) == 1
        assert await link.wait(node) == NOTHING_CAME
        assert len(link.room) == 0

    run(story)


@pytest.mark.slow
def test_many_nodes_are_told_at_once(installed: Made) -> None:
    link = installed()
    nodes = [link.enrolled() for _ in range(20)]

    async def story() -> None:
        waits = [await link.held(node, among) for among, node in enumerate(nodes, 1)]
        for node in nodes:
            link.send(node)
        assert await asyncio.gather(*waits) == [LOOK_NOW] * len(nodes)

    run(story)


def test_a_wait_counts_as_a_heartbeat(installed: Made) -> None:
    link = installed(hold=0.0)
    node = link.enrolled()

    def counted_until() -> float:
        (info,) = link.state.get_node_info(node_ids=[node.number])
        return float(info.online_until)

    async def story() -> None:
        before = counted_until()
        assert await link.wait(node) == NOTHING_CAME
        assert counted_until() > before

    run(story)


def test_only_an_enrolled_node_may_wait(installed: Made) -> None:
    link = installed(hold=0.0)
    node, stranger = link.enrolled(), Node()

    async def story() -> None:
        assert await link.wait(stranger) == REFUSED
        link.state.delete_node("owner", node.number)
        assert await link.wait(node) == REFUSED

    run(story)


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["flwr-signature", "flwr-public-key", "flwr-timestamp"])
def test_an_unsigned_request_does_not_wait(installed: Made, missing: str) -> None:
    link = installed()
    node, other = link.enrolled(), link.enrolled()

    async def story() -> None:
        headers = node.headers()
        assert await link.ask({**headers, missing: other.headers()[missing]}) == REFUSED
        assert await link.ask({**headers, missing: "ä".encode().hex()}) == REFUSED
        del headers[missing]
        assert await link.ask(headers) == REFUSED
        assert len(link.room) == 0

    run(story)


def test_a_request_of_another_form_does_not_wait(installed: Made) -> None:
    link = installed()
    node = link.enrolled()

    async def story() -> None:
        assert await link.ask(node.headers(), method="GET") == REFUSED
        assert await link.ask(node.headers(), content=b"x") == REFUSED
        old = {**node.headers(), "flwr-timestamp": "2020-01-01T00:00:00+00:00"}
        assert await link.ask(old) == REFUSED

    run(story)


def test_a_copied_request_does_not_wait(installed: Made) -> None:
    link = installed(Middleware(ReplayGuard), hold=0.0)
    headers = link.enrolled().headers()

    async def story() -> None:
        assert await link.ask(headers) == NOTHING_CAME
        assert await link.ask(headers) == REFUSED

    run(story)


def test_a_node_waits_once(installed: Made) -> None:
    link = installed()
    node = link.enrolled()

    async def story() -> None:
        first = await link.held(node)
        second = asyncio.create_task(link.wait(node))
        assert await first == REPLACED
        assert not second.done()
        link.send(node)
        assert await second == LOOK_NOW
        assert len(link.room) == 0

    run(story)


@pytest.mark.slow
def test_no_more_requests_are_held_than_there_is_room_for(installed: Made) -> None:
    link = installed(most=1)
    first, second = link.enrolled(), link.enrolled()

    async def story() -> None:
        held = await link.held(first)
        assert await link.wait(second) == NO_ROOM
        link.room.close()
        assert await held == NO_ROOM
        assert await link.wait(first) == NO_ROOM, "a SuperLink that ends holds nothing"

    run(story)


def test_a_process_that_waits_counts_as_let_in(installed: Made, tmp_path: Path) -> None:
    file = tmp_path / "sessions.json"
    link = installed(Middleware(SessionWatch, file=file))
    node = link.enrolled()

    async def story() -> None:
        headers = {**node.headers(), SESSION_HEADER: "a-1"}
        held = asyncio.create_task(link.ask(headers))
        while not read_uses(file):
            await asyncio.sleep(0.001)
        (use,) = read_uses(file).values()
        assert use.sessions == ("a-1",)
        assert not held.done()
        link.room.close()
        await held

    run(story)


def test_a_database_that_fails_sends_the_node_back_to_polls(
    installed: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = installed()
    node = link.enrolled()

    def locked(*_: object) -> None:
        raise OperationalError("UPDATE node", {}, Exception("database is locked"))

    monkeypatch.setattr(type(link.state), "acknowledge_node_heartbeat", locked)

    async def story() -> None:
        assert await link.wait(node) == NO_ROOM
        assert len(link.room) == 0

    run(story)


def test_the_gateway_counts_waiting_nodes_apart() -> None:
    assert f"location = {PATH} {{" in configuration(ServerSettings())


def test_flowers_headers_are_those_that_are_read() -> None:
    """Where this fails, Flower has changed what we reach into."""
    node = Node()
    headers = node.headers()
    assert base64.b64decode(headers["flwr-public-key"]) == node.key
    assert {"flwr-signature", "flwr-timestamp"} <= headers.keys()
