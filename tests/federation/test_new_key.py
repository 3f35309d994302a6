"""A node that changes its key in a run stays the node that it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from tests.federation.fakes import FakeNode
from tests.federation.test_rounds import World
from zk0d.federation.messages import Train
from zk0d.federation.update import Payload
from zk0d.record.events import NodeJoined
from zk0d.record.state import RunState


def poison(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
    def not_finite(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: np.full_like(array, np.nan) for name, array in arrays.items()}

    return node.update(task, payload, change=not_finite), node.seconds


def change(old: FakeNode, new: FakeNode, *, leaves: bool = True) -> None:
    """The node's next session has the other key."""
    old.online = not leaves
    new.online, new.activated = True, old.activated + 1.0


def test_a_new_key_washes_off_no_strike(tmp_path: Path) -> None:
    old = FakeNode("bad", activated=5.0, train=poison)
    new = FakeNode("bad", key="bad-2", online=False, train=poison)
    made = World(
        tmp_path / "run",
        [FakeNode("good"), old, new],
        **{"num-server-rounds": 6, "max-strikes": 3, "min-fit-clients": 1},
    )
    made.grid.at(12.0, lambda: change(old, new))
    made.run()
    strikes = [line for line in made.of("update.refused") if line["strike"]]
    assert len(strikes) == 3, "then it sits out"
    assert len({line["key"] for line in strikes}) == 2
    assert len(new.trained) == 3 - len(old.trained)
    assert {line["node"] for line in strikes} == {"bad"}


def test_it_keeps_its_name_and_has_one_part(tmp_path: Path) -> None:
    """Also if somebody runs it with both keys at once: its newest session counts."""
    old = FakeNode("arm", activated=5.0, step=2.0)
    new = FakeNode("arm", key="arm-2", online=False, step=3.0)
    made = World(
        tmp_path / "run",
        [FakeNode("other"), old, new],
        **{"num-server-rounds": 5, "min-fit-clients": 1},
    )
    made.grid.at(12.0, lambda: change(old, new, leaves=False))
    made.run()
    rounds = made.of("round.committed")[1:]
    for each in rounds:
        assert len({part["node"] for part in each["nodes"]}) == len(each["nodes"])
    assert [part["node"] for part in rounds[-1]["nodes"]] == ["arm", "other"]
    assert 0 < len(old.trained) < 5, "its old key is not asked any more"
    assert len(new.trained) > 0
    assert len(old.trained) + len(new.trained) <= 5
    names = {line["key"]: line["node"] for line in made.of("node.joined")}
    assert sorted(names.values()) == ["arm", "arm", "other"]


def test_a_name_goes_to_the_key_that_joined_last() -> None:
    state = RunState()
    for key in ("a" * 64, "b" * 64):
        state.apply(NodeJoined(node="arm", key=key, enrolled="arm"))
    assert state.names == {"a" * 64: "arm-aaaaaa", "b" * 64: "arm"}
    assert state.enrolled == {"a" * 64: "arm", "b" * 64: "arm"}
