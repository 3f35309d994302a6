"""Whatever happens to a dataset's files: a sentence, or exactly what LeRobot itself would read.

``make test`` tries each kind of damage and a few combinations, ``make test-long`` more of those,
and ``ZK0D_FUZZ=5000`` so many. Every input that ever failed is an example below.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
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
from tests.recordings import shapes
from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError, ExitCode
from zk0d.learning.convert import convert
from zk0d.learning.frames import BadFrames, FrameBudget, PixelCache
from zk0d.learning.inspection import inspect
from zk0d.learning.layout import BOOKKEEPING, read_layout
from zk0d.learning.recordings import open_recordings
from zk0d.learning.rewriting import tidied

#: An input takes up to a second, more on a busy machine.
pytestmark = pytest.mark.timeout(max(1200, 5 * int(os.environ.get("ZK0D_FUZZ", "0"))))
EPISODES = 3
FILES = ("data", "episodes", "tasks", "info", "video")
FORMER_FILES = (*FILES, "episodes_stats")
LINES = ("episodes", "tasks", "episodes_stats")
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
    episode: int = 0  #: of a former format, which has files for each


def _damages(files: Sequence[str]) -> st.SearchStrategy[Damage]:
    return st.builds(
        Damage,
        file=st.sampled_from(files),
        kind=st.sampled_from(KINDS),
        row=st.integers(0, 200),
        other=st.integers(0, 200),
        column=st.integers(0, 30),
        episode=st.integers(0, EPISODES - 1),
    )


damages, former_damages = _damages(FILES), _damages(FORMER_FILES)


@pytest.fixture(scope="module", params=["video", "image"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small whole dataset, with videos or with pictures in its tables."""
    return _made(request.param)


@pytest.fixture(scope="module", params=["v2.0 video", "v2.1 video", "v2.1 image"])
def former(request: pytest.FixtureRequest) -> Path:
    """The same of a former format."""
    return _made_former(request.param)


@cache
def _made_former(what: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="zk0d-fuzz-")) / "whole"
    version, pictures = what.split()
    shapes.write(
        folder,
        shapes.so101("top", dtype=pictures),
        lengths=[6 + episode for episode in range(EPISODES)],
        version=version,
        tasks=("pick", "put"),
    )
    return folder


@cache
def _made(pictures: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="zk0d-fuzz-")) / "whole"
    damage.make_dataset(folder, [6 + episode for episode in range(EPISODES)], pictures)
    return folder


def apply(folder: Path, damaged: Damage) -> None:
    """Do it; what does not go (no such row, no video) is left undone."""
    path = _path(folder, damaged)
    if path is None or not path.exists():
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
    elif path.suffix == ".jsonl":
        _change_lines(path, damaged)
    else:
        _change_table(path, damaged)


def _path(folder: Path, damaged: Damage) -> Path | None:
    file, meta = damaged.file, folder / "meta"
    if file in ("video", "data"):
        where, kind = ("videos", "mp4") if file == "video" else ("data", "parquet")
        files = sorted((folder / where).rglob(f"*.{kind}"))
        return files[damaged.episode % len(files)] if files else None
    if file == "info":
        return meta / "info.json"
    if (lines := meta / f"{file}.jsonl").exists() or file == "episodes_stats":
        return lines
    return damage.episodes_table(folder) if file == "episodes" else meta / "tasks.parquet"


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


def _change_lines(path: Path, damaged: Damage) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    row, other = damaged.row % len(lines), damaged.other % len(lines)
    name = sorted(lines[row])[damaged.column % len(lines[row])]
    if damaged.kind == "drop":
        del lines[row]
    elif damaged.kind == "repeat":
        lines.insert(other, lines[row])
    elif damaged.kind == "reorder":
        lines[row], lines[other] = lines[other], lines[row]
    elif damaged.kind == "null":
        lines[row][name] = None
    elif damaged.kind == "no-column":
        del lines[row][name]
    elif isinstance(lines[row][name], int):
        lines[row][name] += damaged.other % 3 - 1
    elif isinstance(lines[row][name], list):
        lines[row][name] = lines[row][name][: damaged.other % 2]
    elif isinstance(lines[row][name], dict):
        inner = lines[row][name]
        feature = inner[sorted(inner)[damaged.other % len(inner)]]
        feature[sorted(feature)[damaged.column % len(feature)]] = [None, "x", []][damaged.other % 3]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


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


def assert_is_a_sentence(error: DataError) -> None:
    assert error.exit_code == ExitCode.UNAVAILABLE
    assert "\n" not in error.message
    assert error.message.endswith(".")


def _opened_by_lerobot(folder: Path) -> LeRobotDataset:
    theirs = LeRobotDataset("local/fuzzed", root=folder, video_backend="pyav", return_uint8=True)
    last = theirs[len(theirs) - 1]
    if lacking := [name for name in NUMBERS if last[name] is None]:
        raise ValueError(f"LeRobot reads nothing of the column {lacking[0]}")
    return theirs


