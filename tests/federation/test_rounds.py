"""The round engine against nodes that misbehave, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import RecordDict

from tests.federation.fakes import (
    STATISTICS,
    FakeEvaluator,
    FakeGrid,
    FakeNode,
    refuse,
    silent,
)
from tests.record.lines import read_lines
from zk0d.config.machine import ServerSettings
from zk0d.config.run import run_settings
from zk0d.daemon.looks import PART
from zk0d.errors import Zk0dError
from zk0d.federation.cohort import PRESENCE_INTERVAL, Cohort
from zk0d.federation.envelope import to_record
from zk0d.federation.learner_client import LearnerError
from zk0d.federation.messages import Query, Train
from zk0d.federation.rounds import RunFailedError
from zk0d.federation.run import Run
from zk0d.federation.update import Payload
from zk0d.flower.replies import PAGE
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import Components, RobotDescription
from zk0d.record.journal import Journal, committed_rounds
from zk0d.record.reasons import Reason
from zk0d.record.state import RunState

Lines = list[dict[str, Any]]


class World:
    """A grid of fake nodes and a run on it."""

    closed = False  #: no node can come that is not there at the start

    def __init__(self, folder: Path, nodes: list[FakeNode], **settings: Any) -> None:
        self.grid = FakeGrid(nodes)
        self.evaluator = FakeEvaluator()
        self.folder = folder
        self.settings = run_settings(
            {
                "num-server-rounds": 2,
                "local-steps": 4,
                "server-momentum": 0.0,
                "round-deadline": 100.0,
                "node-wait": 50.0,
                # All weights of the fakes are 0 or 1, all updates far longer.
                "max-update-ratio": 0.0,
                "uplink-codec": "fp32",
                "downlink-codec": "fp32",
                **settings,
            }
        )

    def run(self, resumed_by: str = "") -> Lines:
        run = Run(
            self.grid,
            self.settings,
            ServerSettings(state=self.folder),
            Journal(self.folder, "1"),
            self.evaluator,
            resumed_by=resumed_by,
            closed=self.closed,
            clock=self.grid.clock,
            sleep=self.grid.sleep,
        )
        try:
            run.run()
        finally:
            self.lines = list(read_lines(self.folder))
        return self.lines

    def of(self, kind: str) -> Lines:
        return [line for line in self.lines if line["kind"] == kind]

    def weights(self, number: int) -> dict[str, np.ndarray]:
        folder = self.folder / "rounds" / f"{number:05d}"
        return safetensors.numpy.load_file(folder / "global.safetensors")


Make = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> Make:
    return lambda nodes, **settings: World(tmp_path / "run", nodes, **settings)


def test_a_run_of_two_nodes(world: Make) -> None:
    made = world([FakeNode("a", step=1.0), FakeNode("b", step=3.0)], **{"keep-rounds": 9})
    made.run()
    assert [line["round"] for line in made.of("round.committed")] == [0, 1, 2]
    assert np.allclose(made.weights(0)["a"], 0.0)
    assert np.allclose(made.weights(1)["a"], 2.0), "the mean of 1 and 3"
    assert np.allclose(made.weights(2)["b"], 5.0)
    assert made.evaluator.rounds == [0, 1, 2]
    assert made.lines[-1]["kind"] == "run.finished"
    committed = made.of("round.committed")[1]
    assert [node["node"] for node in committed["nodes"]] == ["a", "b"]
    assert committed["samples"] == 2 * 4 * 32
    # float32, and beside it a variate of int8: a byte a value and a scale a tensor.
    update, variate = 10 * 4, 10 + 2 * 4
    assert committed["bytes_down"] == 2 * update, "the mean variate follows in round 2"
    assert committed["bytes_up"] == 2 * (update + variate)
    assert made.of("round.committed")[2]["bytes_down"] == 2 * (update + variate)
    assert committed["nodes"][0]["update_norm"] == pytest.approx(np.sqrt(10))
    assert committed["evaluation"]["loss"] == pytest.approx(2.0)
    assert set(committed["seconds"]) == {
        "send",
        "collect",
        "aggregate",
        "evaluate",
        "commit",
    }


def test_every_node_gets_the_same_task_with_a_running_step(world: Make) -> None:
    nodes = [FakeNode("a"), FakeNode("b")]
    world(nodes).run()
    for first, second in zip(nodes[0].trained, nodes[1].trained, strict=True):
        assert first == second
    assert [task.first_step for task in nodes[0].trained] == [0, 4]
    assert [task.round for task in nodes[0].trained] == [1, 2]
    schedule = nodes[0].trained[0].schedule
    assert isinstance(schedule, CosineSchedule)
    assert schedule.total_steps == 8
    assert nodes[0].trained[0].base != nodes[0].trained[1].base


def with_pace(steps: int) -> Callable[..., tuple[RecordDict | None, float]]:
    """A node that has time for so many steps."""

    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        samples = steps * task.training.batch_size
        return node.update(task, payload, steps=steps, samples=samples), node.seconds

    return train


def test_a_slow_and_a_fast_node_both_count(world: Make) -> None:
    nodes = [
        FakeNode("laptop", step=1.0, train=with_pace(2)),
        FakeNode("workstation", step=3.0, train=with_pace(8)),
    ]
    made = world(nodes, **{"round-minutes": 1.0, "keep-rounds": 9})
    made.run()
    for line in made.of("round.committed")[1:]:
        assert {node["node"]: node["steps"] for node in line["nodes"]} == {
            "laptop": 2,
            "workstation": 8,
        }
        assert not line["refused"]
    assert [task.first_step for task in nodes[0].trained] == [0, 4], "by local-steps"
    assert made.weights(1)["a"] == pytest.approx(2.0), "equally"


def test_a_node_that_claims_more_steps_than_the_bounds_is_refused(world: Make) -> None:
    nodes = [FakeNode("a"), FakeNode("b"), FakeNode("liar", train=with_pace(9))]
    made = world(nodes, **{"round-minutes": 1.0, "num-server-rounds": 1})
    made.run()
    assert made.of("round.committed")[1]["refused"] == {"liar": "implausible_samples"}
    assert nodes[2].notices[0].reason == "implausible_samples"


def test_an_update_of_many_steps_may_be_longer(world: Make) -> None:
    """A workstation among laptops: its update is eight times as long, for eight times the steps."""
    laptops = [FakeNode(name, step=1.0, train=with_pace(1)) for name in "abc"]
    nodes = [*laptops, FakeNode("workstation", step=8.0, train=with_pace(8))]
    made = world(nodes, **{"round-minutes": 1.0, "num-server-rounds": 1})
    made.run()
    assert not made.of("round.committed")[1]["refused"]
    nodes[3].train = with_pace(1)
    made = world(nodes, **{"round-minutes": 1.0, "num-server-rounds": 1})
    made.folder = made.folder.with_name("other")
    made.run()
    refused = made.of("round.committed")[1]["refused"]
    assert refused == {"workstation": "norm_outlier"}, "as long, for no more steps"


@pytest.mark.parametrize(("steps", "refused"), [(1, {}), (8, {"odd": "norm_outlier"})])
def test_a_variate_of_few_steps_may_be_longer(
    world: Make, steps: int, refused: dict[str, str]
) -> None:
    """It counts by its samples, so a long one of many steps is refused."""
    nodes = [FakeNode(name, train=with_pace(8)) for name in "abc"]
    odd = FakeNode("odd", gradient=0.8, train=with_pace(steps))
    how = {"round-minutes": 1.0, "num-server-rounds": 1, "min-fit-clients": 3}
    made = world([*nodes, odd], **how)
    made.run()
    assert made.of("round.committed")[1]["refused"] == refused


def test_statistics_are_asked_for_once_and_merged_once(world: Make) -> None:
    nodes = [FakeNode("a"), FakeNode("b")]
    made = world(nodes)
    made.run()
    assert [node.queried for node in nodes] == [1, 1]
    sent = nodes[0].trained[0].statistics
    assert sent.nodes == 2
    assert sent.features["action"].count == 2 * STATISTICS.features["action"].count
    assert made.of("statistics.merged")[0]["sha256"] == sent.sha256
    assert (made.folder / "statistics.json").exists()


def test_an_owner_may_keep_the_statistics(world: Make) -> None:
    nodes = [FakeNode("a"), FakeNode("b", shares=False)]
    made = world(nodes)
    made.run()
    assert made.of("statistics.merged")[0]["nodes"] == 1
    assert len(nodes[1].trained) == 2, "it takes part all the same"


def test_a_run_without_shared_statistics_fails(world: Make) -> None:
    made = world([FakeNode("a", shares=False), FakeNode("b", shares=False)])
    with pytest.raises(Zk0dError, match="at least one must"):
        made.run()
    assert made.lines[-1]["kind"] == "run.failed"
    assert made.lines[-1]["reason"] == "no_statistics"


def test_flower_is_asked_for_all_answers_at_once(tmp_path: Path) -> None:
    few, many = (
        World(tmp_path / str(number), [FakeNode(str(i)) for i in range(number)])
        for number in (2, 5 * PAGE)
    )
    for made in (few, many):
        made.run()
    assert max(many.grid.asked) == 5 * PAGE
    # Each of the two rounds, and the queries before them, come in five pages in place of one.
    assert len(many.grid.asked) - len(few.grid.asked) <= 3 * 4
    assert len(many.of("round.committed")[-1]["nodes"]) == 5 * PAGE


def test_momentum_is_kept_with_the_round(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b")], **{"server-momentum": 0.5})
    made.run()
    # Nesterov's: V = 1, G = 1 + 0.5 V; V = 1.5, G = 2.5 + 0.5 V
    assert np.allclose(made.weights(2)["a"], 3.25)
    velocity = safetensors.numpy.load_file(
        made.folder / "rounds" / "00002" / "momentum.safetensors"
    )
    assert np.allclose(velocity["a"], 1.5)


def poison(change: Callable[[dict[str, Any]], Any]) -> Callable[..., tuple[RecordDict, float]]:
    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
        def changed(arrays: dict[str, Any]) -> dict[str, Any]:
            change(arrays)
            return arrays

        return node.update(task, payload, changed), 1.0

    return train


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: a["a"].fill(np.nan), "not_finite"),
        (lambda a: a["a"].fill(np.inf), "not_finite"),
        (lambda a: a.pop("a"), "manifest_mismatch"),
        (lambda a: a.update(c=np.ones(2, np.float32)), "manifest_mismatch"),
        (lambda a: a.update(a=np.ones((3, 2), np.float32)), "manifest_mismatch"),
    ],
)
def test_a_poisoned_update_never_reaches_the_model(
    world: Make, change: Callable[[Any], Any], reason: str
) -> None:
    nodes = [FakeNode("a"), FakeNode("b"), FakeNode("bad", train=poison(change))]
    made = world(nodes)
    made.run()
    assert np.allclose(made.weights(2)["a"], 2.0)
    refused = made.of("update.refused")
    assert [(line["node"], line["reason"]) for line in refused] == [("bad", reason)] * 2
    assert made.of("round.committed")[1]["refused"] == {"bad": reason}


def test_a_replayed_update_is_refused(world: Make) -> None:
    kept: list[RecordDict] = []

    def replay(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
        kept.append(node.update(task, payload))
        return kept.pop(0) if len(kept) > 1 else node.update(task, payload), 1.0

    made = world([FakeNode("a"), FakeNode("b"), FakeNode("old", train=replay)])
    made.run()
    assert [line["reason"] for line in made.of("update.refused")] == ["wrong_round"]


def test_claimed_samples_are_bounded(world: Make) -> None:
    def boast(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
        return node.update(task, payload, samples=10**9), 1.0

    made = world([FakeNode("a"), FakeNode("b"), FakeNode("boaster", step=99.0, train=boast)])
    made.run()
    assert np.allclose(made.weights(2)["a"], 2.0)
    assert made.of("update.refused")[0]["reason"] == "implausible_samples"


def test_samples_weigh(world: Make) -> None:
    def half(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
        return node.update(task, payload, samples=64, steps=2), 1.0

    made = world([FakeNode("a", step=1.0), FakeNode("b", step=4.0, train=half)])
    made.run()
    assert np.allclose(made.weights(1)["a"], (2 * 1.0 + 4.0) / 3)


def test_the_round_ends_at_its_deadline(world: Make) -> None:
    nodes = [FakeNode("a"), FakeNode("b"), FakeNode("slow", train=silent)]
    made = world(nodes, **{"max-staleness": 0})
    made.run()
    assert [line["reason"] for line in made.of("node.lost")] == ["deadline"] * 2
    assert [line["round"] for line in made.of("round.committed")] == [0, 1, 2]
    assert made.of("round.committed")[1]["lost"] == {"slow": "deadline"}


def test_the_round_ends_when_all_are_in(world: Make) -> None:
    made = world([FakeNode("a", seconds=3.0), FakeNode("b", seconds=9.0)])
    made.run()
    collect = made.of("round.committed")[1]["seconds"]["collect"]
    assert 9.0 <= collect < 11.0


def test_a_round_that_takes_long_is_looked_at_less_often(world: Make) -> None:
    nodes = [FakeNode("a", seconds=90.0), FakeNode("b", seconds=90.0)]
    for node in nodes:
        node.query = lambda node, task: (to_record(node.query_reply()), 1.0)
    made = world(nodes, **{"num-server-rounds": 1})
    made.run()
    collect = made.of("round.committed")[1]["seconds"]["collect"]
    assert 90.0 <= collect <= 90.0 * (1 + 2 * PART), "and its end is seen in time"
    at_each_poll = collect / ServerSettings().poll_interval
    assert len(made.grid.asked) < at_each_poll / 2, "Flower has to answer each look"


def test_a_late_answer_is_not_of_the_next_round(world: Make) -> None:
    late = FakeNode("late", step=50.0, seconds=104.0)
    made = world([FakeNode("a"), FakeNode("b"), late], **{"max-staleness": 0})
    made.grid.nodes[3].query = lambda node, task: (to_record(node.query_reply()), 1.0)
    made.run()
    assert np.allclose(made.weights(2)["a"], 2.0)


def test_a_node_that_leaves_is_noticed_by_the_superlinks_view(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b"), FakeNode("gone", train=silent)])

    def leave() -> None:
        made.grid.nodes[3].online = False

    made.grid.at(12.0, leave)
    made.run()
    assert made.of("node.lost")[0]["reason"] == "offline"
    assert made.of("round.committed")[1]["seconds"]["collect"] < 30.0
    assert made.of("round.started")[1]["nodes"] == ["a", "b"]


@pytest.mark.parametrize("back", [False, True], ids=["left", "restarted"])
def test_an_answer_counts_whose_node_left_before_the_next_look(
    world: Make, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """The answer comes after the look for answers and before the look at the nodes."""
    made = world([FakeNode("a"), FakeNode("b"), FakeNode("leaves", seconds=1000.0, activated=5.0)])
    node = made.grid.nodes[3]
    node.query = lambda node, task: (to_record(node.query_reply()), 1.0)
    real = Cohort._give_up_lost
    left: list[str] = []

    def leaves_just_before(self: Cohort) -> None:
        looks = made.grid.now - self._last_presence >= PRESENCE_INTERVAL
        for name, (due, answer) in made.grid._answers.items():
            if looks and due > made.grid.now + 500.0:
                made.grid._answers[name] = (made.grid.now, answer)
                node.online, node.activated = back, 6.0
                left.append(name)
        real(self)

    monkeypatch.setattr(Cohort, "_give_up_lost", leaves_just_before)
    made.run()
    assert left
    assert made.of("node.lost") == []
    assert [each["node"] for each in made.of("round.committed")[1]["nodes"]] == ["a", "b", "leaves"]


@pytest.mark.parametrize("session", [1e9, 2.0], ids=["later", "after the clock was set back"])
def test_a_node_with_a_new_session_has_not_seen_the_message(world: Make, session: float) -> None:
    restarted = FakeNode("restarted", train=silent, activated=5.0)
    made = world([FakeNode("a"), FakeNode("b"), restarted])

    def restart() -> None:
        made.grid.nodes[3].activated = session

    made.grid.at(12.0, restart)
    made.run()
    assert made.of("node.lost")[0]["reason"] == "offline"


def test_a_late_node_joins_the_next_round(world: Make) -> None:
    late = FakeNode("late", online=False)
    made = world([FakeNode("a"), FakeNode("b"), late], **{"num-server-rounds": 4})

    def arrive() -> None:
        late.online = True

    made.grid.at(12.0, arrive)
    made.run()
    assert late.trained
    assert late.trained[0].round > 1
    assert late.trained[0].first_step == (late.trained[0].round - 1) * 4, "in step with the others"
    assert made.of("statistics.merged")[0]["nodes"] == 2, "statistics are merged once"


LASTING = [reason for reason in Reason if not reason.passes]


@pytest.mark.parametrize("reason", LASTING)
@pytest.mark.parametrize("when", ["query", "train"])
def test_a_closed_run_does_not_wait_for_a_reason_that_stays(
    world: Make, reason: Reason, when: str
) -> None:
    bad = FakeNode("bad")
    setattr(bad, when, refuse(reason))
    made = world([FakeNode("a"), bad], **{"node-wait": 1e6})
    made.closed = True
    with pytest.raises(RunFailedError, match=f" of 2 nodes .*come: because of {reason}\\.$"):
        made.run()
    assert made.grid.now < 1100.0


def test_a_closed_run_names_the_same_reason_once(world: Make) -> None:
    made = world([FakeNode(str(number), query=refuse("data_error")) for number in range(4)])
    made.closed = True
    with pytest.raises(RunFailedError, match=r"can train, and no other can come: [^:;]*\.$"):
        made.run()


def test_a_closed_run_waits_for_a_reason_that_passes(world: Make) -> None:
    refusals = iter([refuse("out_of_memory"), refuse("learner_gone")])
    node = FakeNode("b")
    node.query = lambda node, task: next(refusals, lambda *_: (to_record(node.query_reply()), 1.0))(
        node, task
    )
    made = world([FakeNode("a"), node])
    made.closed = True
    made.run()
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_closed_run_does_not_wait_for_more_nodes_than_there_are(world: Make) -> None:
    made = world([FakeNode("a")], **{"node-wait": 1e6})
    made.closed = True
    with pytest.raises(RunFailedError, match="no other can come; lower min-fit-clients"):
        made.run()


def test_a_closed_run_does_not_wait_for_nodes_that_sit_out(world: Make) -> None:
    bad = poison(lambda arrays: arrays["a"].fill(np.nan))
    made = world(
        [FakeNode("a"), FakeNode("bad", train=bad)], **{"max-strikes": 1, "node-wait": 1e6}
    )
    made.closed = True
    with pytest.raises(RunFailedError, match="1 of 2 nodes are online and in good standing"):
        made.run()


def test_a_node_is_waited_for(world: Make) -> None:
    second = FakeNode("b", online=False)
    made = world([FakeNode("a"), second])

    def arrive() -> None:
        second.online = True

    made.grid.at(40.0, arrive)
    made.run()
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_wait_for_nodes_does_not_count_for_the_rounds_deadline(world: Make) -> None:
    """Nodes that are away before a round, longer than the round may take."""
    a, b = FakeNode("a"), FakeNode("b")
    made = world([a, b], **{"node-wait": 500.0})

    def leaves(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        if task.round == 1:
            since_start = made.grid.now - 1000.0
            made.grid.at(since_start + 3.0, lambda: setattr(b, "online", False))
            made.grid.at(since_start + 200.0, lambda: setattr(b, "online", True))
        return node.update(task, payload), 1.0

    b.train = leaves
    made.run()
    assert not made.of("round.failed")
    assert made.of("node.lost") == []
    assert made.of("round.committed")[2]["seconds"]["send"] < 50.0


def test_a_node_that_never_answers_the_query_does_not_hold_the_run(world: Make) -> None:
    made = world(
        [FakeNode("a"), FakeNode("b"), FakeNode("mute", query=silent)], **{"node-wait": 500.0}
    )
    made.run()
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_node_whose_query_was_lost_is_asked_again(world: Make) -> None:
    """It is online all the time, and its first query never reached its app."""
    lost = FakeNode("lost")

    def query(node: FakeNode, task: Query) -> tuple[RecordDict | None, float]:
        return silent() if node.queried == 1 else (to_record(node.query_reply()), 1.0)

    lost.query = query
    minutes = {"num-server-rounds": 20, "node-wait": 500.0, "round-deadline": 300.0}
    made = world([FakeNode("a", seconds=60.0), FakeNode("b"), lost], **minutes)
    made.run()
    assert lost.queried == 2
    assert 0 < len(lost.trained) < 20


def test_a_query_that_was_sent_again_has_one_answer(world: Make) -> None:
    slow = FakeNode("slow")
    slow.query = lambda node, task: (to_record(node.query_reply()), 400.0)
    minutes = {"num-server-rounds": 20, "node-wait": 500.0, "round-deadline": 300.0}
    made = world([FakeNode("a", seconds=60.0), FakeNode("b"), slow], **minutes)
    made.run()
    assert slow.queried == 2
    assert sorted(line["node"] for line in made.of("node.joined")) == ["a", "b", "slow"]


def test_a_round_without_quorum_is_repeated_then_a_closed_run_fails(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b", train=silent)], **{"max-staleness": 0})
    made.closed = True
    told = r"round 1 failed 3 times in a row; .* updates of b \(deadline\) are missing"
    with pytest.raises(RunFailedError, match=told):
        made.run()
    failed = made.of("round.failed")
    assert [line["round"] for line in failed] == [1, 1, 1]
    assert failed[0]["reason"] == "quorum"
    assert committed_rounds(made.folder) == [0], "what is committed stays"


def test_one_failed_round_is_made_up_for(world: Make) -> None:
    node = FakeNode("b")
    answers = iter([silent])

    def once(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        behave = next(answers, None)
        return behave() if behave else (node.update(task, payload), 1.0)

    node.train = once
    made = world([FakeNode("a"), node])
    made.run()
    assert [line["round"] for line in made.of("round.committed")] == [0, 1, 2]
    assert [task.round for task in node.trained] == [1, 1, 2], "the same round again"


@pytest.mark.parametrize("reason", ["data_error", "config_error", "model_mismatch"])
def test_a_node_with_a_lasting_problem_is_left_out(world: Make, reason: str) -> None:
    bad = FakeNode("bad", query=refuse(reason))
    made = world([FakeNode("a"), FakeNode("b"), bad])
    made.run()
    assert bad.queried == 1, "it is not asked again"
    assert made.of("node.refused")[0]["message"] == f"because of {reason}"
    assert (
        made.of("node.left_out")[0] | {"reason": reason, "node": "bad"}
        == made.of("node.left_out")[0]
    )


def test_a_node_with_a_passing_problem_is_asked_again(world: Make) -> None:
    node = FakeNode("b")
    refusals = iter(map(refuse, ("learner_gone", "learner_busy", "gpu_failed")))

    def query(node: FakeNode, task: Any) -> tuple[RecordDict | None, float]:
        refusal = next(refusals, None)
        if refusal:
            return refusal()
        node.query = None
        return node.answer_query(task)

    node.query = query
    made = world([FakeNode("a"), node])
    made.run()
    assert len(made.of("node.refused")) == 3
    assert len(node.trained) == 2


def test_data_errors_while_training_leave_the_node_out(world: Make) -> None:
    bad = FakeNode("bad", train=refuse("data_error"))
    made = world([FakeNode("a"), FakeNode("b"), bad])
    made.run()
    assert len(bad.trained) == 1
    assert made.of("round.started")[1]["nodes"] == ["a", "b"]


def test_a_learner_that_died_is_asked_again_next_round(world: Make) -> None:
    dead = FakeNode("dead", train=refuse("learner_gone"))
    made = world([FakeNode("a"), FakeNode("b"), dead])
    made.run()
    assert len(dead.trained) == 2


@pytest.mark.slow
def test_a_node_whose_line_rests_gets_no_strike_and_comes_back(world: Make) -> None:
    node, opens = FakeNode("b"), 40_000.0

    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        if made.grid.now < opens:
            return refuse("line_rests")()
        return node.update(task, payload), 1.0

    def query(node: FakeNode, task: Any) -> tuple[RecordDict | None, float]:
        if node.trained and made.grid.now < opens:
            return refuse("line_rests")()
        return to_record(node.query_reply()), 1.0

    node.train, node.query = train, query
    made = world([FakeNode("a"), node], **{"max-strikes": 1})
    made.run()
    assert len(made.of("round.committed")) == 3, "the start, and two rounds"
    assert len(made.of("round.failed")) == 1, "sent once, and then asked first"
    assert [line["strike"] for line in made.of("update.refused")] == [False]
    assert made.of("node.left_out") == []
    assert made.of("node.sits_out") == []
    assert "b cannot train (line_rests)" in made.of("run.waiting")[0]["message"]
    assert made.grid.now >= opens


def test_a_failed_round_waits_for_learners_that_restart(world: Make) -> None:
    """Sent again at once, it would fail three times before any learner is back."""
    node = FakeNode("b")
    back = 1040.0

    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        if len(node.trained) == 1:
            return refuse("gpu_failed")()
        if made.grid.now < back:
            return refuse("learner_gone")()
        return node.update(task, payload), 1.0

    def query(node: FakeNode, task: Any) -> tuple[RecordDict | None, float]:
        if node.trained and made.grid.now < back:
            return refuse("learner_gone")()
        return to_record(node.query_reply()), 1.0

    node.train, node.query = train, query
    made = world([FakeNode("a"), node])
    made.run()
    assert [line["round"] for line in made.of("round.committed")] == [0, 1, 2]
    assert [line["refused"] for line in made.of("round.failed")] == [{"b": "gpu_failed"}]
    assert len(node.trained) == 3
    assert node.queried > 3, "asked from time to time"
    assert sorted(line["node"] for line in made.of("node.joined")) == ["a", "b", "b"]


def test_an_error_of_flower_is_a_refusal(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b"), FakeNode("c")])
    push = made.grid.push_messages

    def failing(messages: Any) -> list[str]:
        messages = list(messages)
        ids = push(messages)
        if messages[0].metadata.message_type == "train":
            made.grid.fail(ids[2], "ClientApp died")
        return ids

    made.grid.push_messages = failing  # type: ignore[method-assign]
    made.run()
    assert made.of("update.refused")[0]["reason"] == "flower_error"
    assert "ClientApp died" in made.of("update.refused")[0]["message"]


def test_a_part_of_the_nodes_is_asked(world: Make) -> None:
    nodes = [FakeNode(f"n{i}") for i in range(6)]
    made = world(nodes, **{"fraction-fit": 0.5, "num-server-rounds": 6})
    made.run()
    chosen = [line["nodes"] for line in made.of("round.started")]
    assert [len(names) for names in chosen] == [3] * 6
    assert len({tuple(names) for names in chosen}) > 1, "not always the same"
    assert all(node.trained for node in nodes)


def test_evaluation_has_its_rounds(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b")], **{"num-server-rounds": 5, "eval-frequency": 2})
    made.run()
    assert made.evaluator.rounds == [0, 2, 4, 5], "every second, and the last"


def test_no_evaluation(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b")], **{"eval-frequency": 0})
    made.run()
    assert made.evaluator.rounds == []
    assert made.of("round.committed")[1]["evaluation"] is None


def test_a_failed_evaluation_is_missing_and_reported(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b")])
    made.evaluator.error = LearnerError("no frame is left", reason="data_error")
    made.run()
    assert [line["evaluation"] for line in made.of("round.committed")] == [None] * 3
    assert [line["reason"] for line in made.of("evaluation.failed")] == ["data_error"] * 3


def test_an_evaluator_that_refuses_ends_the_run(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b")])
    made.evaluator.start_errors = [LearnerError("no such model", reason="model_unavailable")]
    with pytest.raises(LearnerError):
        made.run()
    assert made.lines[-1] | {"kind": "run.failed", "reason": "model_unavailable"} == made.lines[-1]


def test_old_rounds_are_pruned(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b")], **{"num-server-rounds": 6, "keep-rounds": 2})
    made.run()
    assert committed_rounds(made.folder) == [0, 5, 6], "the newest, and the best"


def test_a_bug_is_in_the_journal(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b")])
    made.evaluator.error = ZeroDivisionError("oops")
    with pytest.raises(ZeroDivisionError):
        made.run()
    assert made.lines[-1]["reason"] == "bug"


@pytest.mark.parametrize(
    ("settings", "losses", "rounds"),
    [
        ({}, (3.0, 2.0, 1.0), [2]),  # the last is the best
        ({}, (3.0, 1.0, 2.0), [2, 1]),
        ({"checkpoint-interval": 1}, (3.0, 2.0, 1.0), [1, 2]),
        ({"eval-frequency": 0}, (), [2]),
    ],
)
def test_checkpoints_are_of_the_last_round_and_of_the_best(
    tmp_path: Path, settings: dict[str, Any], losses: tuple[float, ...], rounds: list[int]
) -> None:
    world = World(tmp_path, [FakeNode("a"), FakeNode("b")], **settings)
    left = list(losses)
    world.evaluator.loss = lambda payload: left.pop(0)
    world.run()
    assert [task.round for task, _ in world.evaluator.released] == rounds
    for task, sha256 in world.evaluator.released:
        assert (
            sha256 == task.base == Payload.of(world.weights(task.round), "weights").manifest.sha256
        )
        assert [point.round for point in task.summary.rounds] == list(range(1, task.round + 1))
        assert {part.name for part in task.summary.nodes} == {"a", "b"}
    assert [line["round"] for line in world.of("checkpoint.written")] == rounds
    if losses:
        assert rounds[-1] == int(np.argmin(losses)), "the best comes last, and is pushed"


def test_a_checkpoint_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    world = World(tmp_path, [FakeNode("a"), FakeNode("b")])
    world.evaluator.release_error = LearnerError("the disk is full", reason="disk_full")
    world.run()
    assert world.of("checkpoint.failed")[0]["reason"] == "disk_full"
    assert world.of("run.finished")


def _robot(scale: float = 1.0, names: tuple[str, ...] = ("pan", "lift")) -> RobotDescription:
    both = Components(
        names=names, low=(-60.0 * scale, -20.0 * scale), high=(70.0 * scale, 90.0 * scale)
    )
    return RobotDescription(robot_type="so101", state=both, action=both)


def _radians(names: tuple[str, ...] = ("pan", "lift")) -> RobotDescription:
    both = Components(names=names, low=(-1.0, -0.4), high=(1.2, 1.6))
    return RobotDescription(robot_type="so101", state=both, action=both)


@pytest.mark.parametrize(
    ("robot", "reason", "said"),
    [
        (_radians(), "units_mismatch", "another scale"),
        (_robot(names=("lift", "pan")), "robot_mismatch", "in another order than"),
        (_robot(names=("a", "b")), "robot_mismatch", "(a, b) are others than those"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_another_robot_has_no_part_in_the_run(
    world: Make, robot: RobotDescription, reason: str, said: str, late: bool
) -> None:
    """The held-out recordings say what is right, so that it does not matter who comes first."""
    good = [FakeNode(name, robot=_robot(0.8)) for name in ("b", "c")]
    other = FakeNode("a", robot=robot, online=not late)
    made = world([other, *good])
    made.evaluator.robot = _robot()
    if late:
        made.grid.at(6.0, lambda: setattr(other, "online", True))
    made.run()
    (refused,) = made.of("node.refused")
    assert (refused["node"], refused["reason"]) == ("a", reason)
    assert said in refused["message"]
    assert [line["node"] for line in made.of("node.left_out")] == ["a"]
    (told,) = other.rejections
    assert (told.reason, told.message) == (reason, refused["message"])
    assert not other.trained
    assert made.lines[-1]["kind"] == "run.finished"
    state = RunState.read(made.folder)
    assert state.left_out == {"a": refused["message"]}


def test_mixed_units_train_together_where_the_run_allows_it(world: Make) -> None:
    nodes = [FakeNode("a", robot=_robot()), FakeNode("b", robot=_radians())]
    made = world(nodes, **{"allow-mixed-units": True})
    made.run()
    assert not made.of("node.refused")
    assert "another scale" in made.of("node.joined")[1]["notices"][0]


def test_who_does_not_tell_its_robot_joins_with_a_notice(world: Make) -> None:
    made = world([FakeNode("a", robot=_robot()), FakeNode("b")])
    made.run()
    joined = {line["node"]: line for line in made.of("node.joined")}
    assert joined["a"]["notices"] == []
    assert joined["b"]["robot"] is None
    assert "does not say which robot" in joined["b"]["notices"][0]


@pytest.mark.slow
def test_a_hostile_description_is_refused_as_any_reply(world: Make) -> None:
    def hostile(node: FakeNode, task: Query) -> tuple[RecordDict, float]:
        record = to_record(node.query_reply())
        body = str(record["message"]["body"]).replace(
            '"robot":null', '"robot":{"robot-type":"\\u0007"}'
        )
        record["message"]["body"] = body
        assert "u0007" in body
        return record, 1.0

    made = world([FakeNode("a", query=hostile), FakeNode("b"), FakeNode("c")])
    made.run()
    (refused,) = made.of("node.refused")
    assert (refused["node"], refused["reason"]) == ("a", "protocol_mismatch")


def test_a_resumed_run_knows_the_robots_of_before(world: Make) -> None:
    """A node that was away may not decide after a restart which robot the run is of."""
    nodes = [FakeNode("b", robot=_robot()), FakeNode("c", robot=_robot())]
    made = world(nodes, **{"num-server-rounds": 1})
    made.run()
    state = RunState.read(made.folder)
    assert state.robots == [_robot()]
    journal = made.folder / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"run.finished"' not in line))
    other = FakeNode("a", robot=_radians())
    grid = FakeGrid([other, *nodes])
    settings = run_settings({**made.settings.to_flat(), "num-server-rounds": 2})
    Run(
        grid,
        settings,
        ServerSettings(state=made.folder),
        Journal(made.folder, "1"),
        made.evaluator,
        resumed_by="2",
        clock=grid.clock,
        sleep=grid.sleep,
    ).run()
    assert [told.reason for told in other.rejections] == ["units_mismatch"]
