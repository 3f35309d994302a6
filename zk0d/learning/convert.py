"""Datasets of LeRobot's formats v2.0 and v2.1, copied into v3.0 by LeRobot's own script.

The script takes v2.1 as LeRobot wrote it. So it gets a draft in which every episode is whole and
numbered, every table has LeRobot's own columns, and the statistics are there.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps

from zk0d.errors import DataError, UsageError
from zk0d.files import rename
from zk0d.learning.layout import (
    BOOKKEEPING,
    FORMAT,
    FORMER,
    INFO,
    Episode,
    Feature,
    Info,
    Layout,
    Span,
    forbidden,
    is_there,
    locate,
    read_info,
    read_table,
    unreadable,
    wrong,
)
from zk0d.learning.pictures import pictures
from zk0d.learning.rewriting import draft_of, keep_papers, verify
from zk0d.learning.tables import DERIVED, TEXT, as_arrays, read_pictures
from zk0d.learning.videos import check_pictures, check_times, check_videos

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
EPISODES, TASKS, STATISTICS = (
    f"meta/{name}.jsonl" for name in ("episodes", "tasks", "episodes_stats")
)
CHUNK = 1000  #: LeRobot's episodes in a folder
INCOMPLETE = "restore it, or leave out what is not whole with --partial"


@dataclass(frozen=True)
class Former:
    """A dataset of a former format, with the numbers that its episodes had there."""

    layout: Layout
    facts: dict[str, Any]  #: info.json's
    numbers: tuple[int, ...]
    times: NDArray[np.float32]  #: of all rows, in seconds from their episode's first


def convert(folder: Path, output: Path, *, partial: bool = False) -> Path:
    """A converted copy of ``folder`` at ``output``, which appears once it is whole and verified.

    Parameters
    ----------
    partial
        Leave out episodes without frames, and episodes and cameras whose files are missing.

    Raises
    ------
    DataError
        If the folder is not a dataset of such a format, if LeRobot cannot convert it, or if rows
        and pictures do not belong together.
    UsageError
        If the output is there already, or lies in recordings.
    TryAgainError
        If the copy cannot be written.
    """
    folder, output = folder.resolve(), output.resolve()
    uri = str(folder)
    if output.exists():
        raise UsageError(f"--output: {output} is there already; name a new folder.")
    info = read_info(folder, uri, (FORMAT, *FORMER))
    if info.codebase_version.startswith(FORMAT):
        raise DataError(
            f"{uri}: is of LeRobot's format {info.codebase_version}; only {' and '.join(FORMER)}"
            " can be converted."
        )
    former = _read(folder, info, partial)
    with draft_of(output, "--output", uri) as draft:
        # The script works in place and beside it.
        copy = draft / "work" / output.name
        _check_pictures(former)
        _write(former, copy)
        _run_lerobots(copy)
        keep_papers(folder, copy)
        _keep_rate(copy, info.fps)
        verify(copy, uri)
        rename(copy, output)
    return output


def _read(folder: Path, info: Info, partial: bool) -> Former:
    """The episodes that are whole; one that is not is refused unless it may be left out."""
    uri = str(folder)
    tasks, named = _tasks(folder, uri), _named(folder, uri)
    cameras = [name for name, feature in info.features.items() if feature.dtype == "video"]
    places = {number: _files(folder, info, number, cameras) for number, *_ in named}
    files = (file for each in places.values() for file in each.values())
    there = {file: is_there(folder / file, uri) for file in files}
    if not partial:
        _check_complete(uri, info, named, there)
    gone = [key for key in cameras if not any(there[each[key]] for each in places.values())]
    places = {
        number: {key: file for key, file in each.items() if key not in gone}
        for number, each in places.items()
    }
    whole = [
        (number, length, instructions)
        for number, length, instructions in named
        if length > 0 and all(there[file] for file in places[number].values())
    ]
    if not whole:
        raise wrong(uri, "has no whole episode", "restore it or record it again")
    kept = {name: feature for name, feature in info.features.items() if name not in gone}
    info = info.model_copy(update={"features": kept})
    episodes: list[Episode] = []
    times = []
    for number, length, instructions in whole:
        begin = episodes[-1].rows.stop if episodes else 0
        spans = {
            key: Span(file, 0.0, length / info.fps) for key, file in places[number].items() if key
        }
        rows = slice(begin, begin + length)
        file = places[number][""]
        episodes.append(Episode(len(episodes), rows, file, spans, tuple(instructions)))
        stamps = read_table(folder, file, uri, ["timestamp"])
        if len(stamps) != length:
            raise wrong(uri, f"{file} has {len(stamps)} rows, {EPISODES} says {length}")
        alone = Layout(uri, folder, info, tasks, (episodes[-1],))
        own = as_arrays(alone, file, stamps, ["timestamp"])["timestamp"]
        times.append(own - own[0])  # GR00T's begin with the end of the first frame
    facts = json.loads((folder / INFO).read_text(encoding="utf-8"))
    layout = Layout(uri, folder, info, tasks, tuple(episodes))
    return Former(layout, facts, tuple(number for number, *_ in whole), np.concatenate(times))


def _named(folder: Path, uri: str) -> list[tuple[int, int, list[str]]]:
    """Each episode's number, length and instructions."""
    try:
        named = [
            (int(line["episode_index"]), int(line["length"]), [*map(str, line["tasks"])])
            for line in _lines(folder, EPISODES, uri)
        ]
    except (ValueError, KeyError, TypeError, OverflowError):
        raise wrong(uri, f"{EPISODES} has a line without episode_index, length or tasks") from None
    counts = Counter(number for number, _, _ in named)
    if twice := [number for number, count in counts.items() if count > 1]:
        raise wrong(uri, f"{EPISODES} names episode {twice[0]} {counts[twice[0]]} times")
    return named


