"""What nodes may send, and what becomes of the model. Prints a table.

The nodes are fakes whose honest update pulls the weights towards a goal, so the model's distance to
it says whether an attack had any effect; real learning under attack is in test_attacks_learning.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import RecordDict

from tests.federation.fakes import FakeEvaluator, FakeGrid, FakeNode, first_weights, silent
from tests.record.lines import read_lines
from zk0d.config.machine import ServerSettings
from zk0d.config.run import run_settings
from zk0d.federation.admission import COOLDOWN_ROUNDS
from zk0d.federation.envelope import to_record
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.run import Run
from zk0d.federation.update import Manifest, Payload
from zk0d.record.journal import Journal

GOAL = {name: np.full_like(array, 3.0) for name, array in first_weights().items()}
ROUNDS = 6
Answer = tuple[RecordDict | None, float]


def honest(task: Train, payload: Payload, number: int = 0) -> dict[str, np.ndarray]:
    """Half of the way to the goal, with a little noise of the node's own."""
    random = np.random.default_rng([task.round, number])
    return {
        name: (0.5 * (GOAL[name] - array) + 0.01 * random.standard_normal(array.shape)).astype(
            np.float32
        )
        for name, array in payload.arrays().items()
    }


def good(node: FakeNode, task: Train, payload: Payload) -> Answer:
    return node.update(task, payload, lambda _: honest(task, payload, ord(node.name[0]))), 2.0


def altered(change: Callable[[dict[str, Any]], Any], **facts: Any) -> Callable[..., Answer]:
    """An honest update, but for ``change``."""

    def train(node: FakeNode, task: Train, payload: Payload) -> Answer:
        def made(_: Any) -> dict[str, Any]:
            arrays = honest(task, payload, 9)
            changed = change(arrays)
            return arrays if changed is None else changed

        return node.update(task, payload, made, **facts), 2.0

    return train


def scaled(factor: float) -> Callable[..., Answer]:
    return altered(lambda arrays: {n: a * np.float32(factor) for n, a in arrays.items()})


def rename(arrays: dict[str, Any]) -> None:
    arrays["z"] = arrays.pop("b")


def on_the_way(damage: Callable[[Payload], None]) -> Callable[..., Answer]:
    """Damage the payload's bytes after its manifest was made."""

    def train(node: FakeNode, task: Train, payload: Payload) -> Answer:
        update = Payload.of(honest(task, payload, 9), "delta", task.training.uplink_codec)
        update = update.with_beside(node.variate(task, payload))
        damage(update)
        reply = node.update(task, payload, lambda _: honest(task, payload, 9))
        body = TrainReply.model_validate_json(str(reply["message"]["body"]))
        return to_record(body, update), 2.0

    return train


def flip(payload: Payload) -> None:
    damaged = bytearray(payload.chunks[0])
    damaged[-1] ^= 1
    payload.chunks[0] = bytes(damaged)


def truncate(payload: Payload) -> None:
    payload.chunks[-1] = payload.chunks[-1][:-3]


def bomb(payload: Payload) -> None:
    """A manifest that promises more than the model has."""
    entry = payload.manifest.tensors[0].model_copy(update={"shape": (2**20, 2**10)})
    payload.manifest = Manifest.model_construct(
        kind="delta", codec=payload.manifest.codec, tensors=(entry,)
    )


class Replay:
    """Sends the first round's update for ever."""

    def __init__(self) -> None:
        self.kept: RecordDict | None = None

    def __call__(self, node: FakeNode, task: Train, payload: Payload) -> Answer:
        if self.kept is None:
            self.kept = good(node, task, payload)[0]
            return good(node, task, payload)
        from tests.federation.fakes import _copied

        return _copied(self.kept), 2.0


@dataclass
class Attack:
    """How a node misbehaves and what is said of it."""

    train: Callable[..., Answer]
    reason: str = ""  #: of the refusal, or of its loss
    settings: dict[str, Any] | None = None


