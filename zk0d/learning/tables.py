"""The rows of a LeRobot v3.0 dataset, read as they lie and held against its episodes. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from zk0d.learning.layout import (
    BOOKKEEPING,
    Episode,
    Feature,
    Layout,
    read_table,
    unreadable,
    visible,
)

#: Where LeRobot looks for rows, whatever ``info.json`` says.
DATA = "data"
#: Features that are no numbers.
TEXT = ("string", "language")
#: LeRobot's own columns, whatever ``info.json`` says of them.
_NUMBER = Feature(dtype="", shape=(1,))
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
#: Columns that follow from an episode's place and length, or from its one instruction.
DERIVED = ("frame_index", "index", "task_index")


def read_columns(layout: Layout) -> dict[str, NDArray[Any]]:
    """Every numeric feature of all rows, in order.

    Returns
    -------
    LeRobot's own columns with shape ``(frames,)``, time stamps as float32, the others as int64;
    features as float32 with shape ``(frames, …)`` after their own.

    Raises
    ------
    DataError
        If a table is missing or damaged, lacks a column or a value that does not follow from the
        others, or if its rows are not the episodes' in their order.
    """
    wanted = {
        name: feature
        for name, feature in layout.info.features.items()
        if not feature.is_picture and feature.dtype not in TEXT
    }
    wanted |= dict.fromkeys(BOOKKEEPING, _NUMBER)
    files = list(dict.fromkeys(episode.file for episode in layout.episodes))
    _check_files(layout, files)
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
    needed = [part for name, feature in wanted.items() for part in feature.parts or (name,)]
    needed = [name for name in needed if name not in DERIVED]
    for file in files:
        table = read_table(layout.root, file, layout.uri, needed, DERIVED)
        for name, values in as_arrays(layout, file, table, wanted).items():
            parts[name].append(values)
        _check_rows(layout, file, {name: parts[name][-1] for name in BOOKKEEPING})
    columns = {name: np.concatenate(part) for name, part in parts.items()}
    last = int(columns["task_index"].max())
    if last >= len(layout.tasks) or columns["task_index"].min() < 0:
        raise layout.wrong(f"a frame names task {last}, meta/tasks.parquet has {len(layout.tasks)}")
    return columns


def as_arrays(
    layout: Layout, file: str, table: pa.Table, names: Iterable[str]
) -> dict[str, NDArray[Any]]:
    """Numeric features of a table's rows, as of :func:`read_columns`.

    Raises
    ------
    DataError
        If rows lack a number or are of another width than the feature.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name in names:
        if name in DERIVED and name not in table.column_names:
            arrays[name] = _derived(layout, file, name)
            continue
        feature = _NUMBER if name in BOOKKEEPING else layout.info.features[name]
        if feature.parts:
            parts = as_arrays(layout, file, table, feature.parts)
            arrays[name] = np.concatenate([*parts.values()], 1)
        else:
            arrays[name] = _values(layout, file, table, name, feature)
    return arrays