def _check_complete(
    uri: str, info: Info, named: list[tuple[int, int, list[str]]], there: dict[str, bool]
) -> None:
    missing = [file for file, found in there.items() if not found]
    empty = [number for number, length, _ in named if length < 1]
    if missing:
        what = f"the dataset is incomplete ({missing[0]} is missing, {len(missing)} files are)"
    elif empty:
        what = f"episode {empty[0]} has no frames"
    elif info.total_episodes > len(named):
        what = f"{INFO} counts {info.total_episodes} episodes, {EPISODES} has {len(named)}"
    else:
        return
    raise wrong(uri, what, INCOMPLETE)


def _files(folder: Path, info: Info, number: int, cameras: Iterable[str]) -> dict[str, str]:
    """An episode's table, under ``""``, and its video of each camera."""
    names = {"episode_index": number, "episode_chunk": number // info.chunks_size}
    where, uri = f"{INFO}: data_path", str(folder)
    files = {"": locate(folder, where, (info.data_path, DATA_PATH), names, uri)}
    patterns = (info.video_path or VIDEO_PATH, VIDEO_PATH)
    for key in cameras:
        where = f"{INFO}: video_path"
        files[key] = locate(folder, where, patterns, {**names, "video_key": key}, uri)
    return files


def _lines(folder: Path, file: str, uri: str) -> Iterator[dict[str, Any]]:
    if not is_there(folder / file, uri):
        raise wrong(uri, f"the dataset is incomplete ({file} is missing)")
    try:
        for line in (folder / file).read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield dict(json.loads(line))
    except PermissionError:
        raise forbidden(folder / file, uri) from None
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(folder, file, error, uri) from None


def _tasks(folder: Path, uri: str) -> tuple[str, ...]:
    lines = [*_lines(folder, TASKS, uri)]
    tasks = [line.get("task") for line in lines]
    if [line.get("task_index") for line in lines] != list(range(len(lines))) or None in tasks:
        raise wrong(uri, f"{TASKS} does not number its tasks 0, 1, 2, …")
    return tuple(map(str, tasks))


def _table(layout: Layout, episode: Episode, former: int) -> pa.Table:
    """An episode's rows with LeRobot's own columns, numbered as in the copy."""
    features = layout.info.features
    joined = {name: feature for name, feature in features.items() if feature.parts}
    plain = [name for name in features if name not in (*joined, *BOOKKEEPING)]
    plain = [name for name in plain if features[name].dtype != "video"]
    table = read_table(layout.root, episode.file, layout.uri, ["timestamp", *plain], BOOKKEEPING)
    # Numbers of the former dataset say nothing of the copy.
    rest = table.drop_columns([name for name in table.column_names if name == "index"])
    alone = replace(layout, episodes=(episode,))
    numeric = [n for n in plain if not (features[n].is_picture or _is_text(layout, n))]
    own = [name for name in BOOKKEEPING if name in (*table.column_names, *DERIVED)]
    columns = as_arrays(alone, episode.file, rest, [*joined, *numeric, *own])
    numbers = np.full(len(episode), former)
    for name, expected in (("episode_index", numbers), ("frame_index", np.arange(len(episode)))):
        if name in columns and not np.array_equal(columns[name], expected):
            raise layout.wrong(f"{episode.file} has rows whose {name} is not its episode's")
    columns["episode_index"] = np.full(len(episode), episode.number)
    columns["timestamp"] -= columns["timestamp"][0]
    if not 0 <= columns["task_index"].min() <= columns["task_index"].max() < len(layout.tasks):
        raise layout.wrong(f"{episode.file} names a task that {TASKS} does not have")
    inside = {part for feature in joined.values() for part in feature.parts}
    made = {name: table.column(name) for name in plain if name not in inside}
    made |= {name: pa.array([*columns[name]]) for name in joined}
    return pa.table(made | {name: pa.array(columns[name]) for name in BOOKKEEPING})


def _check_pictures(former: Former) -> None:
    """Each episode's video has a picture for each of its rows; the script would not notice."""
    check_times(former.layout, former.times)
    check_pictures(former.layout, former.times)
    check_videos(former.layout, former.layout.cameras)


def _check_sizes(layout: Layout, episode: Episode, draft: Path) -> None:
    """The first picture in a table is as large as the dataset says; LeRobot does not look.

    ``draft`` is where the copy's table lies; only there has the episode its new number.
    """
    for key in layout.cameras:
        feature = layout.info.features[key]
        if feature.dtype == "video":
            continue
        _, height, width = feature.channels_first
        content = next(read_pictures(layout, key, replace(episode, file=str(draft))), None)
        try:
            size = ImageOps.exif_transpose(Image.open(io.BytesIO(content or b""))).size
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue  # a bad frame
        if size != (width, height):
            raise layout.wrong(
                f"{episode.file} shows {size[0]} x {size[1]} pixels in '{key}', {INFO} says"
                f" {width} x {height}",
                f"correct the shape of '{key}' there if the pictures are right",
            )


def _write(former: Former, copy: Path) -> None:
    """A draft of format v2.1 for the script; its videos are links, which it only reads."""
    layout = former.layout
    info, features = layout.info, dict(former.facts["features"])
    inside = {part for feature in info.features.values() for part in feature.parts}
    kept = {
        name: features.get(name) or _described(feature)
        for name, feature in info.features.items()
        if name not in (*inside, *BOOKKEEPING)
    }
    for name in BOOKKEEPING:
        dtype = "float32" if name == "timestamp" else "int64"
        kept[name] = {"dtype": dtype, "shape": [1], "names": None}
    lines: dict[str, list[Any]] = {EPISODES: [], TASKS: [], STATISTICS: []}
    own = _own_statistics(former, kept)
    for episode, number in zip(layout.episodes, former.numbers, strict=True):
        table = _table(layout, episode, number)
        names = {"episode_index": episode.number, "episode_chunk": episode.number // CHUNK}
        path = copy / DATA_PATH.format(**names)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        _check_sizes(layout, episode, path)
        for key, span in episode.spans.items():
            video = copy / VIDEO_PATH.format(video_key=key, **names)
            video.parent.mkdir(parents=True, exist_ok=True)
            video.symlink_to(layout.root / span.file)
        used = dict.fromkeys(table.column("task_index").to_pylist())
        line = {"tasks": [layout.tasks[task] for task in used], "length": len(episode)}
        lines[EPISODES].append({"episode_index": episode.number, **line})
        stats = own[number] if own else _computed(layout, episode, table, path, kept)
        lines[STATISTICS].append({"episode_index": episode.number, "stats": stats})
    lines[TASKS] = [{"task_index": n, "task": task} for n, task in enumerate(layout.tasks)]
    facts = former.facts | {
        "codebase_version": FORMER[-1],
        "total_episodes": len(layout.episodes),
        "total_frames": layout.frames,
        "total_tasks": len(layout.tasks),
        "total_videos": 0,
        "total_chunks": 1,
        "chunks_size": CHUNK,
        "splits": {"train": f"0:{len(layout.episodes)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if any(e.spans for e in layout.episodes) else None,
        "features": kept,
    }
    (copy / "meta").mkdir()
    (copy / INFO).write_text(json.dumps(facts), encoding="utf-8")
    for file, content in lines.items():
        text = "".join(json.dumps(line) + "\n" for line in content)
        (copy / file).write_text(text, encoding="utf-8")


def _described(feature: Feature) -> dict[str, Any]:
    """A joined feature as ``info.json`` describes one."""
    return {"dtype": feature.dtype, "shape": list(feature.shape), "names": list(feature.names)}


def _own_statistics(former: Former, features: Iterable[str]) -> dict[int, dict[str, Any]]:
    """Each episode's as the dataset has them; none if LeRobot's script could not use them.

    They must say the same of each feature and episode, in numbers.
    """
    layout = former.layout
    if not is_there(layout.root / STATISTICS, layout.uri):
        return {}
    from lerobot.datasets import aggregate_stats
    from lerobot.datasets.io_utils import cast_stats_to_numpy

    own: dict[int, dict[str, Any]] = {}
    for line in _lines(layout.root, STATISTICS, layout.uri):
        number, stats = line.get("episode_index"), line.get("stats")
        if isinstance(number, int) and isinstance(stats, dict):
            own[number] = stats
    wanted = {name for name in features if not _is_text(layout, name)}
    unmoved = former.numbers == tuple(range(len(former.numbers)))
    if not (unmoved and all(wanted <= {*own.get(n, {})} for n in former.numbers)):
        return {}
    own = {n: {name: own[n][name] for name in wanted} for n in former.numbers}
    try:
        arrays = [cast_stats_to_numpy(stats) for stats in own.values()]
        aggregate_stats(arrays)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return {}  # damaged
    said = [{(name, key) for name, each in stats.items() for key in each} for stats in arrays]
    values = [value for stats in arrays for each in stats.values() for value in each.values()]
    alike = all(each == said[0] for each in said) and {name for name, _ in said[0]} == wanted
    return own if alike and all(value.dtype.kind in "biuf" for value in values) else {}


def _computed(
    layout: Layout, episode: Episode, table: pa.Table, draft: Path, features: Iterable[str]
) -> dict[str, Any]:
    """An episode's statistics as LeRobot computes them: of numbers all, of pictures a sample.

    ``draft`` is where the copy's ``table`` lies; only there has the episode its new number.
    """
    from lerobot.datasets.compute_stats import (
        auto_downsample_height_width,
        get_feature_stats,
        sample_indices,
    )

    made: dict[str, Any] = {}
    sample = {*sample_indices(len(episode))}
    times = table.column("timestamp").to_numpy().astype(np.float64)
    for name in features:
        if _is_text(layout, name):
            continue
        if name not in BOOKKEEPING and layout.info.features[name].is_picture:
            # The draft's path is absolute, so the layout's root does not matter.
            shown = [
                auto_downsample_height_width(picture.numpy())
                for row, picture in pictures(layout, name, replace(episode, file=str(draft)), times)
                if row in sample
            ]
            if len({each.shape for each in shown}) != 1:
                file = episode.spans[name].file if name in episode.spans else episode.file
                what = "pictures of several sizes" if shown else "no pictures"
                raise layout.wrong(f"{file} has {what} in '{name}'")
            found = get_feature_stats(np.stack(shown), axis=(0, 2, 3), keepdims=True)
            made[name] = {
                key: value if key == "count" else value[0] / 255 for key, value in found.items()
            }
        else:
            values = np.array(table.column(name).to_pylist(), np.float64)
            made[name] = get_feature_stats(values, axis=0, keepdims=values.ndim == 1)
    return {
        name: {key: np.asarray(value).tolist() for key, value in found.items()}
        for name, found in made.items()
    }


def _is_text(layout: Layout, name: str) -> bool:
    return name not in BOOKKEEPING and layout.info.features[name].dtype in TEXT


def _run_lerobots(copy: Path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    convert_dataset(f"local/{copy.name}", root=copy, push_to_hub=False)


def _keep_rate(copy: Path, fps: float) -> None:
    """The script rounds the rate down."""
    path = copy / INFO
    facts = json.loads(path.read_text(encoding="utf-8"))
    rate = int(fps) if fps.is_integer() else fps
    facts["fps"] = rate
    for feature in facts["features"].values():
        if "fps" in feature:
            feature["fps"] = rate
    path.write_text(json.dumps(facts, indent=4), encoding="utf-8")