ATTACKS: dict[str, Callable[[], Attack]] = {
    "NaN": lambda: Attack(altered(lambda a: a["a"].fill(np.nan)), "wrong_codec|not_finite"),
    "infinity": lambda: Attack(altered(lambda a: a["a"].fill(np.inf)), "wrong_codec|not_finite"),
    "NaN, uncompressed run": lambda: Attack(
        altered(lambda a: a["a"].fill(np.nan)), "not_finite", {"uplink-codec": "fp32"}
    ),
    "losses that are NaN": lambda: Attack(altered(lambda a: None, loss=float("nan")), "not_finite"),
    "all zeros": lambda: Attack(scaled(0.0), "zero_update"),
    "x1000": lambda: Attack(scaled(1000.0), "norm_outlier"),
    "x1000 with a hard cap": lambda: Attack(
        scaled(1000.0), "norm_cap", {"max-update-ratio": 2.5, "norm-outlier-factor": 0.0}
    ),
    "sign flipped, trimmed mean": lambda: Attack(
        scaled(-1.0), "", {"aggregation": "trimmed-mean", "min-fit-clients": 3}
    ),
    "sign flipped x4, median": lambda: Attack(scaled(-4.0), "", {"aggregation": "median"}),
    "x1000, norm clipping": lambda: Attack(
        scaled(1000.0), "", {"norm-outlier-factor": 0.0, "norm-clip-factor": 1.0}
    ),
    "sign flipped x4, norm clipping": lambda: Attack(scaled(-4.0), "", {"norm-clip-factor": 1.0}),
    "wrong shapes": lambda: Attack(
        altered(lambda a: a.update(a=a["a"].T.copy())), "manifest_mismatch"
    ),
    "renamed tensors": lambda: Attack(altered(rename), "manifest_mismatch"),
    "extra tensors": lambda: Attack(
        altered(lambda a: a.update(more=np.ones(3, np.float32))), "manifest_mismatch"
    ),
    "a manifest of 4 GiB": lambda: Attack(on_the_way(bomb), "manifest_mismatch"),
    "truncated payload": lambda: Attack(on_the_way(truncate), "manifest_mismatch"),
    "flipped bit": lambda: Attack(on_the_way(flip), "manifest_mismatch"),
    "an old round's update": lambda: Attack(Replay(), "wrong_round"),
    "another base": lambda: Attack(altered(lambda a: None, base="0" * 64), "wrong_base"),
    "10^9 samples claimed": lambda: Attack(
        altered(lambda a: None, samples=10**9), "implausible_samples"
    ),
    "never answers": lambda: Attack(silent, "deadline"),
    "answers after the deadline": lambda: Attack(
        lambda node, task, payload: (good(node, task, payload)[0], 101.0), "deadline"
    ),
}


def distance(folder: Path) -> float:
    newest = max((folder / "rounds").iterdir())
    weights = safetensors.numpy.load_file(newest / "global.safetensors")
    return max(float(np.abs(weights[name] - GOAL[name]).max()) for name in GOAL)


def trained(folder: Path, attack: Attack | None) -> tuple[float, list[dict[str, Any]], FakeNode]:
    nodes = [FakeNode(name, train=good) for name in ("a", "b", "c")]
    nodes.append(FakeNode("d", train=attack.train if attack else good))
    nodes[3].query = lambda node, task: (to_record(node.query_reply()), 1.0)
    grid = FakeGrid(nodes)
    settings = run_settings(
        {
            "num-server-rounds": ROUNDS,
            "local-steps": 4,
            "server-momentum": 0.0,
            "round-deadline": 100.0,
            "node-wait": 50.0,
            "max-update-ratio": 0.0,
            "max-strikes": 3,
            **((attack.settings if attack else None) or {}),
        }
    )
    Run(
        grid,
        settings,
        ServerSettings(state=folder),
        Journal(folder, "1"),
        FakeEvaluator(),
        clock=grid.clock,
        sleep=grid.sleep,
    ).run()
    return distance(folder), list(read_lines(folder)), nodes[3]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> float:
    """How far a run without an attack ends from the goal."""
    return trained(tmp_path_factory.mktemp("clean"), None)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_nothing(
    tmp_path: Path, clean: float, name: str, record_property: Callable[[str, object], None]
) -> None:
    attack = ATTACKS[name]()
    left, lines, node = trained(tmp_path / "attacked", attack)
    assert left < clean + 0.1, "the model is where it would have been"
    refused = [line for line in lines if line["kind"] == "update.refused"]
    lost = [line for line in lines if line["kind"] == "node.lost"]
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert len(committed) == ROUNDS + 1, "no round is lost"
    if attack.reason == "deadline":
        assert {line["reason"] for line in lost} <= {"deadline", "late"}
        assert lost
        assert not refused
        became = f"{len(lost)} rounds end at their deadline"
    elif attack.reason:
        assert {line["reason"] for line in refused} <= set(attack.reason.split("|"))
        assert {line["node"] for line in refused} == {"d"}
        # Three strikes, then some rounds without it.
        first = refused[0]["round"]
        assert [line["round"] for line in refused][:3] == [first, first + 1, first + 2]
        assert [n.reason for n in node.notices][:1] == [refused[0]["reason"]], "it is told"
        sits_out = next(line for line in lines if line["kind"] == "node.sits_out")
        assert sits_out["until"] == first + 2 + COOLDOWN_ROUNDS
        became = f"refused: {refused[0]['reason']}; sits out after 3"
    else:
        assert not refused
        became = f"outvoted; {left:.3f} from the goal, {clean:.3f} without it"
    record_property("attack", name)
    record_property("became", became)


def test_a_plain_mean_would_have_followed(tmp_path: Path, clean: float) -> None:
    """The yardstick of the rows that are outvoted: these attacks do harm where nothing is done."""
    unguarded = {"norm-outlier-factor": 0.0, "max-update-ratio": 0.0}
    flipped, _, _ = trained(tmp_path / "flipped", Attack(scaled(-4.0), "", unguarded))
    assert flipped > clean + 1.0
    huge, _, _ = trained(tmp_path / "huge", Attack(scaled(1000.0), "", unguarded))
    assert huge > 1000.0
