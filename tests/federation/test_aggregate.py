from __future__ import annotations

import numpy as np
import pytest

from zk0d.errors import Zk0dError
from zk0d.federation.admission import NotAdmitted, admit
from zk0d.federation.aggregate import ServerStep, WeightedMean, norm
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.update import Payload, UpdateError
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import FeatureStatistics, Statistics

STATISTICS = Statistics(features={"action": FeatureStatistics.of(np.ones((2, 2)))})
SPEC = PolicySpec(
    policy="act", model_name="tiny", seed=0, fps=30, state_width=2, action_width=2, cameras={}
)


def weights(value: float = 0.0) -> dict[str, np.ndarray]:
    return {"a": np.full((2, 3), value, np.float32), "b": np.full(4, value, np.float32)}


def task(**changes: object) -> Train:
    facts: dict[str, object] = {
        "run": "r",
        "round": 3,
        "spec": SPEC,
        "base": Payload.of(weights(), "weights").manifest.sha256,
        "statistics": STATISTICS,
        "statistics_sha256": STATISTICS.sha256,
        "steps": 10,
        "batch_size": 8,
        "first_step": 20,
        "schedule": CosineSchedule(peak=1e-3, end=1e-4, warmup_steps=0, total_steps=100),
        "seed": 0,
        "weight_decay": 0.0,
        "grad_clip_norm": 10.0,
        "proximal_mu": 0.0,
        "deadline_seconds": 60.0,
    }
    return Train.model_validate({**facts, **changes})


def reply(of: Train, **changes: object) -> TrainReply:
    facts: dict[str, object] = {
        "name": "n",
        "round": of.round,
        "base": of.base,
        "steps": of.steps,
        "samples": of.steps * of.batch_size,
        "loss": 1.0,
        "policy_loss": 1.0,
        "proximal_loss": 0.0,
        "grad_norm": 1.0,
        "update_norm": 1.0,
        "learning_rate": 1e-3,
    }
    return TrainReply.model_validate({**facts, **changes})


MODEL = Payload.of(weights(), "weights").manifest


def test_a_good_update_is_admitted_with_its_norm() -> None:
    given = task()
    admitted = admit(given, reply(given), Payload.of(weights(2.0), "delta"), MODEL)
    assert admitted.norm == pytest.approx(2.0 * np.sqrt(10))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 2}, "wrong_round"),
        ({"base": "0" * 64}, "wrong_base"),
        ({"samples": 81}, "implausible_samples"),
        ({"steps": 11}, "implausible_samples"),
        ({"loss": float("nan")}, "not_finite"),
        ({"grad_norm": float("inf")}, "not_finite"),
    ],
)
def test_an_answer_that_is_not_to_the_question(change: dict[str, object], reason: str) -> None:
    given = task()
    with pytest.raises(NotAdmitted) as error:
        admit(given, reply(given, **change), Payload.of(weights(1.0), "delta"), MODEL)
    assert error.value.reason == reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_an_update_that_is_not_finite(value: float) -> None:
    given = task()
    poisoned = weights(1.0)
    poisoned["b"][2] = value
    with pytest.raises(NotAdmitted, match="tensor 'b' holds NaN or infinity") as error:
        admit(given, reply(given), Payload.of(poisoned, "delta"), MODEL)
    assert error.value.reason == "not_finite"


def test_an_update_without_tensors_or_of_the_wrong_kind() -> None:
    given = task()
    with pytest.raises(NotAdmitted) as error:
        admit(given, reply(given), None, MODEL)
    assert error.value.reason == "no_payload"
    with pytest.raises(NotAdmitted) as error:
        admit(given, reply(given), Payload.of(weights(1.0), "weights"), MODEL)
    assert error.value.reason == "wrong_kind"


def test_an_altered_update_names_its_tensor() -> None:
    given = task()
    payload = Payload.of(weights(1.0), "delta")
    damaged = bytearray(payload.chunks[0])
    damaged[-1] ^= 1
    payload.chunks[0] = bytes(damaged)
    with pytest.raises(UpdateError, match="tensor 'b'"):
        admit(given, reply(given), payload, MODEL)


def test_the_mean_is_weighted_and_the_updates_are_freed() -> None:
    mean = WeightedMean(weights())
    payloads = [Payload.of(weights(v), "delta") for v in (1.0, 4.0)]
    mean.fold(payloads[0], 1.0)
    mean.fold(payloads[1], 3.0)
    assert all(payload.chunks == [] for payload in payloads)
    assert mean.updates == 2
    assert np.allclose(mean.mean()["a"], (1.0 + 3 * 4.0) / 4)


def test_two_updates_give_the_same_mean_in_either_order() -> None:
    random = np.random.default_rng(0)
    deltas = [{"a": random.normal(size=1000).astype(np.float32)} for _ in range(2)]

    def mean(order: list[int]) -> np.ndarray:
        made = WeightedMean(deltas[0])
        for i in order:
            made.fold(Payload.of(deltas[i], "delta"), 0.3 + i)
        return made.mean()["a"]

    assert np.array_equal(mean([0, 1]), mean([1, 0]))


def test_no_update_has_no_mean() -> None:
    with pytest.raises(Zk0dError, match="no update was admitted"):
        WeightedMean(weights()).mean()


def test_without_momentum_the_step_is_fedavg() -> None:
    moved = weights(1.0)
    step = ServerStep(momentum=0.0, rate=1.0)
    step.apply(moved, weights(0.5))
    assert np.allclose(moved["a"], 1.5)
    assert step.velocity is None


def test_momentum_is_fedavgms() -> None:
    moved = weights(0.0)
    step = ServerStep(momentum=0.5, rate=2.0)
    # V = 1, G = 2; V = 0.5 + 1 = 1.5, G = 5; V = 0.75 + 0 = 0.75, G = 6.5
    for mean, expected in ((1.0, 2.0), (1.0, 5.0), (0.0, 6.5)):
        step.apply(moved, weights(mean))
        assert np.allclose(moved["b"], expected)


def test_the_norm_is_over_all_tensors() -> None:
    assert norm({"a": np.float32([3.0]), "b": np.float32([[4.0]])}) == pytest.approx(5.0)
