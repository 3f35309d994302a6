"""What the caches give is what LeRobot gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata, resolve_delta_timestamps
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

from zk0d.config.families import FAMILIES
from zk0d.config.machine import CacheSettings
from zk0d.learning.batches import RecordedBatches
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache
from zk0d.learning.policies import family
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings

ROWS = [0, 1, 17, 60, 95]


def lerobot_batch(folder: Path, config: PreTrainedConfig, rows: list[int]) -> dict[str, Any]:
    """The batch as LeRobot's own loader collates it."""
    metadata = LeRobotDatasetMetadata("local/x", root=folder)
    dataset = LeRobotDataset(
        "local/x",
        root=folder,
        delta_timestamps=resolve_delta_timestamps(config, metadata),
        video_backend="pyav",
        return_uint8=True,
    )
    return torch.utils.data.default_collate([dataset[row] for row in rows])


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype, name
            assert torch.equal(ours[name], value), name
        else:
            assert list(ours[name]) == list(value), name


CONFIGS = {
    **{name: family(name).tiny_config(64) for name in FAMILIES},
    # Two observations at once, and a chunk that begins with the earlier one.
    "diffusion": DiffusionConfig(device="cpu", horizon=8),
}


@pytest.mark.parametrize("policy", CONFIGS)
def test_recorded_batches_equal_lerobots(
    policy: str, recordings: Recordings, recordings_folder: Path
) -> None:
    pixels = PixelCache(recordings, BadFrames(recordings, 0), FrameBudget.of_gib(1))
    ours = RecordedBatches(recordings, pixels, CONFIGS[policy]).batch(torch.tensor(ROWS))
    assert_same(ours, lerobot_batch(recordings_folder, CONFIGS[policy], ROWS))


def test_a_bad_frame_that_a_row_observes_makes_it_unusable(recordings: Recordings) -> None:
    bad = torch.zeros(len(recordings), dtype=torch.bool)
    first = int(recordings.first[40])
    assert first < 40 < 40 + 1 <= int(recordings.last[40])
    bad[40] = True
    usable = RecordedBatches(recordings, None, CONFIGS["diffusion"]).usable(bad).tolist()
    # The chunk of 8 begins one frame before its row, the last observation is the row's own.
    assert sorted(set(range(len(recordings))) - set(usable)) == list(range(34, 42))


def test_the_end_of_an_episode_is_padded(recordings: Recordings, smolvla: LoadedPolicy) -> None:
    batches = RecordedBatches(recordings, None, smolvla.config)
    last = int(recordings.last[0])
    rows, padding = batches.action_rows(torch.tensor([last - 1]))
    assert rows[0].tolist() == [last - 1] + [last] * 11
    assert padding[0].tolist() == [False, False] + [True] * 10


def test_frames_beyond_the_budget_are_mapped_from_disk(
    recordings: Recordings, smolvla: LoadedPolicy, tmp_path: Path
) -> None:
    in_memory = PixelCache(recordings, BadFrames(recordings, 0), FrameBudget.of_gib(1))
    budget = FrameBudget(left=0, folder=tmp_path / "frames")
    mapped = PixelCache(recordings, BadFrames(recordings, 0), budget)
    assert torch.equal(mapped.images["top"], in_memory.images["top"])
    assert (tmp_path / "frames").is_dir()
    assert not list((tmp_path / "frames").iterdir()), "the file has no name, so nothing is left"


def test_policy_batches_equal_lerobots_processor(
    with_pixels: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    statistics = with_pixels.statistics()
    rows = torch.tensor(ROWS)
    ours = with_pixels.batches(statistics).batch(rows)
    raw = with_pixels.recorded.batch(rows)
    raw["observation.images.top"] = raw["observation.images.top"].float() / 255
    preprocess, _ = smolvla.processors(statistics)
    theirs = preprocess(raw)
    assert torch.equal(ours["observation.images.top"], theirs["observation.images.top"])
    for name in ("action_is_pad", "observation.language.tokens"):
        assert torch.equal(ours[name], theirs[name]), name
    mask = "observation.language.attention_mask"
    assert torch.equal(ours[mask], theirs[mask])
    # Ours normalizes all rows at once, LeRobot's one batch: another shape.
    assert torch.allclose(ours["action"], theirs["action"], rtol=1e-6)
    state = theirs["observation.state"][:, 0]
    assert torch.allclose(ours["observation.state"], state, rtol=1e-6)


def test_cached_features_give_the_loss_of_pixels(
    with_pixels: PreparedRecordings, with_features: PreparedRecordings, smolvla: LoadedPolicy
) -> None:
    statistics = with_pixels.statistics()
    rows = torch.tensor(ROWS)
    losses = []
    for prepared in (with_pixels, with_features):
        torch.manual_seed(0)
        batch = prepared.batches(statistics).batch(rows)
        if prepared.features is None:
            losses.append(smolvla.policy.forward(batch)[0])
        else:
            with smolvla.embedded_images():
                losses.append(smolvla.policy.forward(batch)[0])
    # Features were computed in blocks of another size.
    assert torch.allclose(losses[0], losses[1], rtol=1e-5)
    assert not hasattr(smolvla.policy, "_prepared")
    assert "prepare_images" not in vars(smolvla.policy), "the policy is as before"


def test_batches_are_prepared_once_per_statistics(with_features: PreparedRecordings) -> None:
    statistics = with_features.statistics()
    first = with_features.batches(statistics)
    assert with_features.batches(statistics) is first
    changed = statistics.model_copy(update={"nodes": 2})
    assert with_features.batches(changed) is not first


def test_act_goes_through_its_processor(recordings: Recordings, act: LoadedPolicy) -> None:
    prepared = PreparedRecordings(recordings, act, CacheSettings())
    assert prepared.features is None
    batch = prepared.batches(prepared.statistics()).batch(torch.tensor(ROWS))
    images = batch["observation.images.top"]
    assert images.min() < -1.5, "images are normalized with ImageNet's mean and spread"
    assert act.policy.forward(batch)[0].isfinite()
