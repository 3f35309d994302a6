from __future__ import annotations

from dataclasses import dataclass

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.linkstate import LinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

from zk0d.flower import replies


@dataclass
class Link:
    """A SuperLink's state with one run, whose ServerApp asks one node something."""

    state: LinkState
    run: int
    node: int

    def ask(self) -> Message:
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        message = Message(RecordDict(), dst_node_id=self.node, message_type="train")
        message.metadata.__dict__["_message_id"] = message.object_id
        assert self.state.store_message_ins(message)
        (taken,) = self.state.get_message_ins(self.node, limit=1)
        return taken

    def answer(self, message: Message) -> None:
        TaskIdentity.node_id = self.node
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        assert self.state.store_message_res(reply)

    def fetch(self, *messages: Message) -> list[Message]:
        return self.state.get_message_res({m.metadata.message_id for m in messages}, self.run)


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    state = LinkStateFactory(":memory:", NoOpFederationManager(), ObjectStoreFactory()).state()
    node = state.create_node("owner", "owner", b"key", 30.0)
    assert state.activate_node(node, 30.0)
    run = state.create_run(
        None, None, "hash", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP
    )
    for name, value in (("run", run), ("node", SUPERLINK_NODE_ID), ("task", 1)):
        monkeypatch.setattr(TaskIdentity, f"_{name}_id", value)
    return Link(state, run, node)


@pytest.fixture
def installed(kept: None) -> None:
    replies.install()
    replies.install()  # a second time changes nothing


def test_a_reply_is_delivered_though_its_node_has_left_since(link: Link, installed: None) -> None:
    answered, open_ = link.ask(), link.ask()
    link.answer(answered)
    assert link.state.deactivate_node(link.node)
    (came,) = link.fetch(answered, open_)
    assert came.metadata.reply_to_message_id == answered.metadata.message_id
    assert not came.has_error()


def test_a_node_that_slept_answers_after_it_woke(link: Link, installed: None) -> None:
    """A laptop whose lid was closed in a round goes on with what it had in work."""
    asked = link.ask()
    assert link.state.deactivate_node(link.node)
    assert link.fetch(asked) == []
    assert link.state.activate_node(link.node, 30.0)
    link.answer(asked)
    (came,) = link.fetch(asked)
    assert not came.has_error()


def test_a_reply_of_a_removed_node_is_not_delivered(link: Link, installed: None) -> None:
    answered = link.ask()
    link.answer(answered)
    link.state.delete_node("owner", link.node)
    assert all(each.has_error() for each in link.fetch(answered))


def test_replies_come_in_pages(link: Link, installed: None) -> None:
    asked = [link.ask() for _ in range(replies.PAGE + 3)]
    assert link.fetch(*asked) == []
    for message in asked[1:]:
        link.answer(message)
    left = {each.metadata.message_id: each for each in asked}
    pages = []
    while page := link.fetch(*left.values()):
        for answer in page:
            del left[answer.metadata.reply_to_message_id]
        pages.append(len(page))
    assert pages == [replies.PAGE, 2]
    assert list(left) == [asked[0].metadata.message_id], "it was not answered"


def test_flower_alone_throws_such_a_reply_away(link: Link) -> None:
    """Where this fails, Flower has mended it and ours can go."""
    answered = link.ask()
    link.answer(answered)
    assert link.state.deactivate_node(link.node)
    (came,) = link.fetch(answered)
    assert came.has_error()
