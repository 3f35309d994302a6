"""Whose statistics a node normalizes with, in a run, a late comer's and a resumed one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.federation.fakes import STATISTICS, FakeNode
from tests.federation.test_resume import Killed, after, kill
from tests.federation.test_rounds import Make, world  # noqa: F401 - a fixture
from zk0d.config.run import NormalizeBy
from zk0d.errors import Zk0dError
from zk0d.federation.rounds import RunFailedError
from zk0d.learning.robot import group_of
from zk0d.learning.spec import Components, RobotDescription
from zk0d.learning.statistics import FeatureStatistics, RunStatistics, Statistics, merge
from zk0d.record.journal import Journal
from zk0d.record.state import RunState


def shifted(offset: float) -> Statistics:
    """As of an arm whose joints read so much more."""
    values = np.arange(6.0).reshape(3, 2) + offset
    each = FeatureStatistics.of(values)
    return Statistics(features={"action": each, "observation.state": each})


def arm(
    name: str, offset: float, robot_type: str | None = "so101_follower", **more: Any
) -> FakeNode:
    """A node, whose owner may not tell which robot it has."""
    joints = Components(names=("pan", "lift"))
    robot = RobotDescription(robot_type=robot_type or "", state=joints, action=joints)
    told = None if robot_type is None else robot
    return FakeNode(name, statistics=shifted(offset), robot=told, **more)


def normalized(node: FakeNode) -> float:
    """The mean of the first joint that the node was told to take off; one in the whole run."""
    told = {task.statistics.features["action"].mean[0] for task in node.trained}
    for task in node.trained:
        assert task.statistics.sha256 == task.statistics_sha256
    (mean,) = told
    return mean


def statistics_of(folder: Path) -> RunStatistics:
    return RunStatistics.model_validate_json((folder / "statistics.json").read_text())


def test_each_node_with_its_own(world: Make) -> None:  # noqa: F811
    nodes = [arm("a", 0.0), arm("b", 90.0)]
    made = world(nodes, **{"normalize-by": "node"})
    made.run()
    assert [normalized(node) for node in nodes] == [2.0, 92.0]
    (merged,) = made.of("statistics.merged")
    assert (merged["nodes"], merged["groups"]) == (2, ["a", "b"])
    kept = statistics_of(made.folder)
    assert kept.sha256 == merged["sha256"]
    assert kept.of("a") == shifted(0.0)
    whole = merge([shifted(0.0), shifted(90.0)])
    assert kept.of("nobody") == whole, "whoever has no group has those of all"
    ((released, _),) = made.evaluator.released
    assert released.statistics == kept, "the release carries them"


def test_each_type_of_robot_with_its_own(world: Make) -> None:  # noqa: F811
    """Names of one type are written in several ways; whoever does not tell is of none."""
    nodes = [
        arm("a", 0.0),
        arm("b", 10.0, "so100"),
        arm("c", 90.0, "koch_follower"),
        arm("d", 50.0, None),
        arm("e", 70.0, "unknown"),
    ]
    settings: dict[str, Any] = {"normalize-by": "robot-type", "allow-mixed-units": True}
    made = world(nodes, **settings)
    made.run()
    assert [normalized(node) for node in nodes] == [7.0, 7.0, 92.0, 62.0, 62.0]
    assert made.of("statistics.merged")[0]["groups"] == ["koch", "so", "unknown"]


def test_another_type_is_still_refused(world: Make) -> None:  # noqa: F811
    """Its joints may turn the other way round, which no statistics mend."""
    nodes = [arm("a", 0.0), arm("b", 1.0), arm("c", 90.0, "koch", seconds=6.0)]
    made = world(nodes, **{"normalize-by": "robot-type"})
    made.run()
    assert [line["reason"] for line in made.of("node.refused")] == ["robot_mismatch"]


def test_all_with_the_same_by_default(world: Make) -> None:  # noqa: F811
    nodes = [arm("a", 0.0), arm("b", 90.0)]
    made = world(nodes)
    made.run()
    assert [normalized(node) for node in nodes] == [47.0, 47.0]
    assert made.of("statistics.merged")[0]["groups"] == []
    content = json.loads((made.folder / "statistics.json").read_text())
    assert set(content) == {"features", "nodes"}, "as earlier versions wrote it"
    plain = Statistics.model_validate(content)
    assert plain.sha256 == made.of("statistics.merged")[0]["sha256"]


@pytest.mark.parametrize("by", ["node", "robot-type"])
def test_who_shares_none_is_refused_where_it_needs_its_own(
    world: Make,  # noqa: F811
    by: NormalizeBy,
) -> None:
    silent = arm("c", 0.0, shares=False)
    made = world([arm("a", 0.0), arm("b", 90.0), silent], **{"normalize-by": by})
    made.run()
    assert not silent.trained
    (refused,) = made.of("node.refused")
    assert refused["reason"] == "no_statistics"
    assert refused["message"] == silent.rejections[0].message
    assert "set share-statistics on the node" in refused["message"]


def test_a_run_in_which_no_node_shares_fails(world: Make) -> None:  # noqa: F811
    nodes = [arm("a", 0.0, shares=False), arm("b", 0.0, shares=False)]
    made = world(nodes, **{"normalize-by": "node"})
    made.closed = True
    with pytest.raises(RunFailedError, match="does not share its statistics"):
        made.run()


def test_a_late_node_adds_its_group(world: Make) -> None:  # noqa: F811
    late = arm("late", 300.0, online=False)
    nodes = [arm("a", 0.0), arm("b", 90.0), late]
    made = world(nodes, **{"normalize-by": "node", "num-server-rounds": 4})

    def arrive() -> None:
        late.online = True

    made.grid.at(12.0, arrive)
    made.run()
    assert [normalized(node) for node in nodes] == [2.0, 92.0, 302.0]
    first, second = made.of("statistics.merged")
    assert (first["groups"], second["groups"]) == (["a", "b"], ["a", "b", "late"])
    assert statistics_of(made.folder).of("nobody") == merge([shifted(0.0), shifted(90.0)])


@pytest.mark.parametrize("harm", ["width", "features"])
def test_a_late_nodes_statistics_of_another_policy_are_refused(
    world: Make,  # noqa: F811
    harm: str,
) -> None:
    late = arm("late", 300.0, online=False)
    wide = FeatureStatistics.of(np.ones((3, 5)))
    features = {"width": {"action": wide, "observation.state": wide}, "features": {"action": wide}}
    late.statistics = Statistics(features=features[harm])
    settings: dict[str, Any] = {"normalize-by": "node", "num-server-rounds": 4}
    made = world([arm("a", 0.0), arm("b", 90.0), late], **settings)

    def arrive() -> None:
        late.online = True

    made.grid.at(12.0, arrive)
    made.run()
    assert not late.trained
    assert [line["reason"] for line in made.of("node.refused")] == ["statistics_mismatch"]
    assert set(statistics_of(made.folder).groups) == {"a", "b"}


def test_a_late_node_of_a_known_type_has_that_types(world: Make) -> None:  # noqa: F811
    late = arm("late", 300.0, online=False)
    made = world(
        [arm("a", 0.0), arm("b", 90.0), late],
        **{"normalize-by": "robot-type", "num-server-rounds": 4},
    )

    def arrive() -> None:
        late.online = True

    made.grid.at(12.0, arrive)
    made.run()
    assert normalized(late) == 47.0
    assert len(made.of("statistics.merged")) == 1


def run_until(made: Any, round_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run, and kill the ServerApp once a round is committed."""
    with monkeypatch.context() as patched:
        after(
            patched,
            Journal,
            "write",
            lambda _, event: event.kind == "round.committed" and event.round == round_,
        )
        with pytest.raises(Killed):
            made.run()


