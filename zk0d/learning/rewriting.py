"""What LeRobot's own tools write out of recordings: apart from them, offline, and verified.

Opened on a folder that lacks something, LeRobot's classes download it from the hub into that
folder, and they copy tables to a cache. Here they may do neither.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from zk0d.config.names import check_apart
from zk0d.errors import DataError, Zk0dError, disk_trouble, no_permission, not_written
from zk0d.learning.layout import (
    DATA_PATH,
    EPISODES,
    INFO,
    TASKS,
    VIDEO_PATH,
    Layout,
    forbidden,
    is_there,
    read_layout,
    read_table,
    visible,
)
from zk0d.learning.tables import DERIVED, as_arrays, read_columns
from zk0d.learning.videos import check_pictures, check_times, check_videos

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDataset

STATISTICS = "meta/stats.json"


@contextmanager
def draft_of(output: Path, option: str, source: str) -> Iterator[Path]:
    """A folder beside ``output`` to write into; what is left in there afterwards is removed.

    Within, LeRobot's tools reach no network and keep their copies of tables in that folder.

    Raises
    ------
    UsageError
        If ``output`` lies in recordings.
    TryAgainError
        If the disk is full or forbidden.
    DataError
        If LeRobot's tools fail with ``source``.
    """
    check_apart(output, option)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as folder,
            _offline(Path(folder) / "cache"),
        ):
            yield Path(folder)
    except Zk0dError:
        raise
    except Exception as error:  # its tools raise whatever a damaged file leads to
        if disk_trouble(error) or no_permission(error):
            what = f"{output}: cannot be written"
            raise not_written(what, error, " or name another folder") from None
        raise DataError(
            f"{source}: LeRobot cannot work with it ({type(error).__name__}: {error}); is the"
            " dataset whole?"
        ) from error


def verify(folder: Path, uri: str) -> Layout:
    """Hold a dataset to every rule that needs no decoding, all cameras and all pictures included.

    Returns
    -------
    Its metadata.

    Raises
    ------
    DataError
        Naming episode, file and cure.
    """
    layout = read_layout(folder, uri)
    times = read_columns(layout)["timestamp"]
    check_times(layout, times)
    check_videos(layout, layout.cameras)
    check_pictures(layout, times)
    return layout


def tidied(layout: Layout, folder: Path) -> Path:
    """A dataset as LeRobot's tools need it, in ``folder``: links to its files, and no others.

    They read every file of its folders, only v3.0's patterns, instructions as the index of their
    table, and only tables with all of LeRobot's columns.
    """
    facts = json.loads((layout.root / INFO).read_text(encoding="utf-8"))
    facts |= {"data_path": DATA_PATH, "video_path": facts.get("video_path") and VIDEO_PATH}
    numbers = {"frame_index": "int64", "index": "int64", "task_index": "int64"}
    for name, dtype in numbers.items():
        facts["features"].setdefault(name, {"dtype": dtype, "shape": [1], "names": None})
    (folder / EPISODES / "chunk-000").mkdir(parents=True)
    (folder / INFO).write_text(json.dumps(facts), encoding="utf-8")
    if is_there(layout.root / STATISTICS, layout.uri):
        (folder / STATISTICS).symlink_to(layout.root / STATISTICS)
    tasks = {"task": layout.tasks, "task_index": range(len(layout.tasks))}
    pd.DataFrame(tasks).set_index("task").to_parquet(folder / TASKS)
    whole = visible((layout.root / EPISODES).glob("*/*.parquet"))
    table = pa.concat_tables(map(pq.read_table, whole), promote_options="default")
    columns = {name: table.column(name) for name in table.column_names}
    for key in ("", *layout.episodes[0].spans):
        files = [episode.spans[key].file if key else episode.file for episode in layout.episodes]
        places = {file: place for place, file in enumerate(dict.fromkeys(files))}
        for file, place in places.items():
            chunk, number = divmod(place, layout.info.chunks_size)
            pattern = VIDEO_PATH if key else DATA_PATH
            path = folder / pattern.format(video_key=key, chunk_index=chunk, file_index=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            if key:
                path.symlink_to(layout.root / file)
            else:
                _link_table(layout, file, path)
        what = f"videos/{key}" if key else "data"
        chunks = [divmod(places[file], layout.info.chunks_size) for file in files]
        columns[f"{what}/chunk_index"] = pa.array([chunk for chunk, _ in chunks], pa.int64())
        columns[f"{what}/file_index"] = pa.array([number for _, number in chunks], pa.int64())
        for end in ("start", "end") if key else ():
            stamps = [getattr(episode.spans[key], end) for episode in layout.episodes]
            word = {"start": "from", "end": "to"}[end]
            columns[f"{what}/{word}_timestamp"] = pa.array(stamps, pa.float64())
    for name in ("chunk_index", "file_index"):
        columns[f"meta/episodes/{name}"] = pa.array([0] * len(layout.episodes), pa.int64())
    pq.write_table(pa.table(columns), folder / EPISODES / "chunk-000/file-000.parquet")
    return folder


def _link_table(layout: Layout, file: str, path: Path) -> None:
    """A table with all of LeRobot's columns: itself, or a copy with those that it lacks."""
    lacking = [name for name in DERIVED if name not in pq.read_schema(layout.root / file).names]
    if not lacking:
        path.symlink_to(layout.root / file)
        return
    table = read_table(layout.root, file, layout.uri)
    for name, values in as_arrays(layout, file, table, lacking).items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table.replace_schema_metadata(None), path)


def keep_papers(source: Path, made: Path) -> None:
    """Copy README, license and whatever else lies beside a dataset's folders; LeRobot does not."""
    for path in visible(source.iterdir()):
        if path.is_file() and not (made / path.name).exists():
            try:
                shutil.copyfile(path, made / path.name)
            except PermissionError as error:
                if error.filename == str(path):
                    raise forbidden(path, str(source)) from None
                raise
    license_ = json.loads((source / INFO).read_text(encoding="utf-8")).get("license")
    facts = json.loads((made / INFO).read_text(encoding="utf-8"))
    if license_ and "license" not in facts:
        facts["license"] = license_
        (made / INFO).write_text(json.dumps(facts, indent=4), encoding="utf-8")


def opened(folder: Path) -> LeRobotDataset:
    """A verified and tidied dataset for LeRobot's tools; only within :func:`draft_of`."""
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset(f"local/{folder.name}", root=folder, video_backend="pyav")


@contextmanager
def _offline(cache: Path) -> Iterator[None]:
    import datasets
    import huggingface_hub

    hub, tables = huggingface_hub.constants, datasets.config
    before = hub.HF_HUB_OFFLINE, tables.HF_DATASETS_CACHE
    hub.HF_HUB_OFFLINE, tables.HF_DATASETS_CACHE = True, cache
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, tables.HF_DATASETS_CACHE = before
