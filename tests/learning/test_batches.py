"""What the caches give is what LeRobot gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata, resolve_delta_timestamps
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.smolvla.modeling_smolvla import resize_with_pad

from tests.learning.damage import make_dataset
from zk0d.config.families import FAMILIES
from zk0d.config.machine import CacheSettings
from zk0d.learning.batches import RecordedBatches
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache
from zk0d.learning.policies import family
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.progress import CacheUse, Decoding, Progress
from zk0d.learning.recordings import Recordings, open_recordings

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
    "two observations": DiffusionConfig(device="cpu", horizon=8, drop_n_last_frames=0),
}


@pytest.mark.parametrize("policy", CONFIGS)
def test_recorded_batches_equal_lerobots(
    policy: str, recordings: Recordings, recordings_folder: Path
) -> None:
    pixels = PixelCache(recordings, BadFrames(recordings, 0), FrameBudget.of(CacheSettings()))
    ours = RecordedBatches(recordings, pixels, CONFIGS[policy]).batch(torch.tensor(ROWS))
    assert_same(ours, lerobot_batch(recordings_folder, CONFIGS[policy], ROWS))


def test_a_bad_frame_that_a_row_observes_makes_it_unusable(recordings: Recordings) -> None:
    bad = torch.zeros(len(recordings), dtype=torch.bool)
    first = int(recordings.first[40])
    assert first < 40 < 40 + 1 <= int(recordings.last[40])
    bad[40] = True
    usable = RecordedBatches(recordings, None, CONFIGS["two observations"]).usable(bad).tolist()
    # The chunk of 8 begins one frame before its row, the last observation is the row's own.
    assert sorted(set(range(len(recordings))) - set(usable)) == list(range(34, 42))


def test_the_end_of_an_episode_is_padded(recordings: Recordings, smolvla: LoadedPolicy) -> None:
    batches = RecordedBatches(recordings, None, smolvla.config)
    last = int(recordings.last[0])
    rows, padding = batches.action_rows(torch.tensor([last - 1]))
    assert rows[0].tolist() == [last - 1] + [last] * 11
    assert padding[0].tolist() == [False, False] + [True] * 10


def test_frames_beyond_the_budget_are_mapped_from_disk(
    recordings: Recordings, tmp_path: Path
) -> None:
    told = frames_from(recordings, FrameBudget(left=0, folder=tmp_path, disk=2**30))
    assert (told.memory, told.again) == (0, 0)


ROW = 3 * 96 * 96


def frames_from(recordings: Recordings, budget: FrameBudget) -> CacheUse:
    """Where they are, after a look that they are those of a cache in memory."""
    told: list[Progress] = []
    everything = FrameBudget.of(CacheSettings())
    in_memory = PixelCache(recordings, BadFrames(recordings, 0), everything)
    other = PixelCache(recordings, BadFrames(recordings, 0), budget, tell=told.append)
    window = torch.tensor([[95, 0], [3, 60], [60, 95]])  # two observations of three rows
    for rows in (torch.arange(len(recordings)), window):
        assert torch.equal(other.rows("top", rows), in_memory.rows("top", rows))
    (use,) = [each for each in told if isinstance(each, CacheUse)]
    return use


@pytest.mark.slow
@pytest.mark.parametrize("disk_episodes", [0, 2, 10_000])
@pytest.mark.parametrize("memory_rows", [0, 20, 10_000])
def test_frames_without_room_are_decoded_for_each_batch(
    recordings: Recordings, tmp_path: Path, memory_rows: int, disk_episodes: int
) -> None:
    lengths = [len(episode) for episode in recordings.layout.episodes]
    disk = sum(4096 + rows * ROW for rows in lengths[:disk_episodes]) + 7
    use = frames_from(recordings, FrameBudget(memory_rows * ROW + 7, tmp_path, disk))
    assert use.memory == min(memory_rows, len(recordings)) * ROW
    if memory_rows < min(lengths) or disk_episodes > len(lengths):
        on_disk = sum(lengths[:disk_episodes])
        assert use.disk == on_disk * ROW
        assert use.again == (len(recordings) - max(on_disk, memory_rows)) * ROW or not use.again
    files = (tmp_path / "frames").glob("*.frames")
    assert sum(file.stat().st_size for file in files) <= disk


@pytest.mark.slow
def test_frames_leave_a_part_of_the_disk_free(
    recordings: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [len(episode) for episode in recordings.layout.episodes]
    first = 4096 + lengths[0] * ROW
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=first / 0.9 + 9))
    use = frames_from(recordings, FrameBudget(0, tmp_path, 2**40))
    assert use.disk == lengths[0] * ROW
    assert use.again == sum(lengths[1:]) * ROW


def test_pictures_in_tables_are_decoded_again_too(tmp_path: Path) -> None:
    make_dataset(tmp_path / "d", [5, 4], pictures="image")
    recordings = open_recordings(f"local:{tmp_path / 'd'}")
    whole = PixelCache(recordings, BadFrames(recordings, 0), FrameBudget.of(CacheSettings()))
    none = PixelCache(recordings, BadFrames(recordings, 0), FrameBudget(0, tmp_path, 0))
    rows = torch.tensor([8, 0, 5, 0])
    assert torch.equal(none.rows("top", rows), whole.rows("top", rows))


def test_features_without_room_are_made_again(
    recordings: Recordings, smolvla: LoadedPolicy, with_features: PreparedRecordings
) -> None:
    tight = CacheSettings(memory_gib=1e-4, disk_gib=0.0)
    other = PreparedRecordings(recordings, smolvla, tight)
    assert other.features is not None
    assert with_features.features is not None
    rows = torch.tensor(ROWS)
    # Another number of frames at once may add up in another order.
    for camera, values in with_features.features.batch(rows).items():
        assert torch.allclose(other.features.batch(rows)[camera], values, atol=1e-5)


def test_only_the_episodes_that_are_used_are_decoded(
    recordings: Recordings, smolvla: LoadedPolicy
) -> None:
    told: list[Progress] = []
    part = PreparedRecordings(
        recordings, smolvla, CacheSettings(), episodes=[1, 3], tell=told.append
    )
    lengths = [len(recordings.layout.episodes[episode]) for episode in (1, 3)]
    decoded = [each for each in told if isinstance(each, Decoding)]
    ends = [each.frames for each in decoded if each.frames in (lengths[0], sum(lengths))]
    assert ends == [lengths[0], sum(lengths)]
    assert sorted(each.frames for each in decoded) == [each.frames for each in decoded]
    assert {each.of for each in decoded} == {sum(lengths)}
    assert all(each.memory > 0 for each in decoded)
    assert set(recordings.columns["episode_index"][part.usable].tolist()) == {1, 3}
    whole = PreparedRecordings(recordings, smolvla, CacheSettings()).share([1, 3])
    assert part.statistics() == whole.statistics()
    rows = part.usable[::7]
    statistics = whole.statistics()
    ours, theirs = (each.batches(statistics).batch(rows) for each in (part, whole))
    for name, value in theirs.items():
        assert torch.allclose(ours[name].float(), value.float(), atol=1e-5), name


@pytest.mark.parametrize(("height", "width"), [(480, 640), (240, 96), (96, 96), (40, 60)])
def test_pictures_are_kept_as_small_as_the_policy_makes_them(
    smolvla: LoadedPolicy, height: int, width: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, height, width)
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    small = smolvla.shrunk_images(frames)
    assert small.dtype == torch.uint8
    if max(height, width) <= 96:
        assert torch.equal(small, frames), "never larger"
    else:
        assert max(small.shape[2:]) == 96
    size = smolvla.config.resize_imgs_with_padding
    seen = [
        resize_with_pad(each.float() / 255, size[1], size[0], pad_value=0)
        for each in (small, frames)
    ]
    # A byte rounds by half a step.
    assert (seen[0] - seen[1]).abs().max() <= 0.5 / 255 + 1e-6


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