def read_pictures(layout: Layout, key: str, episode: Episode) -> Iterator[bytes | None]:
    """The files of an episode's pictures that lie in its table; ``None`` for one that is missing.

    Raises
    ------
    DataError
        If the table cannot be read.
    """
    try:
        table = pq.read_table(
            layout.root / episode.file,
            columns=[key],
            filters=[("episode_index", "=", episode.number)],
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(layout.root, episode.file, error, layout.uri) from None
    for picture in table.column(key).to_pylist():
        yield picture.get("bytes") if isinstance(picture, dict) else None


def _check_files(layout: Layout, files: list[str]) -> None:
    """The tables are those that the episodes name, in the order in which LeRobot reads them."""
    tables = visible((layout.root / DATA).glob("*/*.parquet"))
    there = [path.relative_to(layout.root).as_posix() for path in tables]
    if strange := [file for file in there if file not in files]:
        raise layout.wrong(
            f"{strange[0]} belongs to no episode: the recording was broken off, or a file is left"
            " of another",
            "take that file away, or record it again",
        )
    if [file for file in files if file in there] != there:
        raise layout.wrong("meta/episodes names the tables of data in another order than theirs")


def _check_rows(layout: Layout, file: str, columns: dict[str, NDArray[Any]]) -> None:
    """The rows of one table are those of its episodes, in order, and numbered so."""
    episodes = [episode for episode in layout.episodes if episode.file == file]
    lengths = [len(episode) for episode in episodes]
    expected = np.repeat([episode.number for episode in episodes], lengths)
    found = columns["episode_index"]
    if not np.array_equal(found, expected):
        for episode in episodes:
            rows = int((found == episode.number).sum())
            if rows != len(episode):
                raise layout.wrong(
                    f"{file} has {rows} rows of episode {episode.number}, meta/episodes says"
                    f" {len(episode)}"
                )
        strange = sorted({*found.tolist()} - {*expected.tolist()})
        if strange:
            raise layout.wrong(
                f"{file} has rows of episode {strange[0]}, which meta/episodes says lie elsewhere"
            )
        raise layout.wrong(f"{file} has rows that are not in their episodes' order")
    first = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    for name, numbers in (
        ("frame_index", np.arange(len(found)) - first),
        ("index", episodes[0].rows.start + np.arange(len(found))),
    ):
        off = np.nonzero(columns[name] != numbers)[0]
        if len(off):
            raise layout.wrong(
                f"{file}: row {off[0]} has {name} {columns[name][off[0]]}, but is frame"
                f" {int(off[0] - first[off[0]])} of episode {found[off[0]]}"
            )


def _derived(layout: Layout, file: str, name: str) -> NDArray[np.int64]:
    """A column that a table need not have, one number for each row of its episodes."""
    episodes = [episode for episode in layout.episodes if episode.file == file]
    if name == "index":
        parts = [np.arange(episode.rows.start, episode.rows.stop) for episode in episodes]
    elif name == "frame_index":
        parts = [np.arange(len(episode)) for episode in episodes]
    else:
        parts = [np.full(len(episode), _only_task(layout, episode)) for episode in episodes]
    return np.concatenate(parts).astype(np.int64)


def _only_task(layout: Layout, episode: Episode) -> int:
    if len(layout.tasks) == 1:
        return 0
    if len(episode.tasks) == 1 and episode.tasks[0] in layout.tasks:
        return layout.tasks.index(episode.tasks[0])
    raise layout.wrong(
        f"{episode.file} has no column 'task_index', and meta/episodes names no single task of"
        f" episode {episode.number}",
        "name one there, or record it again",
    )


def _values(
    layout: Layout, file: str, table: pa.Table, name: str, feature: Feature
) -> NDArray[Any]:
    """One column of a table as an array, each row as wide as the feature."""
    column: Any = table.column(name).combine_chunks()
    shape = (len(column), *(() if name in BOOKKEEPING else feature.shape))
    lacking = layout.wrong(f"{file} has rows without a number in '{name}'")
    while True:
        if column.null_count:
            raise lacking
        if isinstance(column.type, pa.ExtensionType):
            column = column.storage
        elif any(is_list(column.type) for is_list in _LISTS):
            if len(pc.unique(pc.list_value_length(column))) > 1:
                raise layout.wrong(f"{file} has rows of several widths in '{name}'")
            column = column.flatten()
        else:
            break
    if not (pa.types.is_primitive(column.type) and not pa.types.is_temporal(column.type)):
        raise lacking
    values = column.to_numpy(zero_copy_only=False)
    if values.size != np.prod(shape, dtype=np.int64):
        raise layout.wrong(
            f"{file} has {values.size / max(1, len(table)):g} values a row in '{name}',"
            f" meta/info.json says {list(feature.shape)}"
        )
    typed: NDArray[Any] = values.reshape(shape).astype(
        np.int64 if name in BOOKKEEPING and name != "timestamp" else np.float32
    )
    return typed
