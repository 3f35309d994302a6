"""Updates that come after their round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from tests.federation.fakes import NEVER, FakeNode, refuse, silent
from tests.federation.test_rounds import World
from zk0d.config.run import run_settings
from zk0d.errors import ConfigError
from zk0d.federation.envelope import to_record
from zk0d.federation.messages import Train
from zk0d.federation.update import Payload

Make = Callable[..., World]
#: A round takes its nodes 5 s, and ends after 100.
STEADY = {"num-server-rounds": 4, "drift-correction": "none", "keep-rounds": 9}


@pytest.fixture
def world(tmp_path: Path) -> Make:
    return lambda nodes, **settings: World(tmp_path / "run", nodes, **{**STEADY, **settings})


def slow_in(number: int, seconds: float, **node: Any) -> FakeNode:
    """A node that takes so long in one round."""

    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        node.asked = [*getattr(node, "asked", []), task.round]  # type: ignore[attr-defined]
        return node.update(task, payload), seconds if task.round == number else node.seconds

    made = FakeNode("late", train=train, **node)
    # As soon as the others, whatever its rounds take.
    made.query = lambda node, task: (to_record(node.query_reply()), 1.0)
    return made


def staleness(made: World) -> list[dict[str, int]]:
    """Of each committed round's updates, by node."""
    return [
        {node["node"]: node["staleness"] for node in line["nodes"]}
        for line in made.of("round.committed")[1:]
    ]


def test_a_late_update_counts_in_the_next_round_by_half(world: Make) -> None:
    late = slow_in(1, 103.0, step=4.0)
    made = world([FakeNode("a"), FakeNode("b"), late])
    made.run()
    assert [line["reason"] for line in made.of("node.lost")] == ["late"]
    assert made.of("round.committed")[1]["lost"] == {"late": "late"}
    assert staleness(made)[:2] == [{"a": 0, "b": 0}, {"a": 0, "b": 0, "late": 1}]
    assert np.allclose(made.weights(1)["a"], 1.0)
    # 1 and 1 by whole weights, 4 by half of one.
    assert np.allclose(made.weights(2)["a"], 1.0 + (1.0 + 1.0 + 4.0 / 2) / 2.5)
    assert late.asked == [1, 3, 4], "it is at work while round 2 is sent"  # type: ignore[attr-defined]
    assert not made.of("update.refused")


def test_an_update_is_two_rounds_late(world: Make) -> None:
    made = world([FakeNode("a"), FakeNode("b"), slow_in(1, 108.0, step=4.0)])
    made.run()
    assert staleness(made)[1] == {"a": 0, "b": 0}
    assert staleness(made)[2] == {"a": 0, "b": 0, "late": 2}
    assert np.allclose(made.weights(3)["a"] - made.weights(2)["a"], (2.0 + 4.0 / 3) / (2 + 1 / 3))


def test_an_update_that_is_too_late_is_dropped_and_its_node_asked_again(world: Make) -> None:
    late = slow_in(1, 108.0, step=4.0)
    made = world([FakeNode("a"), FakeNode("b"), late], **{"max-staleness": 1})
    made.run()
    assert [line["reason"] for line in made.of("node.lost")] == ["late", "deadline"]
    assert staleness(made)[:2] == [{"a": 0, "b": 0}] * 2
    assert all(each.get("late", 0) == 0 for each in staleness(made))
    assert late.asked[:2] == [1, 3]  # type: ignore[attr-defined]


