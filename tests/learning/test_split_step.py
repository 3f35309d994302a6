"""A batch that several devices share is one device's, but for the order of sums.

Copies on the CPU stand in for GPUs; where there are two GPUs, they are used as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from zk0d.config.machine import CacheSettings
from zk0d.config.run import TrainingSettings
from zk0d.errors import DataError, UnavailableError
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, pick_device, replica, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import PolicySpec
from zk0d.learning.split_step import _cut, _shares
from zk0d.learning.step import Correction
from zk0d.learning.train import Moments, StepPlan, TrainResult, train

TWO_GPUS = pytest.param(
    "cuda", marks=pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
)


def plan(batch_size: int = 8, **more: Any) -> StepPlan:
    made = StepPlan(
        training=TrainingSettings(local_steps=12, batch_size=batch_size),
        first_step=0,
        schedule=CosineSchedule(peak=2e-3, end=1e-4, warmup_steps=4, total_steps=80),
        seed=1,
    )
    return replace(made, **more)


def policy_on(kind: str, spec: PolicySpec) -> LoadedPolicy:
    return load_policy(spec, device="cpu" if kind == "cpu" else "cuda:0", precision="float32")


def shared(loaded: LoadedPolicy, count: int) -> LoadedPolicy:
    """The same policy with so many devices."""
    kind = loaded.device.type
    where = [torch.device("cpu" if kind == "cpu" else f"cuda:{n}") for n in range(1, count)]
    loaded.replicas = tuple(replica(loaded, each) for each in where)
    return loaded


def run(
    recordings: Recordings,
    loaded: LoadedPolicy,
    how: StepPlan,
    *,
    features: bool = True,
    corrected: bool = False,
) -> tuple[TrainResult, list[float], dict[str, np.ndarray[Any, Any]], Correction | None]:
    prepared = PreparedRecordings(recordings, loaded, CacheSettings(vision_features=features))
    losses: list[float] = []
    correction = None
    if corrected:
        weights = loaded.trainable()
        offset = {name: torch.full_like(each, 1e-4) for name, each in weights.items()}
        correction = Correction(weights, offset)
    result = train(
        loaded,
        prepared.batches(prepared.statistics()),
        prepared.usable,
        Moments(loaded).begin("run", 1, 0.01),
        how,
        on_step=lambda step, loss: losses.append(loss),
        correction=correction,
    )
    return result, losses, loaded.weights(), correction


@pytest.mark.parametrize("kind", ["cpu", TWO_GPUS])
@pytest.mark.parametrize("features", [True, False], ids=["features", "images"])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_two_devices_have_one_devices_result(
    recordings: Recordings, smolvla_spec: PolicySpec, kind: str, features: bool, mu: float
) -> None:
    how = plan(proximal_mu=mu)
    alone = run(recordings, policy_on(kind, smolvla_spec), how, features=features, corrected=True)
    both = run(
        recordings,
        shared(policy_on(kind, smolvla_spec), 2),
        how,
        features=features,
        corrected=True,
    )
    assert both[1] == pytest.approx(alone[1], rel=1e-3)
    assert both[0].grad_norm == pytest.approx(alone[0].grad_norm, rel=1e-3)
    for name, values in alone[2].items():
        # AdamW's first steps divide by what is nearly zero, and that by the order of sums.
        np.testing.assert_allclose(both[2][name], values, atol=2e-4, err_msg=name)
    assert alone[3] is not None
    assert both[3] is not None
    theirs = alone[3].mean(12)
    for name, mean in both[3].mean(12).items():
        torch.testing.assert_close(mean, theirs[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("rows", "devices"), [(5, 2), (1, 2), (8, 3)])
def test_rows_that_cannot_be_shared_evenly_weigh_the_same(
    recordings: Recordings, smolvla_spec: PolicySpec, rows: int, devices: int
) -> None:
    how = plan(rows)
    _, alone, *_ = run(recordings, policy_on("cpu", smolvla_spec), how)
    _, both, *_ = run(recordings, shared(policy_on("cpu", smolvla_spec), devices), how)
    assert both == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("kind", ["smolvla", "act"])
def test_the_weights_put_a_loss_together(recordings: Recordings, kind: str) -> None:
    spec = spec_for(kind, "tiny", 0, recordings.summary, models={})
    loaded = load_policy(spec, device="cpu", precision="float32")
    prepared = PreparedRecordings(recordings, loaded, CacheSettings(vision_features=False))
    # The last frames of an episode, whose chunks run past it.
    rows = prepared.usable[-9:]
    batch = prepared.batches(prepared.statistics()).batch(rows)
    parts = [_cut(batch, each) for each in (slice(0, 4), slice(4, 9))]
    loaded.policy.eval()

    def loss(of: dict[str, Any]) -> float:
        with torch.random.fork_rng(), loaded.whole_images():
            return loaded.policy.forward(dict(of), **fixed(loaded, of, batch))[0].item()

    weights = [float(loaded.weight(each)) for each in parts]
    mean = sum(w * loss(each) for w, each in zip(weights, parts, strict=True)) / sum(weights)
    assert mean == pytest.approx(loss(batch), rel=1e-4)


def fixed(
    loaded: LoadedPolicy, of: dict[str, Any], batch: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The same noise for the same rows, where a family takes it from outside."""
    torch.manual_seed(3)
    drawn = loaded.drawn(len(batch["action"]))
    first = 0 if len(of["action"]) != 5 else 4
    return _cut(drawn, slice(first, first + len(of["action"])))


def test_shares_cover_all_rows_once() -> None:
    for rows in range(1, 20):
        for devices in range(1, 6):
            shares = _shares(rows, devices)
            assert len(shares) == min(rows, devices)
            assert [row for each in shares for row in range(rows)[each]] == list(range(rows))


@pytest.mark.parametrize("kind", ["cpu", TWO_GPUS])
def test_all_devices_have_the_same_weights_at_the_end(
    recordings: Recordings, act_spec: PolicySpec, kind: str
) -> None:
    loaded = shared(policy_on(kind, act_spec), 2)
    before = loaded.weights()
    run(recordings, loaded, plan(), features=False)
    (other,) = loaded.replicas
    for name, values in other.weights().items():
        np.testing.assert_array_equal(values, loaded.weights()[name])
    assert any((values != before[name]).any() for name, values in other.weights().items())


@pytest.mark.parametrize("kind", ["cpu", TWO_GPUS])
def test_a_loss_of_nan_changes_nothing(
    recordings: Recordings, smolvla_spec: PolicySpec, kind: str
) -> None:
    loaded = shared(policy_on(kind, smolvla_spec), 2)
    (other,) = loaded.replicas
    with torch.no_grad():
        for name, each in loaded.policy.named_parameters():
            if not each.requires_grad:
                continue
            each[...] = float("nan")
            broken = name
            break
    before = loaded.weights()
    with pytest.raises(DataError, match="batches gave a loss"):
        run(recordings, loaded, plan(max_bad_batches=2))
    for name, values in loaded.weights().items():
        np.testing.assert_array_equal(values, before[name])
    assert np.isnan(before[broken]).all()
    assert np.isnan(other.weights()[broken]).all(), "it had the round's first weights"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UnavailableError, match=r"cuda:2 is asked for, and PyTorch sees 2 GPUs"):
        pick_device("cuda:2")
