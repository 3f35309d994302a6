"""What LeRobot's own tools make of a dataset (``lerobot-edit-dataset``) is read as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lerobot.datasets import LeRobotDataset, dataset_tools

from tests.learning.damage import make_dataset
from zk0d.learning.frames import decode_frames
from zk0d.learning.inspection import inspect
from zk0d.learning.recordings import Recordings, open_recordings

LENGTHS = (6, 9, 7)

Edit = Callable[[LeRobotDataset, Path], object]


def deleted(dataset: LeRobotDataset, out: Path) -> None:
    dataset_tools.delete_episodes(dataset, [1], out, "local/x")


def split(dataset: LeRobotDataset, out: Path) -> None:
    dataset_tools.split_dataset(dataset, {"train": [0, 2], "val": [1]}, out)


def merged(dataset: LeRobotDataset, out: Path) -> None:
    make_dataset(out.with_name("second"), (5,), "video" if dataset.meta.video_keys else "image")
    second = LeRobotDataset("local/second", root=out.with_name("second"), video_backend="pyav")
    dataset_tools.merge_datasets([dataset, second], "local/x", out)


#: By tool: the edit, where the result lies, and which episodes of the source are in it, in order.
TOOLS: dict[str, tuple[Edit, str, list[int]]] = {
    "delete": (deleted, "", [0, 2]),
    "split": (split, "train", [0, 2]),
    "merge": (merged, "", [0, 1, 2]),
}


@pytest.mark.parametrize("pictures", ["video", "image"])
@pytest.mark.parametrize("tool", TOOLS)
def test_an_edited_dataset_has_the_episodes_of_before(
    tmp_path: Path, tool: str, pictures: str
) -> None:
    source = tmp_path / "source"
    make_dataset(source, LENGTHS, pictures)
    edit, where, kept = TOOLS[tool]
    whole = LeRobotDataset("local/source", root=source, video_backend="pyav")
    edit(whole, tmp_path / "edited")
    before = open_recordings(f"local:{source}")
    after = open_recordings(f"local:{tmp_path / 'edited' / where}")
    assert not [each.text for each in inspect(after).remarks if each.severity == "wrong"]
    assert len(after.episodes) == len(kept) + (tool == "merge")
    for number, own in zip(after.episodes, kept, strict=False):  # merged has one more
        for name in ("action", "observation.state", "timestamp", "frame_index"):
            mine, theirs = after.columns[name][after.rows(number)], before.columns[name]
            assert torch.equal(mine, theirs[before.rows(own)]), (name, own)
        shown, meant = frames_of(after, number), frames_of(before, own)
        # A video that is cut is encoded again.
        assert float((shown.float() - meant.float()).abs().mean()) < 6.0


def frames_of(recordings: Recordings, episode: int) -> torch.Tensor:
    rows = recordings.rows(episode)
    return decode_frames(recordings, "top", torch.arange(rows.start, rows.stop))
