"""What differs on a GPU: the step is recorded once and replayed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from zk0d.config.machine import CacheSettings
from zk0d.config.run import TrainingSettings
from zk0d.errors import DataError
from zk0d.learning import step as steps
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, release_gpu_memory
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import Adapter, PolicySpec
from zk0d.learning.step import Correction
from zk0d.learning.train import Moments, StepPlan, TrainResult, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def taking(count: int, batch_size: int = 8) -> TrainingSettings:
    return TrainingSettings(local_steps=count, batch_size=batch_size)


PLAN = StepPlan(
    training=taking(20),
    first_step=0,
    schedule=CosineSchedule(peak=2e-3, end=1e-4, warmup_steps=4, total_steps=80),
    seed=1,
)


@pytest.fixture
def on_gpu(smolvla_spec: PolicySpec) -> LoadedPolicy:
    return load_policy(smolvla_spec, device="cuda", precision="float32")


@pytest.fixture(params=[True, False], ids=["features", "images"])
def prepared(
    request: pytest.FixtureRequest, recordings: Recordings, on_gpu: LoadedPolicy
) -> PreparedRecordings:
    return PreparedRecordings(recordings, on_gpu, CacheSettings(vision_features=request.param))


def run(
    prepared: PreparedRecordings,
    plan: StepPlan,
    moments: Moments | None = None,
    round_: int = 1,
    **how: Any,
) -> tuple[TrainResult, list[float]]:
    losses: list[float] = []
    policy = prepared.policy
    result = train(
        policy,
        prepared.batches(prepared.statistics()),
        prepared.usable,
        (moments or Moments(policy)).begin("run", round_, 0.01),
        plan,
        on_step=lambda step, loss: losses.append(loss),
        **how,
    )
    return result, losses


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_replayed_steps_are_those_taken_kernel_by_kernel(
    prepared: PreparedRecordings, monkeypatch: pytest.MonkeyPatch, mu: float
) -> None:
    start = prepared.policy.weights()
    plan = replace(PLAN, proximal_mu=mu)
    replayed, losses = run(prepared, plan)
    weights = prepared.policy.weights()
    prepared.policy.load_weights(start)
    with monkeypatch.context() as patched:
        patched.setattr(steps, "ReplayedStep", lambda plain: plain)
        plain, expected = run(prepared, plan)
    assert len(losses) == len(expected) == plan.training.local_steps
    np.testing.assert_allclose(losses, expected, rtol=2e-3)
    assert replayed.proximal_loss == pytest.approx(plain.proximal_loss, rel=0.02)
    assert replayed.grad_norm == pytest.approx(plain.grad_norm, rel=0.02)
    assert replayed.learning_rate == plain.learning_rate
    moved = {n: w - start[n] for n, w in prepared.policy.weights().items()}
    apart = sum(float(np.square(weights[n] - start[n] - m).sum()) for n, m in moved.items())
    assert apart < 0.02 * sum(float(np.square(m).sum()) for m in moved.values())


def test_a_corrected_step_is_recorded_too(
    prepared: PreparedRecordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights and the same mean gradient as kernel by kernel."""
    weights = prepared.policy.trainable()
    start = prepared.policy.weights()
    offset = {name: 1e-3 * torch.randn_like(weight) for name, weight in weights.items()}
    ends, means = [], []
    for stepping in (steps.ReplayedStep, lambda plain: plain):
        correction = Correction(weights, offset)
        with monkeypatch.context() as patched:
            patched.setattr(steps, "ReplayedStep", stepping)
            run(prepared, PLAN, correction=correction)
        ends.append(prepared.policy.weights())
        means.append(correction.mean(PLAN.training.local_steps))
        prepared.policy.load_weights(start)
    for name, value in start.items():
        moved = [end[name] - value for end in ends]
        apart = float(np.square(moved[0] - moved[1]).sum())
        assert apart <= 0.02 * float(np.square(moved[1]).sum()) + 1e-12, name
        difference = (means[0][name] - means[1][name]).norm()
        assert difference <= 0.05 * means[1][name].norm() + 1e-6, name


