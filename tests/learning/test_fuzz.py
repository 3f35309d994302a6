"""Whatever happens to a dataset's files: a sentence, or exactly what LeRobot itself would read.

``ZK0D_FUZZ=5000`` tries so many. Every input that ever failed is an example below.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lerobot.datasets import LeRobotDataset

from tests.learning import damage
from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError, ExitCode
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache
from zk0d.learning.inspection import inspect
from zk0d.learning.layout import BOOKKEEPING, read_layout
from zk0d.learning.recordings import open_recordings
from zk0d.learning.rewriting import tidied

EXAMPLES = int(os.environ.get("ZK0D_FUZZ", "60"))
EPISODES = 3
FILES = ("data", "episodes", "tasks", "info", "video")
NUMBERS = ("observation.state", "action", *BOOKKEEPING)
KINDS = ("drop", "repeat", "reorder", "null", "change", "truncate", "copy", "lose", "no-column")


@dataclass(frozen=True)
class Damage:
    """One thing that happened to one file; the numbers say where in it."""

    file: str
    kind: str
    row: int = 0
    other: int = 0
    column: int = 0


damages = st.builds(
    Damage,
    file=st.sampled_from(FILES),
    kind=st.sampled_from(KINDS),
    row=st.integers(0, 200),
    other=st.integers(0, 200),
    column=st.integers(0, 30),
)


@pytest.fixture(scope="module", params=["video", "image"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small whole dataset, with videos or with pictures in its tables."""
    return _made(request.param)


@cache
def _made(pictures: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="zk0d-fuzz-")) / "whole"
    damage.make_dataset(folder, [6 + episode for episode in range(EPISODES)], pictures)
    return folder


def apply(folder: Path, damaged: Damage) -> None:
    """Do it; what does not go (no such row, no video) is left undone."""
    path = _path(folder, damaged.file)
    if path is None:
        return
    if damaged.kind == "truncate":
        damage.cut(path, damaged.row / 201)
    elif damaged.kind == "lose":
        path.unlink()
    elif damaged.kind == "copy":
        shutil.copy(path, path.with_name(f"file-{damaged.row % 3:03d}{path.suffix}"))
    elif damaged.file == "info":
        damage.change_info(folder, lambda info: _change_info(info, damaged))
    elif damaged.file == "video":
        count = sum(6 + episode for episode in range(EPISODES))
        gone = range(damaged.row % count, min(count, damaged.row % count + damaged.other % 4 + 1))
        damage.without_pictures(path, gone, close_up=damaged.kind in ("repeat", "change"))
    else:
        _change_table(path, damaged)


def _path(folder: Path, file: str) -> Path | None:
    if file == "video":
        return next(iter((folder / "videos").rglob("*.mp4")), None)
    return {
        "data": damage.data_table(folder),
        "episodes": damage.episodes_table(folder),
        "tasks": folder / "meta" / "tasks.parquet",
        "info": folder / "meta" / "info.json",
    }[file]


def _change_info(info: dict[str, Any], damaged: Damage) -> None:
    name = sorted(info)[damaged.row % len(info)]
    if damaged.kind in ("drop", "no-column"):
        del info[name]
    elif damaged.kind == "null":
        info[name] = None
    elif damaged.kind in ("change", "repeat") and isinstance(info[name], int):
        info[name] += damaged.other % 3 - 1
    elif damaged.kind == "reorder":
        feature = info["features"][sorted(info["features"])[damaged.column % 8]]
        feature["shape"] = [n + damaged.other % 3 - 1 for n in feature["shape"]]


