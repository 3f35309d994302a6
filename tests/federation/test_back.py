"""A node that goes away in a round and is back before it ends is asked again in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from tests.federation.fakes import NEVER, FakeNode, refuse
from tests.federation.test_rounds import World
from zk0d.federation.envelope import to_record
from zk0d.federation.messages import Train
from zk0d.federation.update import Payload

Make = Callable[..., World]
Answer = tuple[RecordDict | None, float]


@pytest.fixture
def world(tmp_path: Path) -> Make:
    once = {"num-server-rounds": 1, "keep-rounds": 9}
    return lambda nodes, **settings: World(tmp_path / "run", nodes, **{**once, **settings})


def reboots(seconds: float, first: Callable[[FakeNode, Train, Payload], Answer]) -> FakeNode:
    """A node that does ``first`` with a round, and answers in ``seconds`` once it was restarted."""

    def train(node: FakeNode, task: Train, payload: Payload) -> Answer:
        if len(node.trained) == 1:
            return first(node, task, payload)
        return node.update(task, payload), seconds

    return soon(FakeNode("b", step=4.0, activated=5.0, train=train))


def soon(node: FakeNode) -> FakeNode:
    """It answers a query in a moment, whatever its rounds take."""
    node.query = lambda node, task: (to_record(node.query_reply()), 1.0)
    return node


def silent_at_first(*_: Any) -> Answer:
    return None, NEVER


def away(made: World, node: FakeNode, gone: float, back: float) -> None:
    """A node's machine is off between two times; then it has another session."""
    made.grid.at(gone, lambda: setattr(node, "online", False))

    def returns() -> None:
        node.online, node.activated = True, node.activated + 1.0

    made.grid.at(back, returns)


def committed(made: World) -> dict[str, Any]:
    (line,) = made.of("round.committed")[1:]
    return line


@pytest.mark.parametrize("session", ["off for a while", "restarted at once"])
def test_a_node_that_is_back_in_time_has_a_part_in_the_round(world: Make, session: str) -> None:
    node = reboots(5.0, silent_at_first)
    made = world([soon(FakeNode("a", seconds=60.0)), node])
    if session == "off for a while":
        away(made, node, 10.0, 30.0)
    else:
        made.grid.at(12.0, lambda: setattr(node, "activated", 6.0))
    made.run()
    assert [line["reason"] for line in made.of("node.lost")] == ["offline"]
    assert not made.of("round.failed")
    assert committed(made)["lost"] == {}
    assert [each["node"] for each in committed(made)["nodes"]] == ["a", "b"]
    assert np.allclose(made.weights(1)["a"], (1.0 + 4.0) / 2)
    first, again = node.trained
    assert first.deadline_seconds - 100.0 < again.deadline_seconds < first.deadline_seconds - 10.0
    same = {"deadline_seconds": 1.0}
    assert first.model_copy(update=same) == again.model_copy(update=same)


def test_an_error_of_flower_about_an_offline_node_counts_as_lost(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower gives an error in place of its answer, before our own look at the nodes."""
    node = reboots(5.0, lambda node, task, payload: (node.update(task, payload), 30.0))
    made = world([soon(FakeNode("a", seconds=60.0)), node])
    push = made.grid.push_messages

    def pushed(messages: Any) -> list[str]:
        messages = list(messages)
        ids = push(messages)
        if messages[0].metadata.message_type == "train" and len(node.trained) == 1:
            number = ids[[m.metadata.dst_node_id for m in messages].index(2)]
            made.grid.fail(number, "node unavailable")
        return ids

    monkeypatch.setattr(made.grid, "push_messages", pushed)
    pull = made.grid.pull_messages

    def pulled(ids: Any) -> Any:
        answers = pull(ids)
        if any(answer.has_error() for answer in answers):
            node.online = False
            away(made, node, made.grid.now - 1000.0, made.grid.now - 990.0)
        return answers

    monkeypatch.setattr(made.grid, "pull_messages", pulled)
    made.run()
    assert not made.of("update.refused")
    assert [line["reason"] for line in made.of("node.lost")] == ["offline"]
    assert [each["node"] for each in committed(made)["nodes"]] == ["a", "b"]


def test_a_nodes_learner_is_asked_first(world: Make) -> None:
    """A machine's SuperNode is back before its learner is."""
    node = reboots(1.0, silent_at_first)

    def query(node: FakeNode, task: Any) -> Answer:
        if node.trained and made.grid.now < 1040.0:
            return refuse("learner_gone")()
        return to_record(node.query_reply()), 1.0

    made = world([soon(FakeNode("a", seconds=70.0)), node])
    away(made, node, 10.0, 20.0)
    node.query = query
    made.run()
    assert len(node.trained) == 2
    assert node.trained[1].deadline_seconds <= node.trained[0].deadline_seconds - 30.0
    assert [each["node"] for each in committed(made)["nodes"]] == ["a", "b"]


def test_an_answer_counts_once(world: Make) -> None:
    """What the node was sent before is answered, too: its SuperNode was away, and not its work."""
    node = reboots(5.0, lambda node, task, payload: (node.update(task, payload), 45.0))
    made = world([soon(FakeNode("a", seconds=60.0)), node])
    away(made, node, 10.0, 30.0)
    made.run()
    assert len(node.trained) == 2
    assert [each["node"] for each in committed(made)["nodes"]] == ["a", "b"]
    assert len(made.of("update.accepted")) == 2
    assert np.allclose(made.weights(1)["a"], (1.0 + 4.0) / 2)


def test_a_node_that_goes_away_twice_is_asked_twice(world: Make) -> None:
    def train(node: FakeNode, task: Train, payload: Payload) -> Answer:
        if len(node.trained) < 3:
            return None, NEVER
        return node.update(task, payload), 1.0

    node = soon(FakeNode("b", activated=5.0, train=train))
    made = world([soon(FakeNode("a", seconds=80.0)), node])
    away(made, node, 10.0, 20.0)
    away(made, node, 40.0, 50.0)
    made.run()
    assert len(node.trained) == 3
    assert len(made.of("node.lost")) == 2
    assert [each["node"] for each in committed(made)["nodes"]] == ["a", "b"]


def test_a_round_that_is_over_without_the_node_is_not_sent_again(world: Make) -> None:
    node = reboots(5.0, silent_at_first)
    made = world([FakeNode("a"), FakeNode("c"), node], **{"num-server-rounds": 2})
    away(made, node, 8.0, 9.5)
    made.run()
    first = made.of("round.committed")[1]
    assert first["lost"] == {"b": "offline"}
    assert [task.round for task in node.trained] == [1, 2]


def test_a_learner_that_fails_in_its_own_session_is_not_asked_again_in_the_round(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ClientApp died: Flower says so, and the node was there all the time."""
    node = reboots(5.0, lambda node, task, payload: (node.update(task, payload), 10.0))
    made = world([soon(FakeNode("a", seconds=60.0)), soon(FakeNode("c", seconds=60.0)), node])
    push = made.grid.push_messages

    def pushed(messages: Any) -> list[str]:
        messages = list(messages)
        ids = push(messages)
        if messages[0].metadata.message_type == "train":
            made.grid.fail(ids[[m.metadata.dst_node_id for m in messages].index(3)], "it died")
        return ids

    monkeypatch.setattr(made.grid, "push_messages", pushed)
    made.run()
    assert [line["reason"] for line in made.of("update.refused")] == ["flower_error"]
    assert len(node.trained) == 1