def test_an_adapters_own_rates_are_followed_by_a_recorded_step(
    recordings: Recordings, smolvla_spec: PolicySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a multiple of the schedule's, which changes from step to step."""
    adapter = Adapter(kind="lora", rank=4)
    spec = smolvla_spec.model_copy(update={"adapter": adapter, "sha256": ""})
    policy = load_policy(spec, device="cuda", precision="float32")
    prepared = PreparedRecordings(recordings, policy, CacheSettings())
    start, ends = policy.weights(), []
    for stepping in (steps.ReplayedStep, lambda plain: plain):
        with monkeypatch.context() as patched:
            patched.setattr(steps, "ReplayedStep", stepping)
            run(prepared, PLAN)
        ends.append(policy.weights())
        policy.load_weights(start)
    for name, value in start.items():
        moved = [end[name] - value for end in ends]
        apart = float(np.square(moved[0] - moved[1]).sum())
        assert float(np.square(moved[1]).sum()) > 0, name
        assert apart <= 0.02 * float(np.square(moved[1]).sum()), name


def test_a_replayed_step_waits_for_nothing(prepared: PreparedRecordings) -> None:
    """Neither making a batch nor drawing for it waits until the GPU has done what it was given."""
    begun = itertools.count()

    def check() -> None:
        if next(begun) > steps.WARM_UP:
            torch.cuda.set_sync_debug_mode("error")

    try:
        result, _ = run(prepared, PLAN, check=check)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.steps == PLAN.training.local_steps


def test_a_batch_that_gives_no_number_changes_nothing(
    prepared: PreparedRecordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it falls: among the steps taken singly, or in the recorded ones."""
    taken: list[int] = []
    plain_draw = prepared.policy.policy.model.sample_time

    def sometimes(rows: int, device: torch.device) -> torch.Tensor:
        taken.append(len(taken))
        drawn: torch.Tensor = plain_draw(rows, device)
        return drawn * float("nan") if taken[-1] in (1, 9) else drawn

    monkeypatch.setattr(prepared.policy.policy.model, "sample_time", sometimes)
    result, losses = run(prepared, PLAN)
    assert result.bad_batches == 2
    assert result.steps == len(losses) == PLAN.training.local_steps == len(taken) - 2
    assert np.isfinite(losses).all()
    assert all(np.isfinite(w).all() for w in prepared.policy.weights().values())
    monkeypatch.setattr(
        prepared.policy.policy.model, "sample_time", lambda n, d: plain_draw(n, d) * float("nan")
    )
    before = prepared.policy.weights()
    with pytest.raises(DataError, match="not a number"):
        run(prepared, PLAN)
    assert all(np.array_equal(before[n], w) for n, w in prepared.policy.weights().items())


def test_a_repeated_round_starts_from_the_same_moments(prepared: PreparedRecordings) -> None:
    moments = Moments(prepared.policy)
    run(prepared, PLAN, moments, 1)
    start = prepared.policy.weights()
    _, first = run(prepared, PLAN, moments, 2)
    prepared.policy.load_weights(start)
    _, again = run(prepared, PLAN, moments, 2)
    np.testing.assert_allclose(first, again, rtol=2e-3)
    prepared.policy.load_weights(start)
    _, fresh = run(prepared, PLAN, Moments(prepared.policy), 2)
    assert not np.allclose(first[5:], fresh[5:], rtol=2e-3)


def test_later_rounds_keep_no_more_memory_than_the_first(prepared: PreparedRecordings) -> None:
    moments = Moments(prepared.policy)
    kept = []
    for round_ in (1, 2, 3):
        run(prepared, replace(PLAN, training=taking(6)), moments, round_)
        release_gpu_memory()
        kept.append(torch.cuda.memory_allocated())
    assert kept[2] <= kept[0] + 2**20


def test_bfloat16_learns_as_float32_does(smolvla_spec: PolicySpec, recordings: Recordings) -> None:
    ends = {}
    for precision in ("float32", "bfloat16"):
        policy = load_policy(smolvla_spec, device="cuda", precision=precision)
        prepared = PreparedRecordings(recordings, policy, CacheSettings())
        _, losses = run(prepared, replace(PLAN, training=taking(80, 16)))
        assert all(p.dtype == torch.float32 for p in policy.trainable().values())
        ends[precision] = float(np.mean(losses[-8:]))
    assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=0.1)


def test_an_idle_learner_keeps_no_memory_that_it_does_not_use() -> None:
    release_gpu_memory()
    before = torch.cuda.memory_reserved()
    torch.empty(2**30, dtype=torch.uint8, device="cuda")
    assert torch.cuda.memory_reserved() >= before + 2**30, "PyTorch keeps it for reuse"
    release_gpu_memory()
    assert torch.cuda.memory_reserved() <= before