def test_a_resumed_run_keeps_them(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Whatever the nodes have recorded meanwhile, and in whatever order they come back."""
    nodes = [arm("a", 0.0), arm("b", 90.0)]
    made = world(nodes, **{"normalize-by": "node", "num-server-rounds": 4})
    run_until(made, 2, monkeypatch)
    before = (made.folder / "statistics.json").read_bytes()
    for node in nodes:
        node.statistics = shifted(1000.0)
    made.run(resumed_by="77")
    assert [normalized(node) for node in nodes] == [2.0, 92.0]
    assert (made.folder / "statistics.json").read_bytes() == before
    assert [task.round for task in nodes[0].trained] == [1, 2, 3, 4]


def test_two_of_one_name_are_not_taken_for_each_other(
    world: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The one that had the plain name answers later when the run is resumed."""
    first, second = arm("a", 0.0, seconds=1.0), arm("a2", 90.0, seconds=3.0)
    for node in (first, second):
        real = node.query_reply
        monkeypatch.setattr(
            node, "query_reply", lambda r=real: r().model_copy(update={"name": "arm"})
        )
    made = world([first, second], **{"normalize-by": "node"})
    run_until(made, 1, monkeypatch)
    first.seconds, second.seconds = 3.0, 1.0
    made.run(resumed_by="77")
    assert [normalized(node) for node in (first, second)] == [2.0, 92.0]


def test_killed_between_a_groups_file_and_its_line(
    world: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A group without a line never was: the node that brought it brings it again."""
    late = arm("late", 300.0, online=False)
    nodes = [arm("a", 0.0), arm("b", 90.0), late]
    made = world(nodes, **{"normalize-by": "node", "num-server-rounds": 4})

    def arrive() -> None:
        late.online = True

    made.grid.at(12.0, arrive)
    with monkeypatch.context() as patched:
        kill(
            patched,
            Journal,
            "write",
            lambda _, event: event.kind == "statistics.merged" and "late" in event.groups,
        )
        with pytest.raises(Killed):
            made.run()
    assert "late" in statistics_of(made.folder).groups
    assert RunState.read(made.folder).statistics_groups == ("a", "b")
    late.statistics = shifted(400.0)
    made.run(resumed_by="77")
    assert [normalized(node) for node in nodes] == [2.0, 92.0, 402.0]


def test_altered_statistics_are_not_resumed_with(
    world: Make,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = world([arm("a", 0.0), arm("b", 90.0)], **{"normalize-by": "node"})
    with monkeypatch.context() as patched:
        kill(patched, Journal, "write", lambda _, event: event.kind == "run.finished")
        with pytest.raises(Killed):
            made.run()
    path = made.folder / "statistics.json"
    kept = statistics_of(made.folder).with_group("b", STATISTICS)
    path.write_text(kept.model_dump_json())
    with pytest.raises(Zk0dError, match="is not what this run committed"):
        made.run(resumed_by="77")


@pytest.mark.parametrize(
    ("robot_type", "group"),
    [
        ("so101_follower", "so"),
        ("SO-100", "so"),
        ("koch", "koch"),
        ("", "unknown"),
        ("unknown", "unknown"),
        ("../../etc", "etc"),
        ("机器人", "unknown"),
        ("my arm/2", "my-arm-2"),
    ],
)
def test_a_types_group_can_name_a_folder(robot_type: str, group: str) -> None:
    assert group_of("robot-type", "a", robot_type) == group
    assert group_of("node", "a", robot_type) == "a"
    assert group_of("cohort", "a", robot_type) == ""
