"""Control variates at the coordinator: whose count, which mean travels, and what is refused."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from tests.federation.fakes import (
    FakeEvaluator,
    FakeGrid,
    FakeNode,
    RunOnFakes,
    raw_payload,
    silent,
)
from zk0d.config.run import run_settings
from zk0d.federation import variates
from zk0d.federation.downlink import HELD
from zk0d.federation.envelope import to_record
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.update import Payload
from zk0d.record.journal import Journal, is_whole

SETTINGS = {
    "num-server-rounds": 4,
    "local-steps": 4,
    "server-momentum": 0.0,
    "min-fit-clients": 2,
    "round-deadline": 100.0,
    "node-wait": 50.0,
    # A node that is silent here is away.
    "max-staleness": 0,
    "max-update-ratio": 0.0,
    "max-strikes": 0,
    "uplink-codec": "fp32",
    "downlink-codec": "fp32",
    "variate-codec": "fp32",
    "keep-rounds": 9,
}


@dataclass
class Node(FakeNode):
    """Notes which mean variate it is sent, by round: its value, the same in every place."""

    means: dict[int, float | None] = field(default_factory=dict)

    def answer_train(self, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        mean = payload.companion("variates")
        self.means[task.round] = None
        if mean is not None:
            values = np.concatenate([each.ravel() for each in mean.arrays().values()])
            assert np.ptp(values) < 1e-6
            self.means[task.round] = round(float(values.mean()), 5)
        return super().answer_train(task, payload)

    @property
    def counted(self) -> dict[int, int]:
        """By round, the round of its own variate that the coordinator says counts."""
        return {task.round: task.variate_round for task in self.trained}


def of(**gradients: float) -> list[Node]:
    return [Node(name, gradient=gradient) for name, gradient in gradients.items()]


class World(RunOnFakes):
    def __init__(self, folder: Path, nodes: Iterable[FakeNode], **settings: Any) -> None:
        self.folder = folder
        self.grid = FakeGrid(nodes)
        self.evaluator = FakeEvaluator()
        self.settings = run_settings({**SETTINGS, **settings})

    def run(self, *, resumed_by: str = "") -> None:
        self.run_on_grid(resumed_by)

    def kept(self, number: int) -> list[int]:
        """The rounds of the variates in a round's folder."""
        index = self.folder / "rounds" / f"{number:05d}" / variates.INDEX
        return sorted(line["round"] for line in json.loads(index.read_text()).values())

    def files(self) -> dict[str, bytes]:
        rounds = sorted(path for path in self.folder.glob("rounds/*/*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in rounds}


Make = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> Make:
    return lambda nodes, **settings: World(tmp_path / "run", nodes, **settings)


def away_in(*rounds: int) -> Callable[..., tuple[RecordDict | None, float]]:
    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        return silent() if task.round in rounds else (node.update(task, payload), 1.0)

    return train


def test_the_mean_travels_from_the_second_round(world: Make) -> None:
    a, b = nodes = of(a=0.1, b=0.3)
    made = world(nodes)
    made.run()
    assert a.means == b.means == {1: None, 2: 0.2, 3: 0.2, 4: 0.2}
    assert a.counted == b.counted == {1: 0, 2: 1, 3: 2, 4: 3}
    assert [line["variates"] for line in made.of("round.committed")] == [0, 2, 2, 2, 2]
    assert made.kept(4) == [4, 4]
    assert is_whole(made.folder / "rounds" / "00004")


def test_a_run_without_correction_has_none(world: Make) -> None:
    a, b = nodes = of(a=0.1, b=0.3)
    made = world(nodes, **{"drift-correction": "none"})
    made.run()
    assert set(a.means.values()) == {None}
    assert set(b.counted.values()) == {0}
    assert not list(made.folder.glob("rounds/*/*variates*"))


def test_samples_weigh(world: Make) -> None:
    def half(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
        return node.update(task, payload, samples=64, steps=2), 1.0

    a, b = nodes = of(a=0.1, b=0.4)
    b.train = half
    world(nodes).run()
    assert a.means[2] == pytest.approx((2 * 0.1 + 0.4) / 3, abs=1e-5)


def test_a_node_that_is_away_keeps_its_variate(world: Make) -> None:
    """Also when the round in which it was made is no longer on disk."""
    a, b, c = nodes = of(a=0.1, b=0.2, c=0.6)
    c.train = away_in(2, 3)
    made = world(nodes, **{"keep-rounds": 1, "eval-frequency": 0})
    made.run()
    assert a.means == b.means == {1: None, 2: 0.3, 3: 0.3, 4: 0.3}
    assert a.counted[4] == 3
    assert c.counted[4] == 1
    assert not (made.folder / "rounds" / "00001").exists()
    assert [line["variates"] for line in made.of("round.committed")] == [0, 3, 3, 3, 3]


def test_a_node_that_is_away_for_long_is_taken_out(
    world: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variates, "MAX_AGE", 2)
    a, b, c = nodes = of(a=0.1, b=0.2, c=0.6)
    c.train = away_in(2, 3)
    made = world(nodes, **{"num-server-rounds": 5})
    made.run()
    assert a.means == b.means == {1: None, 2: 0.3, 3: 0.3, 4: 0.15, 5: 0.3}
    assert c.counted == {1: 0, 2: 1, 3: 1, 4: 0, 5: 4}, "it begins anew"
    assert made.kept(2) == [1, 2, 2]
    assert made.kept(3) == [3, 3]
    assert [line["variates"] for line in made.of("round.committed")] == [0, 3, 3, 2, 3, 3]


def test_a_node_that_comes_late_has_none_and_is_sent_the_mean(world: Make) -> None:
    a, b, late = nodes = of(a=0.1, b=0.3, late=0.5)
    late.online = False
    made = world(nodes, **{"num-server-rounds": 6})
    made.grid.at(12.0, lambda: setattr(late, "online", True))
    made.run()
    first = min(late.counted)
    assert first > 1
    assert (late.counted[first], late.means[first]) == (0, 0.2)
    assert (late.counted[first + 1], late.means[first + 1]) == (first, 0.3)
    assert a.means == b.means
    assert a.means[6] == 0.3


# --- what is refused ------------------------------------------------------------------------------


def sends(make: Callable[[Train, dict[str, Any]], Payload | None]) -> Callable[..., Any]:
    """An honest update with another variate beside it, made of plausible arrays."""

    def train(node: FakeNode, task: Train, payload: Payload) -> tuple[RecordDict, float]:
        honest = node.update(task, payload)
        reply = TrainReply.model_validate_json(str(honest["message"]["body"]))
        arrays = {n: np.full_like(a, node.gradient) for n, a in payload.arrays().items()}
        delta = {n: np.full_like(a, node.step) for n, a in arrays.items()}
        update = Payload.of(delta, "delta", task.training.uplink_codec)
        variate = make(task, arrays)
        return to_record(reply, update.with_beside(*([variate] if variate else []))), 1.0

    return train


def filled(value: float) -> Callable[[Train, dict[str, Any]], Payload]:
    return lambda _, arrays: raw_payload(
        {n: np.full_like(a, value) for n, a in arrays.items()}, "variates"
    )


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Train, Any], Payload]:
    def make(task: Train, arrays: dict[str, Any]) -> Payload:
        change(arrays)
        return Payload.of(arrays, "variates", task.training.variate_codec)

    return make


def altered(task: Train, arrays: dict[str, Any]) -> Payload:
    """A bit that flips on the way."""
    made = Payload.of(arrays, "variates", task.training.variate_codec)
    content = bytearray(made.chunks[0])
    content[-1] ^= 1
    made.chunks[0] = bytes(content)
    return made


REFUSED: dict[str, tuple[Callable[[Train, Any], Payload | None], str]] = {
    "NaN": (filled(np.nan), "not_finite"),
    "infinity": (filled(np.inf), "not_finite"),
    "another shape": (changed(lambda a: a.update(a=a["a"].T.copy())), "manifest_mismatch"),
    "a tensor is missing": (changed(lambda a: a.pop("a")), "manifest_mismatch"),
    "another name": (changed(lambda a: a.update(z=a.pop("b"))), "manifest_mismatch"),
    "altered on the way": (altered, "manifest_mismatch"),
    "another codec": (lambda _, a: Payload.of(a, "variates", "int8"), "wrong_codec"),
    "none": (lambda _, a: None, "no_variate"),
    "another kind": (lambda _, a: Payload.of(a, "delta", "fp32"), "no_variate"),
    "longer than any clipped gradient": (filled(4.0), "norm_cap"),
    "far longer than the others'": (filled(3.0), "norm_outlier"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_variate_is_refused_with_its_update(world: Make, name: str) -> None:
    make, reason = REFUSED[name]
    a, b, bad = nodes = of(a=0.1, b=0.3, bad=0.2)
    bad.train, bad.step = sends(make), 2.0
    made = world(nodes, **{"num-server-rounds": 2})
    made.run()
    refused = made.of("update.refused")
    assert [(line["node"], line["reason"]) for line in refused] == [("bad", reason)] * 2
    assert [notice.reason for notice in bad.notices] == [reason] * 2, "it is told"
    assert a.means == b.means == {1: None, 2: 0.2}, "the mean without it"
    assert bad.counted == {1: 0, 2: 0}
    assert made.evaluator.losses[-1] == pytest.approx(2.0), "nor do the weights have its update"
    assert not list(made.folder.glob("spool/*"))
    if reason == "no_variate":
        assert "update this node" in refused[0]["message"]


def test_two_variates_have_no_outlier(world: Make) -> None:
    a, _ = nodes = of(a=0.1, b=3.0)
    made = world(nodes, **{"num-server-rounds": 2})
    made.run()
    assert not made.of("update.refused")
    assert a.means[2] == pytest.approx(1.55)


@pytest.mark.parametrize(
    ("settings", "mean"),
    [
        ({}, (3 * 0.1 + 3.0) / 4),
        ({"aggregation": "median"}, 0.1),
        ({"aggregation": "trimmed-mean", "min-fit-clients": 3}, 0.1),
        ({"norm-clip-factor": 1.0}, 0.1),
    ],
)
def test_a_poisoner_does_not_steer_the_mean_of_a_robust_rule(
    world: Make, settings: dict[str, Any], mean: float
) -> None:
    a, *_ = nodes = of(a=0.1, b=0.1, c=0.1, poisoner=3.0)
    world(nodes, **{"norm-outlier-factor": 0.0, "num-server-rounds": 2, **settings}).run()
    assert a.means[2] == pytest.approx(mean, abs=1e-5)


def test_norm_clipping_leaves_out_a_variate_that_points_against_the_others(world: Make) -> None:
    a, *_ = nodes = of(a=0.1, b=0.1, c=0.1, poisoner=-0.4)
    world(nodes, **{"num-server-rounds": 2, "norm-clip-factor": 1.0}).run()
    assert a.means[2] == pytest.approx(0.1, abs=1e-5), "0.05 if it were only shortened"


# --- what is kept ---------------------------------------------------------------------------------


def test_a_rollback_begins_with_none(world: Make) -> None:
    a, b = nodes = of(a=0.1, b=0.3)
    delta = {"downlink-codec": "int8-delta"}
    made = world(nodes, **{"num-server-rounds": 6, "rollback-factor": 2.0, **delta})
    losses = iter([1.0, 0.5, 0.4, 1.0, 1.1, 0.39, 0.38])
    made.evaluator.loss = lambda weights: next(losses)
    made.run()
    assert [line.get("rolled_back_to") for line in made.of("round.committed")][4] == 2
    assert a.means == b.means == {1: None, 2: 0.2, 3: 0.2, 4: 0.2, 5: None, 6: 0.2}
    assert a.counted == {1: 0, 2: 1, 3: 2, 4: 3, 5: 0, 6: 5}
    assert [line["variates"] for line in made.of("round.committed")] == [0, 2, 2, 2, 0, 2, 2]
    assert not (made.folder / "rounds" / "00004" / variates.INDEX).exists()
    # Nor with what the nodes hold.
    assert [bool(task.difference_to) for task in a.trained] == [
        False,
        True,
        True,
        True,
        False,
        True,
    ]
    assert not (made.folder / "rounds" / "00004" / HELD).exists()


class Died(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("moment", ["in the middle of the round", "before the commit"])
def test_a_resumed_run_has_those_of_its_last_committed_round(
    world: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Among them that of a node which has been away since round 1, whose folder is gone."""

    def nodes() -> list[Node]:
        made = of(a=0.1, b=0.2, c=0.6)
        made[2].train = away_in(2, 3, 4)
        return made

    settings = {"num-server-rounds": 5, "keep-rounds": 1, "eval-frequency": 1}
    whole = World(tmp_path / "whole", nodes(), **settings)
    whole.run()
    made = world(nodes(), **settings)
    real = Journal.commit

    def deadly(journal: Journal, number: int, files: Any) -> Path:
        if number == 3:
            raise Died
        return real(journal, number, files)

    def busy(task: Any, weights: Any) -> Any:
        if task.round == 3:
            raise Died
        return FakeEvaluator.evaluate(made.evaluator, task, weights)

    with monkeypatch.context() as patched:
        if moment == "before the commit":
            patched.setattr(Journal, "commit", deadly)
        else:
            patched.setattr(made.evaluator, "evaluate", busy)
        with pytest.raises(Died):
            made.run()
    assert list((made.folder / "variates").iterdir()), "round 3's, which does not exist"
    made.run(resumed_by="77")
    assert made.files() == whole.files()
    c = made.grid.nodes[3]
    assert isinstance(c, Node)
    assert c.counted[5] == 1
    assert c.means[5] == 0.3
    assert not (made.folder / "variates").exists()


@pytest.mark.parametrize("call", ["make_folder", "rename", "link_file"])
def test_a_full_disk_loses_nothing(
    world: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    whole = World(tmp_path / "whole", of(a=0.1, b=0.3))
    whole.run()
    made = world(of(a=0.1, b=0.3))
    real, calls = getattr(variates, call), []

    def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 6:  # in round 3
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(variates, call, full)
        made.run()
    assert [line["reason"] for line in made.of("run.waiting")] == ["disk_full"]
    assert "cannot be written" in made.of("run.waiting")[0]["message"]
    rounds = [line["round"] for line in made.of("round.committed")]
    assert rounds == sorted(set(rounds)), "none is committed twice"
    assert made.files() == whole.files()


@pytest.mark.parametrize("harm", ["missing", "flipped"])
def test_a_damaged_variate_is_known_and_the_round_before_is_used(
    world: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, harm: str
) -> None:
    whole = World(tmp_path / "whole", of(a=0.1, b=0.3))
    whole.run()
    made = world(of(a=0.1, b=0.3))
    real = Journal.commit

    def deadly(journal: Journal, number: int, files: Any) -> Path:
        if number == 4:
            raise Died
        return real(journal, number, files)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "commit", deadly)
        with pytest.raises(Died):
            made.run()
    one = next((made.folder / "rounds" / "00003").glob("*.variates"))
    content = bytearray(one.read_bytes())
    one.unlink()
    if harm == "flipped":
        content[-1] ^= 1
        one.write_bytes(content)
    made.run(resumed_by="77")
    assert [line["round"] for line in made.of("run.resumed")] == [2]
    assert made.files() == whole.files()
