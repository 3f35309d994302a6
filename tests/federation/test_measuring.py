"""Nodes evaluate weights on the episodes that they hold out, and the gate goes by it.

Fake nodes on a clock of their own; the real ones are in test_in_process.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from tests.federation.fakes import (
    NEVER,
    FakeEvaluator,
    FakeGrid,
    FakeNode,
    RunOnFakes,
    refuse,
    silent,
)
from zk0d.config.run import run_settings
from zk0d.federation import measuring
from zk0d.federation.envelope import to_record
from zk0d.federation.measuring import Measuring
from zk0d.federation.messages import Measure
from zk0d.federation.update import Payload
from zk0d.record.held_out import change_of
from zk0d.record.journal import Journal
from zk0d.record.state import RunState
from zk0d.record.summary import RunSummary

SETTINGS = {
    "num-server-rounds": 2,
    "local-steps": 4,
    "max-update-ratio": 0.0,
    "drift-correction": "none",
    "uplink-codec": "fp32",
    "downlink-codec": "fp32",
    "round-deadline": 600.0,
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program handles it."""


class World(RunOnFakes):
    """A run with two nodes that hold out episodes, and one that does not; no evaluation data."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder / "run"
        self.settings = run_settings({**SETTINGS, **settings})
        self.ann = FakeNode("ann", held_out=3)
        self.bo = FakeNode("bo", held_out=2)
        self.cy = FakeNode("cy")
        self.nodes = [self.ann, self.bo, self.cy]
        self.evaluator = FakeEvaluator(has_recordings=False)

    def run(
        self, *, resumed_by: str = "", happens: Callable[[FakeGrid], None] | None = None
    ) -> None:
        self.grid = FakeGrid(self.nodes)
        if happens is not None:
            happens(self.grid)
        self.run_on_grid(resumed_by)

    @property
    def summary(self) -> RunSummary:
        """Of the newest checkpoint."""
        return self.evaluator.released[-1][0].summary

    @property
    def checkpoint(self) -> dict[str, Any]:
        return self.of("checkpoint.written")[-1]

    @property
    def left_out(self) -> list[tuple[int, str, str]]:
        return [(e["round"], e["node"], e["reason"]) for e in self.of("node.not_measured")]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def asked(node: FakeNode) -> list[int]:
    """The rounds whose weights it evaluated, outside of training."""
    return [task.of for task in node.measured]


def test_a_run_without_evaluation_data_passes_by_its_nodes_losses(world: World) -> None:
    world.run()
    assert [asked(node) for node in world.nodes] == [[2], [2], []], (
        "who holds out nothing is spared"
    )
    assert world.checkpoint["passed"], world.checkpoint["reasons"]
    (reason,) = world.checkpoint["reasons"]
    assert reason.startswith("it beats the baseline (round 0): loss ")
    assert "on 2 nodes, 5 held-out episodes, spread" in reason
    found = change_of(world.summary)
    assert found is not None
    assert [(each.node, each.episodes) for each in found.nodes] == [("ann", 3), ("bo", 2)]
    assert world.of("run.finished")
    assert world.evaluator.rounds == [0], "weights go to an evaluator without recordings once"
    assert all(line["evaluation"] is None for line in world.of("round.committed"))


@pytest.mark.parametrize(
    ("gains", "says"),
    [
        ((-0.1, -0.1), "it is no better than the baseline (round 0)"),
        ((0.1, -0.05), "it beats the baseline (round 0) by less than the nodes' spread"),
    ],
)
def test_a_run_whose_nodes_losses_rose_does_not_pass(
    world: World, gains: tuple[float, float], says: str
) -> None:
    world.ann.gains, world.bo.gains = gains
    world.run()
    assert not world.checkpoint["passed"]
    assert world.checkpoint["reasons"][0].startswith(says)


def test_one_nodes_word_is_told_as_such(world: World) -> None:
    world.bo.held_out = 0
    world.run()
    assert world.checkpoint["passed"]
    assert "on one node alone, ann, 3 held-out episodes" in world.checkpoint["reasons"][0]


def test_the_coordinators_own_recordings_decide_and_the_nodes_stand_beside(world: World) -> None:
    world.evaluator = FakeEvaluator(loss=lambda weights: float(weights.arrays()["a"].mean()))
    world.run()
    assert not world.checkpoint["passed"], "the loss on its own recordings rose"
    assert "no better than the baseline (round 0): loss 3.2500" in world.checkpoint["reasons"][0]
    assert world.evaluator.rounds == [0, 1, 2]
    found = change_of(world.summary)
    assert found is not None
    assert found.mean < 0


@pytest.mark.parametrize("setting", [{"evaluate-on-nodes": False}, {"eval-frequency": 0}])
def test_nodes_are_not_asked_if_the_run_does_not_evaluate_there(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    world = World(tmp_path, **setting)
    world.run()
    assert [asked(node) for node in world.nodes] == [[], [], []]
    assert not world.of("node.measured")
    assert not world.checkpoint["passed"]
    assert "round 2 was not evaluated" in world.checkpoint["reasons"][0]


def test_a_node_that_is_away_at_the_end_is_left_out_with_a_word(world: World) -> None:
    def leaves(node: FakeNode, task: Any, payload: Payload) -> tuple[RecordDict, float]:
        if task.round == 2:
            world.grid.at(world.grid.now - 1000.0 + 1.0, lambda: setattr(node, "online", False))
        return node.update(task, payload), 1.0

    world.bo.train = leaves
    world.run()
    assert world.left_out == [(2, "bo", "offline")]
    assert world.checkpoint["passed"]
    assert "one node alone, ann" in world.checkpoint["reasons"][0]
    assert world.summary.not_measured == {"bo": "offline"}
    assert world.of("run.finished")


def test_a_node_that_leaves_while_it_evaluates_is_not_waited_for(world: World) -> None:
    def leaves(node: FakeNode, task: Measure, payload: Payload) -> tuple[None, float]:
        node.online = False
        return None, NEVER

    world.bo.measure = leaves
    world.run()
    assert world.left_out == [(2, "bo", "offline")]
    assert world.grid.now < 1000.0 + 120.0, "the deadline is after ten minutes"


def test_a_node_that_does_not_answer_costs_a_deadline_and_no_run(world: World) -> None:
    world.bo.measure = silent
    world.run()
    assert world.left_out == [(2, "bo", "deadline")]
    assert world.checkpoint["passed"]
    assert 1600.0 < world.grid.now < 1660.0


def test_no_node_is_there_any_more(world: World) -> None:
    world.ann.measure = world.bo.measure = refuse("resting")
    world.run()
    assert {reason for _, _, reason in world.left_out} == {"resting"}
    assert not world.checkpoint["passed"]
    assert world.of("run.finished")


def test_a_learner_that_is_busy_is_asked_again(world: World) -> None:
    answers = [refuse("learner_busy"), refuse("learner_gone")]

    def busy(node: FakeNode, task: Measure, payload: Payload) -> tuple[RecordDict | None, float]:
        if answers:
            return answers.pop(0)()
        return to_record(node.measure_reply(task, payload)), 1.0

    world.bo.measure = busy
    world.run()
    assert asked(world.bo) == [2, 2, 2]
    assert [task.deadline_seconds for task in world.bo.measured] == sorted(
        (task.deadline_seconds for task in world.bo.measured), reverse=True
    ), "each time with the time that is left"
    assert world.left_out == []
    assert len(world.of("node.measured")) == 2


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"loss": math.nan}, "not_finite"),
        ({"losses": (0.1, math.inf)}, "not_finite"),
        ({"loss": None}, "not_finite"),
        ({"frames": 257}, "implausible_samples"),
        ({"of": 1}, "wrong_round"),
        ({"base": "0"}, "wrong_base"),
    ],
)
def test_figures_that_cannot_be_are_left_out(
    world: World, facts: dict[str, Any], reason: str
) -> None:
    def lies(node: FakeNode, task: Measure, payload: Payload) -> tuple[RecordDict, float]:
        around = {key: value for key, value in facts.items() if key in ("of", "base")}
        inside = {key: value for key, value in facts.items() if key not in around}
        reply = node.measure_reply(task, payload, **inside)
        return to_record(reply.model_copy(update=around)), 1.0

    world.bo.measure = lies
    world.run()
    assert world.left_out == [(2, "bo", reason)]
    assert world.of("update.refused") == [], "nobody trained badly"
    assert world.of("run.finished")


def test_a_held_out_loss_of_infinity_does_not_end_the_run(world: World) -> None:
    def lies(node: FakeNode, task: Any, payload: Payload) -> tuple[RecordDict, float]:
        return node.update(task, payload, holdout_loss=math.inf), 1.0

    world.bo.train = lies
    world.run()
    assert {e["reason"] for e in world.of("update.refused")} == {"not_finite"}
    assert world.of("run.finished")


def test_a_node_that_sits_out_has_no_say(tmp_path: Path) -> None:
    world = World(tmp_path, **{"max-strikes": 1})

    def bad(node: FakeNode, task: Any, payload: Payload) -> tuple[RecordDict, float]:
        return node.update(task, payload, change=lambda arrays: arrays, base="0"), 1.0

    world.bo.train = bad
    world.run()
    assert world.left_out == [(2, "bo", "sits_out")]


def test_a_node_that_came_late_evaluates_round_0_as_well(tmp_path: Path) -> None:
    """So does one whose learner has restarted since: it names other frames."""
    world = World(tmp_path, **{"num-server-rounds": 6, "keep-rounds": 1})
    world.bo.online = False

    def restarts(node: FakeNode, task: Any, payload: Payload) -> tuple[RecordDict, float]:
        record = node.update(task, payload)
        if task.round == 3:
            node.mark = "b" * 16
            world.bo.online = True
        return record, 5.0

    world.ann.train = restarts
    world.run()
    assert asked(world.ann) == [6, 0]
    assert asked(world.bo) == [6, 0]
    assert world.checkpoint["passed"]
    assert "on 2 nodes" in world.checkpoint["reasons"][0]
    (released,) = world.evaluator.released
    assert released[0].round == 6
    last = Journal(world.folder, "1").round_folder(6)
    assert last.exists(), "the weights that are released are the last round's"
    spec, base = world.evaluator.released[0][0].base, world.evaluator.released[0][1]
    assert spec == base


def test_a_checkpoint_in_the_middle_is_evaluated_too(tmp_path: Path) -> None:
    world = World(tmp_path, **{"num-server-rounds": 4, "checkpoint-interval": 2})
    world.run()
    assert asked(world.ann) == [2, 4]
    assert [line["passed"] for line in world.of("checkpoint.written")] == [True, True]
    assert [task.round for task in world.ann.trained] == [1, 2, 3, 4]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_server_app_that_is_killed_while_nodes_evaluate_asks_only_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    world = World(tmp_path)
    world.bo.seconds = 20.0
    real = Measuring.take
    came: list[str] = []

    def deadly(self: Measuring, key: str, answer: Any) -> None:
        if len(came) == after:
            raise Killed
        came.append(key)
        real(self, key, answer)

    with monkeypatch.context() as patch:
        if after < 2:
            patch.setattr(Measuring, "take", deadly)
        else:
            patch.setattr(FakeEvaluator, "release", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            world.run()
    assert not world.of("run.finished")
    done = after
    assert len(world.of("node.measured")) == done
    for node in world.nodes:
        node.measured.clear()
    world.run(resumed_by="2")
    assert sum(len(node.measured) for node in world.nodes) == 2 - done
    assert len(world.of("node.measured")) == 2
    assert world.checkpoint["passed"]
    assert world.of("run.finished")
    assert all(len(node.trained) == 2 for node in world.nodes), "no round is trained again"


def test_a_run_that_is_resumed_at_its_end_does_not_wait_for_nodes_that_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Measuring, "take", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            world.run()
    for node in world.nodes:
        node.online = False
    world.run(resumed_by="2")
    assert sorted(world.left_out) == [(2, "ann", "offline"), (2, "bo", "offline")]
    assert world.grid.now < 1000.0 + measuring.MEET_SECONDS + 10.0
    assert world.of("run.finished")
    assert not world.checkpoint["passed"]


def test_the_status_tells_the_newest_loss_of_the_nodes(world: World) -> None:
    world.run()
    told = RunState.read(world.folder).status()["on_nodes"]
    assert (told["round"], told["nodes"]) == (2, 2)
    assert told["loss"] == pytest.approx(
        (12 * world.summary.measured[-2].loss + 8 * world.summary.measured[-1].loss) / 20
    )