def _change_table(path: Path, damaged: Damage) -> None:
    table = pq.read_table(path)
    # Statistics are not read, so nothing depends on them.
    names = [name for name in table.column_names if not name.startswith("stats/")]
    name = names[damaged.column % len(names)]
    if damaged.kind == "no-column":
        pq.write_table(table.drop_columns([name]), path)
        return
    rows = table.to_pylist()
    if not rows:
        return
    row, other = damaged.row % len(rows), damaged.other % len(rows)
    if damaged.kind == "drop":
        del rows[row : row + 1 + damaged.column % 3]
    elif damaged.kind == "repeat":
        rows.insert(other, dict(rows[row]))
    elif damaged.kind == "reorder":
        rows[row], rows[other] = rows[other], rows[row]
    elif damaged.kind == "null":
        rows[row][name] = None
    elif isinstance(rows[row][name], int | float):
        rows[row][name] += damaged.other % 3 - 1
    elif isinstance(rows[row][name], list):
        rows[row][name] = rows[row][name][: damaged.other % 2]
    schema = table.schema
    if damaged.kind == "change" and pa.types.is_fixed_size_list(schema.field(name).type):
        listed = pa.list_(schema.field(name).type.value_type)
        schema = schema.set(schema.get_field_index(name), pa.field(name, listed))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def read(folder: Path) -> dict[str, Any] | DataError:
    """All that is read of a dataset, or the sentence why not; nothing else may come out."""
    try:
        recordings = open_recordings(f"local:{folder}")
        inspect(recordings)
        pixels = PixelCache(
            recordings, BadFrames(recordings, 0), FrameBudget.of(CacheSettings(memory_gib=0.1))
        )
    except DataError as error:
        return error
    images = {name: pixels.rows(name, torch.arange(len(recordings))) for name in ["top"]}
    return {"columns": recordings.columns, "tasks": recordings.tasks, "pixels": images}


def assert_as_lerobot_reads_it(folder: Path, whole: Path | None, ours: dict[str, Any]) -> None:
    """What LeRobot itself cannot read is as it reads the dataset before its only damage.

    After several, it is as LeRobot reads what its tools get of such a dataset.
    """
    try:
        theirs = _opened_by_lerobot(folder)
    except Exception:
        if whole is None:
            whole = tidied(read_layout(folder, "fuzzed"), folder.with_name("tidied"))
        theirs = _opened_by_lerobot(whole)
    assert len(theirs) == len(ours["tasks"])
    for row in range(len(theirs)):
        item = theirs[row]
        for name in NUMBERS:
            assert torch.equal(ours["columns"][name][row], item[name]), (row, name)
        assert ours["tasks"][row] == item["task"]
        picture = item["observation.images.top"]
        if picture.dtype != torch.uint8:
            picture = (picture * 255).round().to(torch.uint8)
        assert torch.equal(ours["pixels"]["top"][row], picture), row


def _opened_by_lerobot(folder: Path) -> LeRobotDataset:
    theirs = LeRobotDataset("local/fuzzed", root=folder, video_backend="pyav", return_uint8=True)
    last = theirs[len(theirs) - 1]
    if lacking := [name for name in NUMBERS if last[name] is None]:
        raise ValueError(f"LeRobot reads nothing of the column {lacking[0]}")
    return theirs


def check(whole: Path, what: list[Damage]) -> str:
    """One input; how it went."""
    with tempfile.TemporaryDirectory(prefix="zk0d-fuzz-") as place:
        folder = Path(shutil.copytree(whole, Path(place) / "dataset"))
        for each in what:
            try:
                apply(folder, each)
            except (KeyError, IndexError, TypeError, ValueError, OSError, pa.ArrowException):
                continue  # this damage cannot follow the one before it
        before = damage.fingerprint(folder)
        found = read(folder)
        assert damage.fingerprint(folder) == before
        if isinstance(found, DataError):
            assert found.exit_code == ExitCode.UNAVAILABLE
            assert "\n" not in found.message
            assert found.message.endswith(".")
            return "refused"
        assert_as_lerobot_reads_it(folder, whole if len(what) == 1 else None, found)
    return "read"


@settings(
    max_examples=EXAMPLES,
    derandomize="ZK0D_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(what=st.lists(damages, min_size=1, max_size=2))
@example(what=[Damage("data", "null", row=3, column=1)])
@example(what=[Damage("data", "truncate", row=100)])
@example(what=[Damage("data", "no-column", column=3)])
@example(what=[Damage("data", "no-column", column=4)])
@example(what=[Damage("episodes", "truncate", row=150)])
@example(what=[Damage("episodes", "reorder", row=0, other=1)])
@example(what=[Damage("tasks", "reorder", row=0, other=1)])
def test_a_damaged_dataset_gives_a_sentence_or_lerobots_frames(
    whole: Path, what: list[Damage]
) -> None:
    check(whole, what)


def test_the_undamaged_dataset_is_read(whole: Path) -> None:
    assert check(whole, []) == "read"


def _every(make: Callable[[str, str], Damage]) -> list[Damage]:
    return [make(file, kind) for file in FILES for kind in KINDS]


@pytest.mark.parametrize("damaged", _every(lambda file, kind: Damage(file, kind, 4, 2, 1)), ids=str)
def test_each_kind_once(damaged: Damage) -> None:
    check(_made("video"), [damaged])
