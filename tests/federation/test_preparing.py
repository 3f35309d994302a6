"""A node that decodes for long says how far it is, and is asked again. The clock is the test's."""

from __future__ import annotations

import dataclasses

import pytest
from flwr.app import RecordDict

from tests.federation.fakes import FakeNode, refuse
from tests.federation.test_rounds import Make, World, world
from tests.services.test_waiting import NOTHING
from zk0d.cli import status
from zk0d.federation.cohort import ASK_AGAIN, PREPARING_INTERVAL
from zk0d.federation.envelope import to_record
from zk0d.federation.learner_client import PREPARING_SECONDS
from zk0d.federation.messages import Query, Refusal
from zk0d.federation.nodes import Node
from zk0d.federation.rounds import QUERY_GRACE
from zk0d.record.events import NodeJoined, NodePreparing
from zk0d.record.reasons import Reason
from zk0d.record.state import RunState
from zk0d.services import superlink

__all__ = ["world"]


def decodes(made: World, node: FakeNode, seconds: float) -> None:
    """The node decodes for so long after it is asked first."""
    began: list[float] = []

    def query(node: FakeNode, task: Query) -> tuple[RecordDict | None, float]:
        began.append(made.grid.now)
        done = made.grid.now - began[0]
        if done >= seconds:
            node.query = None
            return to_record(node.query_reply()), 1.0
        message = f"preparing: decoding {done:,.0f} of {seconds:,.0f} frames"
        refusal = Refusal(reason=Reason.PREPARING, message=message)
        return to_record(refusal), 1.0 if done else PREPARING_SECONDS

    node.query = query


def test_a_wait_says_how_far_a_node_is_that_decodes(world: Make) -> None:
    hours, third = 3 * 3600.0, FakeNode("c")
    made = world([FakeNode("a"), FakeNode("b"), third], **{"min-fit-clients": 3})
    decodes(made, third, hours)
    made.run()
    assert made.lines[-1]["kind"] == "run.finished"
    told = [line["message"] for line in made.of("node.preparing")]
    assert told[0] == "preparing: decoding 0 of 10,800 frames"
    assert len(told) <= 1 + hours / PREPARING_INTERVAL, "it is asked more often than it is written"
    assert third.queried >= hours / (ASK_AGAIN[1] + 5.0)
    assert not made.of("node.refused"), "it refuses nothing"
    assert not made.of("node.left_out")
    said = [line["message"] for line in made.of("run.waiting")]
    assert said[0] == "2 of 3 nodes can train, c is preparing: decoding 0 of 10,800 frames"
    assert f"2 of 3 nodes can train, c is {told[-1]}" in said
    assert len(said) <= len(told) + 1
    assert made.grid.now <= 1000.0 + hours + 2 * ASK_AGAIN[1] + 60.0, "it is soon asked again"
    assert made.of("round.started")[0]["nodes"] == ["a", "b", "c"]


def test_enough_nodes_give_one_that_decodes_a_moment(world: Make) -> None:
    """It is ready within the grace that every first question has."""
    third = FakeNode("c")
    made = world([FakeNode("a"), FakeNode("b"), third])
    decodes(made, third, 0.5 * QUERY_GRACE)
    made.run()
    assert made.of("node.preparing")
    assert [line["nodes"] for line in made.of("round.started")] == [["a", "b", "c"]] * 2


def test_enough_nodes_do_not_wait_for_one_that_decodes_for_hours(world: Make) -> None:
    third = FakeNode("c")
    made = world([FakeNode("a"), FakeNode("b"), third])
    decodes(made, third, 1e6)
    made.run()
    assert [line["nodes"] for line in made.of("round.started")] == [["a", "b"]] * 2
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_node_that_leaves_while_it_decodes_prepares_no_more(world: Make) -> None:
    third = FakeNode("c")
    made = world([FakeNode("a"), FakeNode("b"), third], **{"min-fit-clients": 3})
    decodes(made, third, 7200.0)
    made.grid.at(600.0, lambda: setattr(third, "online", False))
    made.grid.at(3600.0, lambda: setattr(third, "online", True))
    made.run()
    said = [line["message"] for line in made.of("run.waiting")]
    assert "2 of 3 nodes can train" in said
    assert "c is preparing" in said[-1], "and again, when it is back"
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_wait_names_who_refused_after_preparing(world: Make) -> None:
    third = FakeNode("c")
    made = world([FakeNode("a"), FakeNode("b"), third], **{"min-fit-clients": 3})
    decodes(made, third, 600.0)
    made.grid.at(300.0, lambda: setattr(third, "query", refuse("out_of_memory")))
    made.grid.at(3600.0, lambda: setattr(third, "query", None))
    made.run()
    assert [line["reason"] for line in made.of("node.refused")] == ["out_of_memory"]
    last = [line["message"] for line in made.of("run.waiting")][-1]
    assert last == "2 of 3 nodes can train, c cannot train (out_of_memory)"


def test_a_runs_state_has_what_prepares() -> None:
    state = RunState()
    message = "preparing: decoding 1,200 of 20,000 frames, about 40 min left"
    state.apply(NodePreparing(node="left", key="k", message=message))
    assert state.preparing["k"].message == message
    assert state.sentence().endswith(f"left is {message}")


def test_status_lists_how_far_a_node_is(capsys: pytest.CaptureFixture[str]) -> None:
    message = "preparing: decoding 1,200 of 20,000 frames, about 40 min left"
    state = RunState(phase="running")
    state.apply(NodePreparing(node="left", key="k", message=message))
    node = Node(id=1, key="k", name="left", online=True, activated=0.0)
    assert superlink._preparing(node, state) == message
    assert superlink._preparing(node, None) == ""
    assert superlink._preparing(dataclasses.replace(node, online=False), state) == ""
    told = {"name": "left", "online": True, "policy_loss": None, "preparing": message}
    status._print(NOTHING | {"nodes": [told]})
    assert f"node left: online\n  is {message}\n" in capsys.readouterr().out
    state.apply(NodeJoined(node="left", key="k"))
    assert superlink._preparing(node, state) == ""
