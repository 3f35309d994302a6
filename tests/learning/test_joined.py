"""Several datasets as one: what a policy gets of each is what it gets of each alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.learning.damage import make_dataset
from tests.learning.test_batches import assert_same
from zk0d.config.datasets import DatasetSettings
from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError
from zk0d.learning.batches import RecordedBatches
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache, decode_frames
from zk0d.learning.joined import JoinedRecordings, open_all
from zk0d.learning.policies import family
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.train import _drawn

CUBE, CUP = (9, 7, 8), (6, 5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two datasets with other pictures, numbers, instructions and forms of pictures."""
    folder = tmp_path_factory.mktemp("two")
    make_dataset(folder / "cube", CUBE, tasks=("lift the cube", "drop the cube"))
    make_dataset(folder / "cup", CUP, "image", tasks=("lift the cup", "drop the cup"))
    return f"local:{folder / 'cube'}", f"local:{folder / 'cup'}"


def joined(*tables: dict[str, object]) -> Recordings:
    datasets = [DatasetSettings.parse(each, where="test") for each in tables]
    return open_all(datasets, lambda each: open_recordings(each.uri, cameras=each.cameras))


def batches(recordings: Recordings, folder: Path, memory: float = 1.0) -> RecordedBatches:
    budget = FrameBudget.of(CacheSettings(memory_gib=memory, folder=folder))
    pixels = PixelCache(recordings, BadFrames(recordings, 0), budget)
    return RecordedBatches(recordings, pixels, family("smolvla").tiny_config(64))


@pytest.mark.parametrize("memory", [1.0, 1e-5], ids=["in memory", "from files"])
def test_a_batch_of_joined_datasets_is_each_ones_own(
    folders: tuple[str, str], tmp_path: Path, memory: float
) -> None:
    both = joined({"uri": folders[0]}, {"uri": folders[1]})
    assert len(both) == sum(CUBE) + sum(CUP)
    assert both.summary.episodes == len(CUBE) + len(CUP)
    ours = batches(both, tmp_path / "both", memory)
    start = 0
    for number, uri in enumerate(folders):
        alone = open_recordings(uri)
        theirs = batches(alone, tmp_path / str(number))
        rows = torch.tensor([0, len(alone) // 2, len(alone) - 1])
        mine, its = ours.batch(start + rows), theirs.batch(rows)
        for name in ("episode_index", "index", "task_index"):
            del mine[name], its[name]
        assert_same(mine, its)
        start += len(alone)


def test_frames_without_room_are_decoded_from_their_own_dataset(folders: tuple[str, str]) -> None:
    both = joined({"uri": folders[0]}, {"uri": folders[1]})
    cup = open_recordings(folders[1])
    rows = torch.tensor([0, 4, len(cup) - 1])
    pixels = decode_frames(both, "top", sum(CUBE) + rows)
    assert torch.equal(pixels, decode_frames(cup, "top", rows))


def test_tables_choose_episodes_and_name_the_task(folders: tuple[str, str]) -> None:
    part = joined({"uri": folders[0], "last": 1}, {"uri": folders[1], "episodes": [0], "task": "x"})
    assert isinstance(part, JoinedRecordings)
    assert len(part) == CUBE[-1] + CUP[0]
    assert set(part.tasks[CUBE[-1] :]) == {"x"}
    assert set(part.tasks[: CUBE[-1]]) == {"lift the cube"}
    whole = open_recordings(folders[0])
    assert torch.equal(part.columns["action"][: CUBE[-1]], whole.columns["action"][-CUBE[-1] :])
    assert part.place(0).endswith("cube, episode 2, frame 0")
    assert part.first[:3].tolist() == [0, 0, 0]
    assert part.last[-1] == len(part) - 1


def test_one_whole_dataset_is_itself(folders: tuple[str, str]) -> None:
    alone = joined({"uri": folders[0], "weight": 3.0})
    assert not isinstance(alone, JoinedRecordings)


def test_episodes_keep_their_numbers_when_another_dataset_grows(tmp_path: Path) -> None:
    uris = [f"local:{tmp_path / name}" for name in ("a", "b")]
    make_dataset(tmp_path / "a", (5, 6))
    make_dataset(tmp_path / "b", (5, 6))
    before = joined({"uri": uris[0]}, {"uri": uris[1]})
    make_dataset(tmp_path / "c", (5, 6, 7))
    after = joined({"uri": f"local:{tmp_path / 'c'}"}, {"uri": uris[1]})
    assert set(before.episodes) < set(after.episodes)
    assert before.newest(1)[1] == after.newest(1)[1]


def test_held_out_are_the_last_episodes_of_each(folders: tuple[str, str]) -> None:
    both = joined({"uri": folders[0]}, {"uri": folders[1]})
    policy = load_policy(spec_for("smolvla", "tiny", 0, both.summary, {}), device="cpu")
    data = PreparedRecordings(both, policy, CacheSettings(), holdout_episodes=1)
    places = {both.place(row).rpartition(",")[0] for row in data.held_out.tolist()}
    assert {place.rpartition("/")[2] for place in places} == {"cube, episode 2", "cup, episode 1"}
    assert len(data.usable) == sum(CUBE[:-1]) + sum(CUP[:-1])
    assert data.statistics().features["action"].count == len(data.usable)
    with pytest.raises(DataError, match=r"cup: learner.holdout-episodes is 2, but only 2 episodes"):
        PreparedRecordings(both, policy, CacheSettings(), holdout_episodes=2)


def test_frames_are_drawn_by_weight(folders: tuple[str, str]) -> None:
    both = joined({"uri": folders[0]}, {"uri": folders[1], "weight": 4.0})
    draws = both.draws()
    assert draws is not None
    rows = _drawn(len(both), draws)(np.random.default_rng(0), 20_000)
    share = float((rows >= sum(CUBE)).double().mean())
    assert share == pytest.approx(4 * sum(CUP) / (sum(CUBE) + 4 * sum(CUP)), abs=0.02)
    assert set(rows.tolist()) == set(range(len(both)))
    assert joined({"uri": folders[0]}, {"uri": folders[1]}).draws() is None


def test_a_missing_episode_is_named(folders: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"dataset\.1\.episodes: .*cup has no episode 7"):
        joined({"uri": folders[0]}, {"uri": folders[1], "episodes": [0, 7]})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"state": 4}, r"joint|state"),
        ({"cameras": {"observation.images.side": (32, 32)}}, "camera 'side'"),
        ({"cameras": {"observation.images.top": (32, 48)}}, "pictures of 48 x 32"),
    ],
    ids=["another arm", "another camera", "another size"],
)
def test_datasets_that_do_not_fit_are_refused(
    folders: tuple[str, str], tmp_path: Path, other: dict[str, object], says: str
) -> None:
    make_dataset(tmp_path / "other", (5, 5), **other)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=says) as error:
        joined({"uri": folders[0]}, {"uri": f"local:{tmp_path / 'other'}"})
    assert "other: " in error.value.message
