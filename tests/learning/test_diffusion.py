"""What is special about the diffusion policy: noise, observations of several frames, resizing."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from lerobot.datasets import EpisodeAwareSampler

from zk0d.config.families import FAMILIES
from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError, UnavailableError
from zk0d.learning import policies
from zk0d.learning.evaluate import roll_out
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policies.noise import TIME_STRATA, frame_noise, frame_uniform
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings
from zk0d.simulators.soreach import SoReach

ROWS = torch.tensor([0, 17, 60])


@pytest.fixture
def loaded(recordings: Recordings) -> LoadedPolicy:
    policy = load_policy(spec_for("diffusion", "tiny", 0, recordings.summary, {}), device="cpu")
    policy.policy.eval()
    return policy


@pytest.fixture
def prepared(loaded: LoadedPolicy, recordings: Recordings) -> PreparedRecordings:
    return PreparedRecordings(recordings, loaded, CacheSettings())


@pytest.mark.slow
def test_the_seeded_loss_is_lerobots_with_that_noise(
    prepared: PreparedRecordings, loaded: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = prepared.batches(prepared.statistics()).batch(ROWS)
    with torch.no_grad():
        ours = loaded.seeded_losses(batch, ROWS, seed=5)
        theirs = []
        for stratum in range(TIME_STRATA):
            noise = frame_noise(ROWS, stratum, tuple(batch["action"].shape[1:]), 5)
            step = (frame_uniform(ROWS, stratum, 5) * 100).long()
            monkeypatch.setattr(torch, "randn", lambda *_, noise=noise, **__: noise)
            monkeypatch.setattr(torch, "randint", lambda *_, step=step, **__: step)
            theirs.append(loaded.policy.forward(dict(batch))[0])
    assert ours.shape == (3,)
    assert torch.allclose(ours.mean(), torch.stack(theirs).double().mean(), atol=1e-6)


def test_an_episodes_last_frames_are_left_out_as_by_lerobots_trainer(
    prepared: PreparedRecordings, loaded: LoadedPolicy, recordings: Recordings
) -> None:
    rows = [recordings.rows(episode) for episode in recordings.episodes]
    sampler = EpisodeAwareSampler(
        [each.start for each in rows],
        [each.stop for each in rows],
        drop_n_last_frames=loaded.config.drop_n_last_frames,
    )
    assert loaded.config.drop_n_last_frames > 0
    assert prepared.usable.tolist() == list(sampler)


def test_a_plan_of_a_row_does_not_depend_on_the_others(loaded: LoadedPolicy) -> None:
    """Nor with steps that add noise, as LeRobot's usual ones do."""
    loaded.policy.diffusion.noise_scheduler = DDPMScheduler(num_train_timesteps=100)
    size = loaded.config.image_features["observation.images.top"].shape
    random = torch.Generator().manual_seed(0)
    seen = {
        "observation.state": torch.rand(3, 9, generator=random),
        "observation.images.top": torch.rand(3, *size, generator=random),
    }
    with torch.no_grad():
        together = loaded.plan(seen, episodes=torch.tensor([4, 5, 6]), frame=3)
        last = {key: value[2:] for key, value in seen.items()}
        alone = loaded.plan(last, episodes=torch.tensor([6]), frame=3)
        other = loaded.plan(last, episodes=torch.tensor([7]), frame=3)
    assert together.shape == (3, loaded.config.n_action_steps, 6)
    assert torch.allclose(together[2:], alone, atol=1e-3)
    assert not torch.allclose(other, alone, atol=1e-2)


def test_it_sees_the_last_frames_of_a_rollout(
    loaded: LoadedPolicy, prepared: PreparedRecordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[torch.Tensor] = []
    passed: deque[np.ndarray] = deque(maxlen=2)
    expected: list[np.ndarray] = []

    class Watched(SoReach):
        def reset(self, seed: int) -> dict[str, np.ndarray]:
            first = super().reset(seed)
            passed.extend([first["observation.state"]] * 2)
            return first

        def step(self, action: np.ndarray) -> tuple[bool, bool]:
            done = super().step(action)
            passed.append(self.observe()["observation.state"])
            return done

    def plan(batch: dict[str, Any], episodes: torch.Tensor, frame: int) -> torch.Tensor:
        shown.append(batch["observation.state"][0])
        assert batch["observation.images.top"].shape == (1, 2, 3, 96, 96)
        expected.append(np.stack(passed))
        return torch.full((1, loaded.config.n_action_steps, 6), 3.0 + frame)

    monkeypatch.setattr(loaded, "plan", plan)
    same = lambda values: values  # noqa: E731
    monkeypatch.setattr(loaded, "processors", lambda statistics: (same, same))
    roll_out(loaded, prepared.statistics(), lambda: Watched(cameras=("top",)), [4])
    assert len(shown) > 2
    assert np.allclose(np.stack(shown), np.stack(expected))
    assert not torch.equal(shown[1][0], shown[1][1])


def test_pictures_of_another_resolution_are_resized_to_the_policys(loaded: LoadedPolicy) -> None:
    frames = torch.zeros((2, 3, 96, 96), dtype=torch.uint8)
    assert loaded.shrunk_images(frames) is frames
    for size in ((48, 64), (300, 400)):
        resized = loaded.shrunk_images(torch.full((2, 3, *size), 200, dtype=torch.uint8))
        assert (resized.shape, resized.dtype) == (frames.shape, torch.uint8)
        assert (resized == 200).all()


def test_cameras_of_several_sizes_are_refused(recordings: Recordings) -> None:
    cameras = {"front": (3, 48, 64), "wrist": (3, 64, 48)}
    summary = recordings.summary.model_copy(update={"cameras": cameras})
    spec = spec_for("diffusion", "tiny", 0, summary, {})
    with pytest.raises(DataError) as caught:
        load_policy(spec, device="cpu")
    assert caught.value.message == (
        "policy 'diffusion' takes cameras of one size, and these are of several (front 64 x 48,"
        " wrist 48 x 64); leave some out, or train another policy."
    )


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError) as caught:
        policies.family("diffusion")
    assert caught.value.message == (
        "policy 'diffusion' needs the package diffusers, which is not installed here; pip install"
        " 'zk0d[diffusion]'."
    )
    for name, known in FAMILIES.items():
        if not known.needs:
            assert policies.family(name)