def check(whole: Path, what: list[Damage]) -> str:
    """One input; how it went."""
    with tempfile.TemporaryDirectory(prefix="zk0d-fuzz-") as place:
        folder = _damaged(whole, Path(place), what)
        before = damage.fingerprint(folder)
        found = read(folder)
        assert damage.fingerprint(folder) == before
        if isinstance(found, DataError):
            assert_is_a_sentence(found)
            return "refused"
        assert_as_lerobot_reads_it(folder, whole if len(what) == 1 else None, found)
    return "read"


def _damaged(whole: Path, place: Path, what: list[Damage]) -> Path:
    folder = Path(shutil.copytree(whole, place / "dataset"))
    for each in what:
        try:
            apply(folder, each)
        except (KeyError, IndexError, TypeError, ValueError, OSError, pa.ArrowException):
            continue  # this damage cannot follow the one before it
    return folder


def check_converted(whole: Path, what: list[Damage], partial: bool) -> str:
    """One input to ``data convert``; how it went."""
    with tempfile.TemporaryDirectory(prefix="zk0d-fuzz-") as place:
        folder = _damaged(whole, Path(place), what)
        before = damage.fingerprint(folder)
        made = Path(place) / "converted"
        try:
            convert(folder, made, partial=partial)
        except DataError as error:
            assert_is_a_sentence(error)
        assert damage.fingerprint(folder) == before
        assert {path.name for path in Path(place).iterdir()} <= {folder.name, made.name}
        if not made.exists():
            return "refused"
        found = read(made)
        if isinstance(found, DataError):
            raise found
        assert_as_lerobot_reads_it(made, made, found)
        assert_are_the_owners_rows(folder, found["columns"])
    return "read"


def assert_are_the_owners_rows(former: Path, columns: dict[str, torch.Tensor]) -> None:
    """Each episode of the copy has the rows of one of the owner's tables, each of those once."""
    tables = [pq.read_table(path) for path in _whole_tables(former)]
    begin = 0
    for number in range(int(columns["episode_index"][-1]) + 1):
        rows = columns["episode_index"] == number
        begin += int(rows.sum())
        alike = [
            place
            for place, table in enumerate(tables)
            if all(
                torch.equal(columns[name][rows], torch.tensor(table.column(name).to_pylist()))
                for name in ("observation.state", "action")
            )
        ]
        assert alike, f"episode {number}"
        del tables[alike[0]]
    assert begin == len(columns["episode_index"])


def _whole_tables(former: Path) -> Iterator[Path]:
    for path in sorted((former / "data").rglob("*.parquet")):
        try:
            pq.read_table(path)
        except (OSError, pa.ArrowException):
            continue
        yield path


def fuzzed(usually: int) -> settings:
    return settings(
        max_examples=int(os.environ.get("ZK0D_FUZZ", usually)),
        derandomize="ZK0D_FUZZ" not in os.environ,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.mark.slow
@fuzzed(15)
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


@pytest.mark.slow
@fuzzed(6)
@given(what=st.lists(former_damages, min_size=1, max_size=2), partial=st.booleans())
@example(what=[Damage("info", "reorder", row=0, other=0, column=4)], partial=False)
def test_a_damaged_former_dataset_gives_a_sentence_or_lerobots_frames(
    former: Path, what: list[Damage], partial: bool
) -> None:
    check_converted(former, what, partial)


@pytest.mark.slow
@pytest.mark.long
@fuzzed(60)
@given(what=st.lists(damages, min_size=1, max_size=2))
def test_many_damaged_datasets(whole: Path, what: list[Damage]) -> None:
    check(whole, what)


@pytest.mark.slow
@pytest.mark.long
@fuzzed(20)
@given(what=st.lists(former_damages, min_size=1, max_size=2), partial=st.booleans())
def test_many_damaged_former_datasets(former: Path, what: list[Damage], partial: bool) -> None:
    check_converted(former, what, partial)


@pytest.mark.slow
@pytest.mark.parametrize("partial", [False, True])
def test_the_undamaged_former_dataset_is_converted(former: Path, partial: bool) -> None:
    assert check_converted(former, [], partial) == "read"


def test_the_undamaged_dataset_is_read(whole: Path) -> None:
    assert check(whole, []) == "read"


def _each_kind(files: Sequence[str]) -> list[Damage]:
    return [Damage(file, kind, 4, 2, 1) for file in files for kind in KINDS]


@pytest.mark.slow
@pytest.mark.parametrize("damaged", _each_kind(FORMER_FILES), ids=str)
def test_each_kind_once_in_a_former_format(damaged: Damage) -> None:
    check_converted(_made_former("v2.1 video"), [damaged], partial=True)


@pytest.mark.slow
@pytest.mark.parametrize("damaged", _each_kind(FILES), ids=str)
def test_each_kind_once(damaged: Damage) -> None:
    check(_made("video"), [damaged])
