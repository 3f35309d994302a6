from __future__ import annotations

import numpy as np
import pytest
import torch

from zk0d.errors import Zk0dError
from zk0d.learning import evaluate
from zk0d.learning.evaluate import (
    action_errors,
    losses_by_episode,
    roll_out,
    seeded_loss,
    stratified_rows,
)
from zk0d.learning.layout import ACTION
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policies.noise import TIME_STRATA, frame_noise, frame_time
from zk0d.learning.prepared import PreparedRecordings
from zk0d.simulators.soreach import SoReach


def loss(prepared: PreparedRecordings, policy: LoadedPolicy, seed: int = 0) -> float:
    batches = prepared.batches(prepared.statistics())
    return seeded_loss(policy, batches, prepared.usable[:80], seed).mean


@pytest.mark.slow
def test_the_loss_repeats_exactly(with_features: PreparedRecordings, smolvla: LoadedPolicy) -> None:
    torch.manual_seed(1)
    first = loss(with_features, smolvla)
    torch.manual_seed(2)
    assert loss(with_features, smolvla) == first
    assert loss(with_features, smolvla, seed=1) != first


@pytest.mark.slow
def test_the_loss_does_not_depend_on_the_batch_size(
    with_features: PreparedRecordings, smolvla: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = loss(with_features, smolvla)
    monkeypatch.setattr(evaluate, "EVAL_BATCH", 7)
    # float32 keeps seven digits, and another shape may add them up in another order.
    assert loss(with_features, smolvla) == pytest.approx(first, rel=1e-5)


@pytest.mark.slow
def test_pixels_and_features_give_the_same_loss(
    with_features: PreparedRecordings, with_pixels: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    # Features are computed in blocks of another size: rounded differently on some processors.
    assert loss(with_features, smolvla) == pytest.approx(loss(with_pixels, smolvla), rel=1e-5)


def test_an_error_of_actions_is_in_the_recordings_own_deviations(
    with_features: PreparedRecordings, smolvla: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = with_features.statistics()
    batches = with_features.batches(statistics)
    # The last frames' chunks run past their episode, where no action is recorded.
    rows = torch.cat([with_features.usable[:10], with_features.usable[-10:]])
    recorded = batches.batch(rows)[ACTION]
    for off, error in ((0.0, 0.0), (1.5, 1.5)):
        monkeypatch.setattr(smolvla, "plan", lambda *_, off=off: recorded + off)
        found = action_errors(smolvla, batches, statistics, rows)
        assert found.numpy() == pytest.approx(np.full(20, error), abs=1e-3)


def test_a_loss_by_episode_is_that_of_its_rows(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    batches = with_features.batches(with_features.statistics())
    numbers = with_features.recordings.columns["episode_index"]
    rows = stratified_rows(with_features.usable, numbers, 12)
    found = losses_by_episode(smolvla, batches, rows, 0)
    assert list(found) == with_features.recordings.episodes
    one = rows[numbers[rows] == 3]
    assert found[3] == seeded_loss(smolvla, batches, one, 0).mean


def test_evaluation_leaves_the_policy_training(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    smolvla.policy.train()
    loss(with_features, smolvla)
    assert smolvla.policy.training


def test_a_failed_evaluation_is_not_a_number(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    with torch.no_grad():
        next(iter(smolvla.trainable().values())).fill_(float("nan"))
    with pytest.raises(Zk0dError) as error:
        loss(with_features, smolvla)
    assert error.value.reason == "evaluation_failed"


def test_time_is_stratified_and_shaped_as_smolvlas() -> None:
    rows = torch.arange(2000)
    strata = torch.stack([frame_time(rows, k, seed=0) for k in range(TIME_STRATA)])
    assert strata.min() >= 0.001
    assert strata.max() <= 1.0
    uniform = ((strata - 0.001) / 0.999) ** 1.5
    counts = np.histogram((uniform[:, 0] * TIME_STRATA).numpy(), bins=TIME_STRATA, range=(0, 4))[0]
    assert counts.tolist() == [1, 1, 1, 1], "the draws of one frame cover (0, 1) evenly"
    # The mean of Beta(1.5, 1) is 0.6.
    assert strata.mean().item() == pytest.approx(0.6 * 0.999 + 0.001, abs=0.01)


def test_noise_belongs_to_the_frame() -> None:
    together = frame_noise(torch.tensor([3, 5]), 0, (2, 4), seed=0)
    alone = frame_noise(torch.tensor([5]), 0, (2, 4), seed=0)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(frame_noise(torch.tensor([5]), 1, (2, 4), seed=0)[0], alone[0])


def test_the_sample_is_spread_over_all_episodes() -> None:
    episodes = torch.repeat_interleave(torch.arange(5), torch.tensor([10, 40, 30, 5, 15]))
    rows = stratified_rows(torch.arange(100), episodes, 20)
    assert len(rows) == 20
    counts = torch.bincount(episodes[rows]).tolist()
    assert counts == [4, 4, 4, 4, 4]
    spread = rows[episodes[rows] == 1] - 10
    assert spread.tolist() == [5, 15, 25, 35], "and over each of them"
    assert torch.equal(stratified_rows(torch.arange(100), episodes, 500), torch.arange(100))


def test_short_episodes_give_all_their_frames() -> None:
    episodes = torch.tensor([0, 1, 1, 1, 1, 1])
    rows = stratified_rows(torch.arange(6), episodes, 4)
    assert torch.bincount(episodes[rows]).tolist() == [1, 2]


@pytest.mark.slow
def test_rollouts_repeat_and_do_not_depend_on_their_neighbours(
    with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    statistics = with_features.statistics()
    seen: dict[int, list[np.ndarray]] = {}

    class Watched(SoReach):
        def reset(self, seed: int) -> dict[str, np.ndarray]:
            self.seen = seen.setdefault(seed, [])
            self.seen.clear()
            return super().reset(seed)

        def step(self, action: np.ndarray) -> tuple[bool, bool]:
            self.seen.append(action)
            return super().step(action)

    def actions(seeds: list[int]) -> np.ndarray:
        result = roll_out(smolvla, statistics, lambda: Watched(cameras=("top",)), seeds)
        assert result.episodes == len(seeds)
        assert 0 <= result.success <= 1
        return np.stack(seen[seeds[-1]])

    alone = actions([4])
    # In degrees. Three side by side are another shape, and each action feeds the next observation.
    assert np.allclose(actions([1, 2, 4]), alone, atol=0.01)
