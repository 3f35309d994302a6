"""Rows and pictures belong together, or the dataset is refused before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset

from tests.learning import damage
from tests.learning.damage import Rows
from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache, decode_episode
from zk0d.learning.inspection import inspect
from zk0d.learning.recordings import open_recordings
from zk0d.learning.videos import missing_pictures

TOP = "observation.images.top"
SPAN = f"videos/{TOP}"


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        open_recordings(f"local:{folder}")
    assert "\n" not in error.value.message
    assert str(folder) in error.value.message
    return error.value.message


def swap(rows: Rows, one: int, other: int, *columns: str) -> None:
    for column in columns or tuple(rows[0]):
        rows[one][column], rows[other][column] = rows[other][column], rows[one][column]


def shift_times(rows: Rows, episode: int, seconds: float) -> None:
    for row in rows:
        if row["episode_index"] == episode:
            row["timestamp"] += seconds


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda rows: rows[:-1],
            "counts 6 episodes, meta/episodes has 5: the recording was",
        ),
        (lambda rows: [*rows, rows[-1]], "counts 6 episodes, meta/episodes has 7"),
        (lambda rows: swap(rows, 1, 2), "has episode 2 where episode 1 must be"),
        (lambda rows: rows[1].update(episode_index=7), "has episode 7 where episode 1 must be"),
        (lambda rows: rows[1].update(length=0), "episode 1 has no frames"),
        (lambda rows: rows[1].update(length=30), "gives episode 1 the rows 29 to 58, those of 30"),
        (lambda rows: rows[1].update(dataset_from_index=28), "gives episode 1 the rows 28 to 58"),
        (lambda rows: rows[1].update(length=None), "rows without a number in 'length'"),
        (
            lambda rows: rows[1].update({f"{SPAN}/from_timestamp": None}),
            "rows without a number in 'videos/observation.images.top/from_timestamp'",
        ),
        (
            lambda rows: rows[1].update({f"{SPAN}/to_timestamp": float("nan")}),
            "episode 1 has 29 rows and nan frames of",
        ),
        (
            lambda rows: rows[2].update({f"{SPAN}/to_timestamp": 2.933}),
            "episode 2 has 33 rows and 30.0 frames of",
        ),
        (
            lambda rows: (
                swap(rows, 0, 1, f"{SPAN}/from_timestamp", f"{SPAN}/to_timestamp")
                or rows[1].update(
                    {f"{SPAN}/from_timestamp": 0.1, f"{SPAN}/to_timestamp": 0.1 + 29 / 30}
                )
            ),
            "claim the same part of",
        ),
        (
            lambda rows: rows[5].update(
                {f"{SPAN}/from_timestamp": 5.5, f"{SPAN}/to_timestamp": 5.5 + 27 / 30}
            ),
            "ends 14 frames before episode 5, which has rows without pictures",
        ),
        (lambda rows: rows[3].update({f"{SPAN}/file_index": 1}), "file-001.mp4 is missing"),
        (
            lambda rows: rows[3].update({"data/file_index": 1}),
            "has rows of episode 3, which meta/episodes says lie elsewhere",
        ),
    ],
)
def test_episodes_that_contradict_rows_or_pictures(
    copied_recordings: Path, change: Callable[[Rows], Any], said: str
) -> None:
    damage.change_rows(damage.episodes_table(copied_recordings), change)
    assert said in refusal(copied_recordings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "has 26 rows of episode 5, meta/episodes says 27"),
        (lambda rows: rows[:40] + rows[41:], "has 28 rows of episode 1, meta/episodes says 29"),
        (lambda rows: [*rows[:40], rows[40], *rows[40:]], "has 30 rows of episode 1"),
        (lambda rows: rows[58:91] + rows[:58] + rows[91:], "not in their episodes' order"),
        (lambda rows: swap(rows, 40, 41), "row 40 has frame_index 12, but is frame 11 of episode"),
        (lambda rows: rows[40].update(index=7), "row 40 has index 7, but is frame 11 of episode 1"),
        (lambda rows: rows[40].update(action=None), "rows without a number in 'action'"),
        (lambda rows: rows[40].update(timestamp=None), "rows without a number in 'timestamp'"),
        (lambda rows: rows[40]["action"].__setitem__(2, None), "without a number in 'action'"),
        (lambda rows: rows[40].update(task_index=9), "a frame names task 9"),
        (lambda rows: shift_times(rows, 1, 1 / 30), "episode 1, frame 0 has the time 0.033 s"),
        (lambda rows: shift_times(rows, 1, -1 / 30), "episode 1, frame 0 has the time -0.033 s"),
        (
            lambda rows: [row.update(timestamp=row["frame_index"] / 18.5) for row in rows] and None,
            "recorded at about 18.5 frames per second",
        ),
    ],
)
def test_rows_that_are_not_their_episodes(
    copied_recordings: Path, change: Callable[[Rows], Any], said: str
) -> None:
    damage.change_rows(damage.data_table(copied_recordings), change)
    assert said in refusal(copied_recordings)


def test_counts_of_a_recording_that_was_killed(copied_recordings: Path) -> None:
    damage.change_info(copied_recordings, lambda info: info.update(total_frames=200))
    assert "counts 200 frames, meta/episodes 178" in refusal(copied_recordings)


def test_a_table_that_no_episode_names(copied_recordings: Path) -> None:
    table = damage.data_table(copied_recordings)
    shutil.copy(table, table.with_name("file-001.parquet"))
    assert "data/chunk-000/file-001.parquet belongs to no episode" in refusal(copied_recordings)


def test_pictures_of_another_size(copied_recordings: Path) -> None:
    damage.change_info(
        copied_recordings, lambda info: info["features"][TOP].update(shape=[48, 96, 3])
    )
    assert "shows 96 x 96 pixels, meta/info.json says 96 x 48" in refusal(copied_recordings)


def test_a_video_that_ends_early(copied_recordings: Path) -> None:
    damage.without_pictures(damage.first_video(copied_recordings), range(175, 178))
    said = refusal(copied_recordings)
    assert "ends 3 frames before episode 5, which has rows without pictures" in said
    assert "leave the episode out" in said


def test_a_picture_goes_to_the_row_of_its_time(copied_recordings: Path) -> None:
    """A camera that stalled: what comes later must not move up."""
    whole = open_recordings(f"local:{copied_recordings}")
    before = decode_episode(whole, TOP, 1).pixels
    damage.without_pictures(damage.first_video(copied_recordings), (39, 40, 41))
    stalled = open_recordings(f"local:{copied_recordings}")
    with pytest.raises(DataError, match=r"episode 1 lacks 3 pictures, first of frame 10"):
        PixelCache(stalled, BadFrames(stalled, 0), FrameBudget.of(CacheSettings()))
    bad = BadFrames(stalled, 3)
    pixels = PixelCache(stalled, bad, FrameBudget.of(CacheSettings())).rows(
        "top", torch.arange(len(stalled))
    )
    assert bad.bad.nonzero().flatten().tolist() == [39, 40, 41]
    after = decode_episode(stalled, TOP, 1)
    assert after.missing.nonzero().flatten().tolist() == [10, 11, 12]
    kept = ~after.missing
    difference = (after.pixels[kept].float() - before[kept].float()).abs().mean((1, 2, 3))
    assert difference.max() < 4, "the same pictures, encoded again"
    shifted = (after.pixels[13:].float() - before[12:-1].float()).abs().mean((1, 2, 3))
    assert difference[10:].sum() < shifted.sum(), "each row has its own picture"
    theirs = LeRobotDataset(
        "local/x", root=copied_recordings, video_backend="pyav", return_uint8=True
    )
    for row in (38, 42, 57, 58, 177):
        assert torch.equal(theirs[row][TOP], pixels[row])


def test_missing_pictures_are_found_without_decoding(copied_recordings: Path) -> None:
    damage.without_pictures(damage.first_video(copied_recordings), (39, 40, 41, 100))
    recordings = open_recordings(f"local:{copied_recordings}")
    times = recordings.columns["timestamp"].numpy()
    assert missing_pictures(recordings.layout, TOP, times) == {1: 3, 3: 1}
    assert any(
        remark.severity == "wrong" and "has 174 pictures for 178 rows" in remark.text
        for remark in inspect(recordings).remarks
    )


def test_files_of_macos_are_not_read_as_tables(copied_recordings: Path) -> None:
    table = damage.data_table(copied_recordings)
    for path in (table, damage.episodes_table(copied_recordings)):
        path.with_name(f"._{path.name}").write_bytes(b"\0" * 100)
    assert open_recordings(f"local:{copied_recordings}").summary.episodes == 6


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("data/{chunk_index}{", "which is not a pattern"),
        ("../other/{chunk_index}-{file_index}.parquet", "leads out of the dataset"),
        ("/data/{chunk_index}-{file_index}.parquet", "leads out of the dataset"),
        ("data/{chunk_index.real.nothing}", "which is not a pattern"),
    ],
)
def test_patterns_of_info_json(copied_recordings: Path, pattern: str, said: str) -> None:
    damage.change_info(copied_recordings, lambda info: info.update(data_path=pattern))
    assert said in refusal(copied_recordings)


def test_matching_times() -> None:
    from zk0d.learning.videos import matched

    stamps = np.array([0.0, 1 / 30, 2 / 30, 4 / 30])
    wanted = np.array([0.0, 1 / 30 + 5e-5, 3 / 30, 4 / 30, 9.0])
    assert matched(stamps, wanted).tolist() == [True, True, False, True, False]
    assert matched(np.zeros(0), wanted).tolist() == [False] * 5
