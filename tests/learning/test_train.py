from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from zk0d.config.run import TrainingSettings
from zk0d.errors import DataError
from zk0d.learner.tasks import Stopped
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.step import Correction, Proximal
from zk0d.learning.train import Moments, StepPlan, TrainResult, train


def steps(count: int, batch_size: int = 8) -> TrainingSettings:
    return TrainingSettings(local_steps=count, batch_size=batch_size)


PLAN = StepPlan(
    training=steps(12),
    first_step=0,
    schedule=CosineSchedule(peak=2e-3, end=1e-4, warmup_steps=4, total_steps=80),
    seed=1,
)


def run(
    prepared: PreparedRecordings,
    policy: LoadedPolicy,
    plan: StepPlan,
    moments: Moments | None = None,
    round_: int = 1,
    **how: object,
) -> TrainResult:
    optimizer = (moments or Moments(policy)).begin("run", round_, 0.01)
    statistics = prepared.statistics()
    return train(
        policy,
        prepared.batches(statistics),
        prepared.usable,
        optimizer,
        plan,
        **how,  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_training_lowers_the_loss(with_features: PreparedRecordings, smolvla: LoadedPolicy) -> None:
    losses: list[float] = []
    result = run(
        with_features,
        smolvla,
        replace(PLAN, training=steps(80, 16)),
        on_step=lambda step, loss: losses.append(loss),
    )
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    assert result.steps == len(losses) == 80
    assert result.samples == 1280
    assert result.policy_loss == pytest.approx(np.mean(losses))
    assert result.loss == result.policy_loss
    assert result.learning_rate == PLAN.schedule.rate(79)


def test_only_trainable_weights_move(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    before = {n: p.detach().clone() for n, p in smolvla.policy.named_parameters()}
    run(
        with_features,
        smolvla,
        replace(PLAN, training=steps(2)),
    )
    moved = {n for n, p in smolvla.policy.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= set(smolvla.trainable())


@pytest.mark.slow
def test_the_same_seed_trains_the_same(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    start = smolvla.weights()
    run(with_features, smolvla, PLAN)
    first = smolvla.weights()
    smolvla.load_weights(start)
    run(with_features, smolvla, PLAN)
    assert all(np.array_equal(first[n], w) for n, w in smolvla.weights().items())
    smolvla.load_weights(start)
    run(with_features, smolvla, replace(PLAN, seed=2))
    assert not all(np.array_equal(first[n], w) for n, w in smolvla.weights().items())


@pytest.mark.slow
def test_a_repeated_round_starts_from_the_same_moments(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    moments = Moments(smolvla)
    run(with_features, smolvla, PLAN, moments, round_=1)
    base = smolvla.weights()
    run(with_features, smolvla, PLAN, moments, round_=2)
    first = smolvla.weights()
    smolvla.load_weights(base)
    run(with_features, smolvla, PLAN, moments, round_=2)
    assert all(np.array_equal(first[n], w) for n, w in smolvla.weights().items())
    # With fresh moments the same round gives something else: they do matter.
    smolvla.load_weights(base)
    run(with_features, smolvla, PLAN, Moments(smolvla), round_=2)
    assert not all(np.array_equal(first[n], w) for n, w in smolvla.weights().items())


def test_moments_of_another_run_are_dropped(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    moments = Moments(smolvla)
    run(
        with_features,
        smolvla,
        replace(PLAN, training=steps(1)),
        moments,
    )
    assert moments.begin("run", 2, 0.0).state
    assert not moments.begin("another", 3, 0.0).state


def test_the_proximal_gradient_is_that_of_the_term() -> None:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    proximal = Proximal(parameters, mu=0.3)
    anchors = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter))
    squares = [((p - a) ** 2).sum() for p, a in zip(parameters, anchors, strict=True)]
    term = 0.15 * torch.stack(squares).sum()
    expected = torch.autograd.grad(term, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    proximal.add_gradient()
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, 1 + gradient, atol=1e-6)
    assert float(proximal.value()) == pytest.approx(float(term.detach()), rel=1e-5)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    proximal = Proximal([used, unused], mu=1.0)
    used.grad = torch.zeros(2)
    with torch.no_grad():
        used.add_(1.0)
    proximal.add_gradient()
    assert torch.equal(used.grad, torch.ones(2))
    assert unused.grad is None


def test_a_correction_adds_its_offset_and_means_what_was_there_before() -> None:
    used, unused = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    parameters = {"used": used, "unused": unused}
    offset = {"used": torch.tensor([1.0, -1.0]), "unused": torch.ones(3)}
    correction = Correction(parameters, offset)
    for gradient in (2.0, 4.0):
        used.grad = torch.full((2,), gradient)
        correction.apply()
        assert used.grad.tolist() == [gradient + 1.0, gradient - 1.0]
    assert unused.grad is None
    assert correction.mean(2)["used"].tolist() == [3.0, 3.0]
    assert correction.mean(2)["unused"].tolist() == [0.0, 0.0, 0.0]


def test_a_step_is_corrected_after_clipping(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    """So the mean is no longer than the clip, and an offset is not clipped away."""
    start, weights = smolvla.weights(), smolvla.trainable()
    plan = replace(PLAN, training=steps(4).model_copy(update={"grad_clip_norm": 1e-3}))
    ends = []
    for size in (0.0, 1.0):
        smolvla.load_weights(start)
        offset = {name: torch.full_like(weight, size) for name, weight in weights.items()}
        correction = Correction(weights, offset)
        run(with_features, smolvla, plan, correction=correction)
        mean = correction.mean(4)
        length = torch.stack([each.norm() for each in mean.values()]).norm()
        assert 0 < float(length) <= 1.01e-3
        ends.append(smolvla.weights())
    smolvla.load_weights(start)
    run(with_features, smolvla, plan)
    plain = smolvla.weights()
    for name, value in start.items():
        assert np.array_equal(ends[0][name], plain[name]), "an offset of zero changes nothing"
        assert (ends[1][name] < value).all(), "Adam's steps go down everywhere"


def test_fedprox_counts_after_one_step(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    result = run(
        with_features,
        smolvla,
        replace(PLAN, training=steps(1), proximal_mu=1.0),
    )
    assert result.proximal_loss > 0
    assert result.loss == pytest.approx(result.policy_loss + result.proximal_loss)


@pytest.mark.slow
def test_fedprox_holds_the_weights_back(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    start = smolvla.weights()

    def distance(mu: float) -> float:
        smolvla.load_weights(start)
        run(
            with_features,
            smolvla,
            replace(PLAN, training=steps(30), proximal_mu=mu),
        )
        return sum(float(((w - start[n]) ** 2).sum()) for n, w in smolvla.weights().items())

    assert distance(10.0) < 0.5 * distance(0.0)


def test_batches_that_give_no_number_are_bounded(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    with torch.no_grad():
        next(iter(smolvla.trainable().values())).fill_(float("nan"))
    with pytest.raises(DataError, match="4 batches gave a loss that is not a number"):
        run(with_features, smolvla, replace(PLAN, max_bad_batches=3))


def test_training_ends_on_request(with_features: PreparedRecordings, smolvla: LoadedPolicy) -> None:
    steps: list[int] = []

    def check() -> None:
        if len(steps) == 3:
            raise Stopped("enough")

    with pytest.raises(Stopped):
        run(
            with_features,
            smolvla,
            PLAN,
            on_step=lambda step, loss: steps.append(step),
            check=check,
        )
    assert steps == [1, 2, 3]


def test_the_schedule_warms_up_once_and_falls_to_its_end() -> None:
    schedule = CosineSchedule(peak=1.0, end=0.1, warmup_steps=4, total_steps=100)
    assert [schedule.rate(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.rate(4) == 1.0
    assert schedule.rate(99) == pytest.approx(0.1)
    assert schedule.rate(500) == pytest.approx(0.1)
    middle = 4 + (99 - 4) / 2
    assert schedule.rate(int(middle)) == pytest.approx(0.55, abs=0.02)
    rates = [schedule.rate(i) for i in range(4, 100)]
    assert rates == sorted(rates, reverse=True)
    assert CosineSchedule(peak=1.0, end=0.1, warmup_steps=0, total_steps=1).rate(0) == 1.0
