"""What passes by itself ends no run: it waits, says so, and continues. The clock is the test's."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict
from flwr.supercore.run import RunNotRunningException

from tests.federation.fakes import FakeNode, refuse
from tests.federation.test_rounds import Make, World, world
from zk0d.federation import model
from zk0d.federation.envelope import to_record
from zk0d.federation.learner_client import LearnerError
from zk0d.federation.messages import Train
from zk0d.federation.run import RUN_IS_OVER
from zk0d.federation.update import Payload
from zk0d.federation.waiting import PAUSES, SAY_AFTER, pause
from zk0d.record.journal import TRY_NOW
from zk0d.record.reasons import Reason
from zk0d.record.state import RunState

__all__ = ["world"]
DAY = 24 * 3600.0


class StoppedError(BaseException):
    """The test ends a ServerApp here, as a reboot does."""


def at(made: World, seconds: float, **facts: Any) -> None:
    """Change the last node so long after the start."""
    node = list(made.grid.nodes.values())[-1]

    def change() -> None:
        for key, value in facts.items():
            setattr(node, key, value)

    made.grid.at(seconds, change)


def end_at(made: World, seconds: float) -> None:
    def end() -> None:
        raise StoppedError

    made.grid.at(seconds, end)


@pytest.mark.slow
def test_too_few_nodes_end_no_run(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b", online=False)])
    at(made, DAY, online=True)
    made.run()
    assert made.lines[-1]["kind"] == "run.finished"
    waits, (goes_on,) = made.of("run.waiting")[0], made.of("run.continued")
    assert waits["reason"] == goes_on["reason"] == "too_few_nodes"
    assert waits["message"] == "1 of 2 nodes can train"
    assert waits["until"] == "when 1 more node can train"
    assert made.lines.index(waits) < made.lines.index(goes_on)
    assert made.grid.now >= 1000.0 + DAY


def test_a_wait_says_that_a_third_gets_ready(world: Make) -> None:
    """Two can train and a third decodes its recordings for ten minutes."""
    third = FakeNode("c")
    third.query = lambda node, task: (to_record(node.query_reply()), 600.0)
    made = world([FakeNode("a"), FakeNode("b"), third], **{"min-fit-clients": 3})
    made.run()
    (waits,) = made.of("run.waiting")
    assert waits["message"] == "2 of 3 nodes can train, c is getting ready"
    assert waits["until"] == "when 1 more node can train"
    assert "start more nodes" not in str(made.lines)
    assert made.lines[-1]["kind"] == "run.finished"


def test_enough_nodes_wait_for_a_third_without_a_word(world: Make) -> None:
    third = FakeNode("c")
    third.query = lambda node, task: (to_record(node.query_reply()), 55.0)
    made = world([FakeNode("a"), FakeNode("b"), third], **{"node-wait": 1.0})
    made.run()
    assert made.of("run.waiting") == []
    assert [line["nodes"] for line in made.of("round.started")] == [["a", "b", "c"]] * 2


def test_a_wait_names_who_refused_and_who_is_away(world: Make) -> None:
    nodes = [FakeNode("a"), FakeNode("bad", query=refuse("data_error"), activated=1.0)]
    made = world([*nodes, FakeNode("c", query=refuse("out_of_memory"))])
    at(made, 3600.0, query=None)
    made.run()
    assert (
        "bad cannot train (data_error), c cannot train (out_of_memory)"
        in (made.of("run.waiting")[0]["message"])
    )
    assert len(made.of("node.refused")) == 2, "who says the same for an hour says it once"
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_node_that_was_left_out_is_asked_again_once_it_restarts(world: Make) -> None:
    bad = FakeNode("bad", query=refuse("config_error"), activated=1.0)
    made = world([FakeNode("a"), bad])
    at(made, 3600.0, query=None)
    at(made, 7200.0, activated=5000.0)
    made.run()
    assert made.grid.now >= 1000.0 + 7200.0
    assert bad.queried == 2
    assert made.lines[-1]["kind"] == "run.finished"


@pytest.mark.slow
def test_rounds_that_fail_are_tried_again_ever_more_rarely(world: Make) -> None:
    node = FakeNode("b", train=refuse("out_of_memory"))
    made = world([FakeNode("a"), node], **{"num-server-rounds": 1})
    at(made, DAY, train=None)
    made.run()
    tries = [line["next_try"] - line["time"] for line in made.of("run.waiting")]
    assert tries[:4] == pytest.approx([5.0, 10.0, 20.0, 40.0], abs=1.0)
    assert max(tries) == pytest.approx(PAUSES[1], abs=1.0)
    assert len({line["since"] for line in made.of("run.waiting")}) == 1
    assert "updates of b (out_of_memory) are missing" in made.of("run.waiting")[0]["message"]
    assert DAY / PAUSES[1] <= len(node.trained) <= DAY / PAUSES[1] + 12
    assert [line["kind"] for line in made.lines[-4:-2]] == ["round.committed", "run.continued"]


@pytest.mark.parametrize(
    ("reasons", "waits_for", "until"),
    [
        (("disk_full", "disk_full"), "disk_full", "when there is room"),
        (("disk_full", "out_of_memory"), "rounds_failed", Reason.ROUNDS_FAILED.until),
        (("deadline", "deadline"), "rounds_failed", Reason.ROUNDS_FAILED.until),
    ],
)
def test_rounds_that_lack_one_thing_wait_for_that(
    world: Make, reasons: tuple[str, str], waits_for: str, until: str
) -> None:
    nodes = [FakeNode(name, train=refuse(r)) for name, r in zip("ab", reasons, strict=True)]
    made = world(nodes, **{"num-server-rounds": 1})

    def mend() -> None:
        for node in nodes:
            node.train = None

    made.grid.at(3600.0, mend)
    made.run()
    waits = made.of("run.waiting")
    assert {(line["reason"], line["until"]) for line in waits} == {(waits_for, until)}
    assert made.lines[-1]["kind"] == "run.finished"


def test_another_node_ends_the_pause(world: Make) -> None:
    bad = FakeNode("b", train=refuse("out_of_memory"))
    made = world([FakeNode("a"), bad, FakeNode("c", online=False)], **{"num-server-rounds": 1})
    at(made, 2000.0, online=True)
    made.run()
    assert made.grid.now < 1000.0 + 2000.0 + 60.0
    assert made.of("round.committed")[-1]["refused"] == {"b": "out_of_memory"}


def test_somebody_may_ask_for_a_try_at_once(world: Make) -> None:
    node = FakeNode("b", train=refuse("out_of_memory"))
    made = world([FakeNode("a"), node], **{"num-server-rounds": 1})

    def resume() -> None:
        node.train = None
        (made.folder / TRY_NOW).touch()

    made.grid.at(5000.0, resume)
    made.run()
    assert made.grid.now < 1000.0 + 5000.0 + 30.0
    assert not (made.folder / TRY_NOW).exists()


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason.passes and reason.waits])
def test_an_evaluator_that_cannot_begin_is_waited_for(world: Make, reason: Reason) -> None:
    made = world([FakeNode("a"), FakeNode("b")])
    made.evaluator.start_errors = [LearnerError("not yet.", reason=reason)] * 60
    made.run()
    said = made.of("run.waiting")[0]
    assert (said["reason"], said["message"], said["until"]) == (reason, "not yet", reason.until)
    assert made.lines[-1]["kind"] == "run.finished"
    assert made.of("run.continued")


def test_an_evaluator_that_is_away_is_waited_for(world: Make) -> None:
    """Else the rounds of that time could never be released."""
    made = world([FakeNode("a"), FakeNode("b")])
    real, left = made.evaluator.evaluate, [LearnerError("gone.", reason="learner_gone")] * 5

    def evaluate(task: Any, weights: Payload) -> Any:
        if task.round == 1 and left:
            raise left.pop()
        return real(task, weights)

    made.evaluator.evaluate = evaluate  # type: ignore[method-assign]
    made.run()
    assert all(line["evaluation"] for line in made.of("round.committed"))
    assert [line["reason"] for line in made.of("run.continued")] == ["learner_gone"]


def full(monkeypatch: pytest.MonkeyPatch, until: Callable[[], bool]) -> list[int]:
    """A disk that takes no weights in round 2 until there is room; counts the tries."""
    real, tries = model._save, [0]

    def save(arrays: Any, path: Path) -> None:
        if ".00002." in str(path.parent) or "00002" in path.parent.name:
            tries[0] += 1
            if not until():
                raise OSError(errno.ENOSPC, "No space left on device")
        real(arrays, path)

    monkeypatch.setattr(model, "_save", save)
    return tries


@pytest.mark.slow
def test_a_full_disk_is_waited_for(
    world: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = [FakeNode("a"), FakeNode("b")]
    whole = World(tmp_path / "whole", [FakeNode("a"), FakeNode("b")], **{"num-server-rounds": 3})
    whole.run()
    made = world(nodes, **{"num-server-rounds": 3})
    tries = full(monkeypatch, lambda: made.grid.now > 1000.0 + DAY)
    made.run()
    assert [line["round"] for line in made.of("round.committed")] == [0, 1, 2, 3]
    assert {line["reason"] for line in made.of("run.waiting")} == {"disk_full"}
    assert tries[0] < DAY / PAUSES[1] + 20
    assert not made.of("run.failed")
    for name, array in whole.weights(3).items():
        assert array.tobytes() == made.weights(3)[name].tobytes()


def test_a_wait_outlives_the_serverapp(world: Make) -> None:
    """Since when it waits is kept, and the one that takes over continues waiting."""
    made = world([FakeNode("a"), FakeNode("b", online=False)])
    end_at(made, 3600.0)
    with pytest.raises(StoppedError):
        made.run()
    before = RunState.read(made.folder)
    assert (before.phase, before.goes_on) == ("waiting", True)
    assert before.waiting is not None
    made.grid.at(made.grid.now - 1000.0 + 3600.0, lambda: setattr(made.grid.nodes[2], "online", 1))
    made.run(resumed_by="77")
    assert {line["since"] for line in made.of("run.waiting")} == {before.waiting.since}
    after = RunState.read(made.folder)
    assert (after.phase, after.waiting) == ("finished", None)


@pytest.mark.slow
def test_a_waiting_run_that_lost_a_node_between_rounds(world: Make) -> None:
    b = FakeNode("b")
    made = world([FakeNode("a"), b])

    def leaves(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        if task.round == 1:
            made.grid.at(made.grid.now - 1000.0 + 3.0, lambda: setattr(b, "online", False))
            made.grid.at(made.grid.now - 1000.0 + DAY, lambda: setattr(b, "online", True))
        return node.update(task, payload), 1.0

    b.train = leaves
    made.run()
    (waits,) = made.of("run.waiting")
    assert waits["message"].endswith("good standing in round 2, b is offline")
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_mistake_still_ends_the_run(world: Make) -> None:
    for reason in ("config_error", "model_mismatch", "bug", "no_release"):
        made = world([FakeNode("a"), FakeNode("b")])
        made.evaluator.start_errors = [LearnerError("no.", reason=reason)]
        with pytest.raises(LearnerError):
            made.run()
        assert made.of("run.failed")[-1]["reason"] == reason
        assert not made.of("run.waiting")


def test_a_run_that_flower_ended_leaves_its_end_to_the_coordinator(world: Make) -> None:
    """After a minute without a SuperLink, or zk0bot stop: no bug, and no failure."""
    made = world([FakeNode("a"), FakeNode("b")])

    def over() -> None:
        raise RunNotRunningException

    made.grid.at(8.0, over)
    with pytest.raises(RunNotRunningException):
        made.run()
    assert RunNotRunningException.__name__ == RUN_IS_OVER
    assert not made.of("run.failed")


def test_pauses_grow_and_end_growing() -> None:
    assert [pause(tries) for tries in (0, 1, 2)] == [5.0, 10.0, 20.0]
    assert pause(10_000) == PAUSES[1]
    assert SAY_AFTER > 0.0
