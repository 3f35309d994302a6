"""Flower's own loop of a SuperNode, whose coordinator ends a run while a message is taken."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from zk0d.errors import UnavailableError
from zk0d.flower import own_replies


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Flower's module; what is changed in it is Flower's again afterwards."""
    module = importlib.import_module("flwr.supernode.start_client_internal")
    for name in ("_pull_and_store_message", "_push_messages", "time"):
        monkeypatch.setattr(module, name, getattr(module, name))
    return module


class Node:
    """A SuperNode's state, with replies that ClientApps put there while Flower waits.

    Parameters
    ----------
    becomes
        What happens at each wait, in order.
    """

    def __init__(self, loop: ModuleType, becomes: Iterator[Callable[[], None]]) -> None:
        objects = ObjectStoreFactory()
        self.store = objects.store()
        self.state = NodeStateFactory(objects).state()
        self.sent: list[str] = []
        self._loop = loop
        loop.time = self  # type: ignore[attr-defined]
        self._becomes = becomes

    def sleep(self, _: float) -> None:
        next(self._becomes)()

    def asked(self, name: str) -> Message:
        """A message that came."""
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        message = Message(RecordDict(), dst_node_id=1, message_type="query")
        message.metadata.__dict__["_message_id"] = name
        self.state.store_message(message)
        return message

    def answers(self, message: Message) -> None:
        """Its ClientApp has a reply."""
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            self.state.store_message(reply)
            self.store.preregister(0, get_object_tree(reply))
        self.state.record_message_processing_start(message.metadata.message_id)
        self.state.record_message_processing_end(message.metadata.message_id)

    def takes(self, message: Message) -> None:
        """A pass through Flower's loop that takes a message: its own function for the rest."""
        self._loop._pull_and_store_message(receive=lambda: (message, None))
        self._loop._push_messages(
            state=self.state, object_store=self.store, send=self._send, push_object=None
        )

    def _send(self, reply: Message, *_: Any) -> tuple[set[str], str]:
        self.sent.append(reply.metadata.reply_to_message_id)
        return set(), ""


def node(loop: ModuleType) -> tuple[Node, Message]:
    """A node that has an old reply, and its next message, whose reply comes at the third wait."""
    made: list[Node] = []
    messages: list[Message] = []
    nothing: Callable[[], None] = lambda: None  # noqa: E731
    waits = iter([nothing, nothing, lambda: made[0].answers(messages[0])])
    loop._pull_and_store_message = lambda *, receive, **_: receive() and 1  # type: ignore[attr-defined]
    made.append(Node(loop, waits))
    made[0].answers(made[0].asked("of the run that ended"))
    messages.append(made[0].asked("of the next run"))
    return made[0], messages[0]


def test_flower_itself_sends_the_reply_that_comes_first(loop: ModuleType) -> None:
    """Without this fault of Flower's there is nothing to mend."""
    stock, message = node(loop)
    stock.takes(message)
    assert stock.sent == ["of the run that ended"]


def test_the_reply_of_the_message_is_waited_for(loop: ModuleType) -> None:
    ours, message = node(loop)
    own_replies.install(loop)
    ours.takes(message)
    assert ours.sent == ["of the run that ended", "of the next run"]


def test_a_flower_without_these_steps_is_refused() -> None:
    with pytest.raises(UnavailableError, match="_pull_and_store_message in other"):
        own_replies.install(ModuleType("other"))