def test_an_answer_between_two_rounds_waits_for_the_next(world: Make) -> None:
    """It comes while the run waits for nodes, and its node has a part in that round, too."""
    a, late = FakeNode("a"), slow_in(1, 130.0, step=4.0)
    b = FakeNode("b")
    made = world([a, b, late], **{"num-server-rounds": 2})

    def leaves(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        if task.round == 1:
            now = made.grid.now - 1000.0
            made.grid.at(now + 90.0, lambda: setattr(b, "online", False))
        return node.update(task, payload), 1.0

    b.train = leaves
    made.run()
    assert staleness(made)[0] == {"a": 0, "b": 0}
    assert made.of("round.started")[1]["nodes"] == ["a", "late"]
    (last,) = made.of("round.committed")[2:]
    assert [(n["node"], n["staleness"]) for n in last["nodes"]] == [
        ("a", 0),
        ("late", 1),
        ("late", 0),
    ]
    assert np.allclose(made.weights(2)["a"], 1.0 + (1.0 + 4.0 / 2 + 4.0) / 2.5)


def test_a_late_update_passes_the_same_admission(world: Make) -> None:
    def bad(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        reply = node.update(task, payload, samples=10**9)
        return reply, 103.0 if task.round == 1 else 5.0

    late = slow_in(1, 103.0)
    late.train = bad
    made = world([FakeNode("a"), FakeNode("b"), late], **{"max-strikes": 1})
    made.run()
    assert made.of("update.refused")[0]["reason"] == "implausible_samples"
    assert made.of("update.refused")[0]["round"] == 2
    assert made.of("node.sits_out")[0]["node"] == "late"


def test_a_late_node_that_refuses_is_asked_again(world: Make) -> None:
    late = slow_in(1, 103.0)
    first = late.train

    def refuses(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        if task.round == 1:
            return refuse("out_of_memory")()[0], 103.0
        return first(node, task, payload)  # type: ignore[misc]

    late.train = refuses
    made = world([FakeNode("a"), FakeNode("b"), late])
    made.run()
    assert staleness(made) == [{"a": 0, "b": 0}] * 2 + [{"a": 0, "b": 0, "late": 0}] * 2


def test_a_late_node_that_leaves_is_not_waited_for(world: Make) -> None:
    late = slow_in(1, 1e6)
    made = world([FakeNode("a"), FakeNode("b"), late], **{"max-staleness": 50})
    made.grid.at(110.0, lambda: setattr(late, "online", False))
    made.run()
    assert made.lines[-1]["kind"] == "run.finished"


def away_in_round_1(made: World, node: FakeNode, begin: float, end: float, *answers: float) -> None:
    """A node goes offline so many seconds after it was asked first, and comes back by another
    session. To its messages it answers after so many seconds, or never.
    """
    left = list(answers)

    def comes() -> None:
        node.online, node.activated = True, made.grid.now

    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        if len(left) == len(answers):
            now = made.grid.now - 1000.0
            made.grid.at(now + begin, lambda: setattr(node, "online", False))
            made.grid.at(now + end, comes)
        seconds = left.pop(0) if left else node.seconds
        return (None if seconds == NEVER else node.update(task, payload)), seconds

    node.train = train


def test_a_laptop_that_slept_in_a_round_has_its_part_in_it(world: Make) -> None:
    """It goes on where it was; the SuperLink shows the same as after a restart."""
    laptop = FakeNode("laptop", step=4.0)
    others = [FakeNode("a", seconds=60.0), FakeNode("b")]
    made = world([*others, laptop], **{"num-server-rounds": 1})
    away_in_round_1(made, laptop, 10.0, 20.0, 30.0)
    made.run()
    assert [line["reason"] for line in made.of("node.lost")] == ["offline"]
    assert staleness(made) == [{"a": 0, "b": 0, "laptop": 0}]
    assert made.of("round.committed")[1]["lost"] == {}
    assert np.allclose(made.weights(1)["a"], 2.0)


def test_the_update_of_a_laptop_that_slept_beyond_its_round_counts_late(world: Make) -> None:
    """Nobody waits for it, it is asked again once it is back, and no work is lost."""
    laptop = FakeNode("laptop", seconds=15.0)
    made = world([FakeNode("a", seconds=20.0), FakeNode("b", seconds=20.0), laptop])
    away_in_round_1(made, laptop, 10.0, 25.0, 50.0)
    made.run()
    assert [line["nodes"] for line in made.of("round.started")] == [
        ["a", "b", "laptop"],
        ["a", "b"],
        ["a", "b", "laptop"],
        ["a", "b", "laptop"],
    ]
    counted = [(n["node"], n["staleness"]) for n in made.of("round.committed")[3]["nodes"]]
    assert counted == [("a", 0), ("b", 0), ("laptop", 2), ("laptop", 0)]
    assert not made.of("update.refused")


def test_a_node_that_restarted_in_a_round_is_asked_in_the_next(world: Make) -> None:
    """What it had in work is gone, and nothing is held up by that."""
    node = FakeNode("node", seconds=15.0)
    made = world([FakeNode("a", seconds=20.0), FakeNode("b", seconds=20.0), node])
    away_in_round_1(made, node, 5.0, 15.0, NEVER)
    made.run()
    assert staleness(made) == [{"a": 0, "b": 0}, *[{"a": 0, "b": 0, "node": 0}] * 3]
    assert made.grid.now < 1000.0 + 5 * 25.0, "rounds of 20 s"


def test_who_is_asked_twice_for_a_round_counts_once(world: Make) -> None:
    """A try failed while it slept: the answers to both messages come."""
    laptop = FakeNode("laptop", step=4.0)
    made = world([FakeNode("a"), laptop], **{"num-server-rounds": 1})
    away_in_round_1(made, laptop, 3.0, 40.0, 50.0, 55.0)
    made.run()
    assert [line["nodes"] for line in made.of("round.started")] == [["a", "laptop"], ["laptop"]]
    assert staleness(made) == [{"a": 0, "laptop": 0}]
    (event,) = made.of("round.committed")[1:]
    assert len(event["nodes"]) == 2
    assert np.allclose(made.weights(1)["a"], 2.5)


def test_without_late_updates_an_absent_node_is_given_up(world: Make) -> None:
    laptop = FakeNode("laptop", seconds=15.0)
    made = world([FakeNode("a", seconds=60.0), FakeNode("b"), laptop], **{"max-staleness": 0})
    away_in_round_1(made, laptop, 10.0, 50.0, 57.0)
    made.run()
    assert staleness(made)[0] == {"a": 0, "b": 0}
    assert made.of("round.committed")[1]["lost"] == {"laptop": "offline"}


def test_a_node_that_never_answers_is_asked_again_after_its_own_deadline(world: Make) -> None:
    """Else a run with as many nodes as it needs would wait for it for ever."""
    mute = slow_in(1, 5.0)
    first, silences = mute.train, [silent]

    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        return silences.pop()() if silences else first(node, task, payload)  # type: ignore[misc]

    mute.train = train
    made = world([FakeNode("a"), mute])
    made.run()
    assert [line["reason"] for line in made.of("node.lost")] == ["late", "deadline"]
    assert 1300.0 < made.grid.now < 1400.0, "100 s of a round, three times"
    assert made.lines[-1]["kind"] == "run.finished"


def test_a_round_that_failed_keeps_the_updates_it_has(world: Make) -> None:
    """Nobody works for nothing: only the missing update is asked for again."""
    a, b = FakeNode("a", step=1.0), FakeNode("b", step=3.0)
    fails = [refuse("out_of_memory")()] * 3
    b.train = lambda node, task, payload: fails.pop() if fails else (node.update(task, payload), 5)
    made = world([a, b], **{"num-server-rounds": 1})
    made.run()
    assert [line["nodes"] for line in made.of("round.started")] == [["a", "b"], *[["b"]] * 3]
    assert np.allclose(made.weights(1)["a"], 2.0)
    assert len(a.trained) == 1
    (event,) = made.of("round.committed")[1:]
    assert [node["node"] for node in event["nodes"]] == ["a", "b"]
    assert event["bytes_up"] == sum(node["bytes_up"] for node in event["nodes"])


def test_the_only_other_node_is_late_for_a_round_that_is_sent_again(world: Make) -> None:
    """Its update is to the same weights, so that the round has what it needs."""
    late = slow_in(1, 130.0, step=3.0)
    made = world([FakeNode("a"), late], **{"num-server-rounds": 1})
    made.run()
    assert [line["nodes"] for line in made.of("round.started")] == [["a", "late"], []]
    assert staleness(made) == [{"a": 0, "late": 0}]
    assert np.allclose(made.weights(1)["a"], 2.0)


def test_a_quorum_closes_the_round(world: Make) -> None:
    nodes = [FakeNode(name) for name in "abc"]
    late = slow_in(0, 5.0, step=5.0)
    late.seconds = 12.0
    made = world([*nodes, late], **{"quorum": 0.6, "num-server-rounds": 6})
    made.run()
    assert all(line["seconds"]["collect"] < 10.0 for line in made.of("round.committed")[1:])
    counted = [each["late"] for each in staleness(made) if "late" in each]
    assert counted, "its work counts"
    assert set(counted) <= {1, 2}


def test_a_quorum_is_never_below_min_fit_clients(world: Make) -> None:
    nodes = [FakeNode("a"), FakeNode("b"), FakeNode("c", seconds=50.0)]
    made = world(nodes, **{"quorum": 0.1, "min-fit-clients": 3, "num-server-rounds": 1})
    made.run()
    assert staleness(made) == [{"a": 0, "b": 0, "c": 0}]


@pytest.mark.parametrize("quorum", [0.0, -1.0, 1.1, float("nan")])
def test_a_quorum_is_a_share(quorum: float) -> None:
    with pytest.raises(ConfigError, match="quorum"):
        run_settings({"quorum": quorum})


def test_staleness_is_a_number_of_rounds() -> None:
    with pytest.raises(ConfigError, match="max-staleness"):
        run_settings({"max-staleness": -1})
