"""What the metadata of a LeRobot v3.0 dataset says, read, never written, and held together.

LeRobot's own classes ask the hub for whatever a folder lacks, write the answer into that folder,
and keep a copy of every table in a cache. Nothing here does: files are read with pyarrow, and a
dataset is refused if its parts need not belong together. No torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, PositiveFloat, PositiveInt, ValidationError, field_validator

from zk0d.config.names import DatasetUri
from zk0d.errors import DataError, UnavailableError

FORMAT = "v3."
INFO = "meta/info.json"
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes"
#: Columns that LeRobot adds to every dataset.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
RESTORE = "restore it or record it again"
LEAVE_OUT = "leave the episode out (lerobot-edit-dataset deletes it) or record it again"


class Feature(BaseModel):
    """A feature as ``info.json`` describes it."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()  #: of the components, or of a picture's axes
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None

    @field_validator("names", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """LeRobot's versions wrote a list, a dict with one list, a dict of places, or null."""
        if isinstance(value, dict):
            lists = [part for part in value.values() if isinstance(part, list)]
            value = lists[0] if len(lists) == 1 else list(value)
        return [str(name) for name in value] if isinstance(value, list) else ()

    @property
    def is_picture(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def is_depth(self) -> bool:
        told = {**(self.video_info or {}), **(self.info or {})}
        return bool(told.get("is_depth_map") or told.get("video.is_depth_map"))

    @property
    def channels_first(self) -> tuple[int, int, int]:
        """A picture's channels, height and width."""
        first, second, third = self.shape
        if self.names and self.names[0] in ("channel", "channels"):
            return first, second, third
        return third, first, second


class Info(BaseModel):
    """``meta/info.json``, as far as it is read."""

    codebase_version: str
    fps: PositiveFloat
    total_episodes: int
    total_frames: int
    features: dict[str, Feature]
    robot_type: str | None = None
    data_path: str = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video_path: str | None = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    license: Any = None
    splits: Any = None
    total_tasks: int
    # Not used here; LeRobot opens no dataset in which these are none.
    chunks_size: PositiveInt = 1000
    data_files_size_in_mb: PositiveInt = 100
    video_files_size_in_mb: PositiveInt = 200


@dataclass(frozen=True)
class Span:
    """An episode's part of a video: from ``start`` to ``end``, in seconds."""

    file: str
    start: float
    end: float


@dataclass(frozen=True)
class Episode:
    """Where an episode is: its rows among all of the dataset, its table, its part of each video."""

    number: int
    rows: slice
    file: str
    spans: Mapping[str, Span]

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)


@dataclass(frozen=True)
class Layout:
    """A dataset's metadata. ``episodes[n]`` is episode ``n``."""

    uri: str
    root: Path
    info: Info
    tasks: tuple[str, ...]
    episodes: tuple[Episode, ...]

    @property
    def frames(self) -> int:
        return int(self.episodes[-1].rows.stop)

    @property
    def cameras(self) -> list[str]:
        """The features that are pictures."""
        return [name for name, feature in self.info.features.items() if feature.is_picture]

    def wrong(self, what: str, cure: str = RESTORE) -> DataError:
        """The refusal of this dataset."""
        return wrong(self.uri, what, cure)


def wrong(uri: str, what: str, cure: str = RESTORE) -> DataError:
    """The refusal of a dataset, in one sentence."""
    return DataError(f"{uri}: {what}; {cure}.")


def datasets_folder() -> Path:
    """Where LeRobot looks for datasets by name. Its own constant costs an import of torch."""
    from huggingface_hub.constants import HF_HOME

    return Path(os.environ.get("HF_LEROBOT_HOME") or Path(HF_HOME) / "lerobot").expanduser()


def find(uri: str) -> Path:
    """The folder of a dataset that is on this machine.

    Raises
    ------
    DataError
        If there is no such folder.
    UnavailableError
        If it is a dataset of the hub that was not fetched yet.
    """
    address = DatasetUri.parse(uri)
    if not address.fetched:
        if not address.folder.is_dir():
            raise wrong(uri, f"there is no folder {address.folder}", "give a dataset's folder")
        return address.folder
    fetched = datasets_folder() / address.location
    if (fetched / INFO).is_file():
        return fetched
    # LeRobot's own downloads are snapshots, one for each commit, with the commits of its tags.
    cached = datasets_folder() / f"hub/datasets--{address.location.replace('/', '--')}"
    tags = sorted((cached / "refs").glob("v3.*"), reverse=True)
    for commit in [tag.read_text(encoding="utf-8").strip() for tag in tags]:
        if (cached / "snapshots" / commit / INFO).is_file():
            return cached / "snapshots" / commit
    raise UnavailableError(
        f"{uri}: is not on this machine; zk0bot data fetch {address.location} gets it (for a"
        " service: systemctl start zk0d-fetch).",
        reason="not_fetched",
    )


def read_info(folder: Path, uri: str) -> Info:
    """What a dataset says it is.

    Raises
    ------
    DataError
        If it is not a LeRobot dataset of format v3.0, or holds nothing.
    """
    path = folder / INFO
    if not path.exists():
        raise wrong(
            uri,
            f"{folder} is not a LeRobot dataset ({INFO} is missing)",
            "give the folder that holds meta, data and videos",
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = str(facts["codebase_version"])
    except PermissionError:
        raise forbidden(path, uri) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise wrong(uri, f"{path} cannot be read ({first_line(error)})") from None
    if not version.startswith(FORMAT):
        raise wrong(
            uri,
            f"is of LeRobot's format {version}, this needs v3.0",
            f"make a converted copy: zk0bot data convert {folder}",
        )
    try:
        info = Info.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(map(str, first["loc"]))
        raise wrong(uri, f"{path} cannot be read ('{dotted}': {first['msg']})") from None
    for name, feature in info.features.items():
        if feature.is_picture and len(feature.shape) != 3:
            raise wrong(uri, f"{INFO} gives camera '{name}' the shape {list(feature.shape)}")
        if name in BOOKKEEPING and feature.shape != (1,):
            raise wrong(uri, f"{INFO} gives '{name}' the shape {list(feature.shape)}, not [1]")
    if info.total_episodes < 1:
        raise wrong(uri, "holds no episodes", "record some first")
    return info


def read_layout(folder: Path, uri: str) -> Layout:
    """Read a dataset's metadata; no table of rows and no video is opened.

    Raises
    ------
    DataError
        If a file is missing or damaged, or two of them disagree.
    """
    info = read_info(folder, uri)
    tasks = _read_tasks(folder, uri)
    if info.total_tasks != len(tasks):
        raise wrong(uri, f"{INFO} counts {info.total_tasks} tasks, {TASKS} has {len(tasks)}")
    layout = Layout(uri, folder, info, tasks, tuple(_read_episodes(folder, info, uri)))
    if info.total_frames != layout.frames:
        raise layout.wrong(
            f"{INFO} counts {info.total_frames} frames, {EPISODES} {layout.frames}: the recording"
            " was broken off, or one of them was edited"
        )
    return layout


def visible(paths: Iterator[Path]) -> list[Path]:
    """Sorted, as LeRobot reads them, without what macOS leaves beside each file (``._name``)."""
    return sorted(path for path in paths if not path.name.startswith("."))


def read_table(folder: Path, file: str, uri: str, columns: list[str] | None = None) -> pa.Table:
    """A parquet file; one that is missing, forbidden or damaged is a :class:`DataError`."""
    path = folder / file
    if not path.is_file():
        raise wrong(uri, f"the dataset is incomplete ({file} is missing)")
    try:
        table = pq.ParquetFile(path)
        for name in columns or ():
            if name not in table.schema_arrow.names:
                raise wrong(uri, f"{file} has no column '{name}'")
        return table.read(columns=columns)
    except PermissionError:
        raise forbidden(path, uri) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise wrong(uri, f"{file} is damaged ({first_line(error)})") from None


def forbidden(path: Path, uri: str) -> DataError:
    """The refusal of a dataset with a file that this process may not read."""
    return wrong(
        uri,
        f"{path}: this process may not read it (user {os.geteuid()})",
        "give it the right, for example with chmod -R a+rX on the recordings",
    )


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a sentence."""
    said = getattr(error, "strerror", None) or str(error)
    text = said.strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")


def _read_tasks(folder: Path, uri: str) -> tuple[str, ...]:
    """The instructions by their index. pandas keeps them as the table's index, some as a column."""
    table = read_table(folder, TASKS, uri)
    column = next((c for c in ("task", "__index_level_0__") if c in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise wrong(uri, f"{TASKS} has no column 'task' or no 'task_index'")
    tasks, places = table.column(column).to_pylist(), table.column("task_index").to_pylist()
    if places != list(range(len(places))) or any(not isinstance(task, str) for task in tasks):
        raise wrong(uri, f"{TASKS} does not number its tasks 0, 1, 2, …")
    return tuple(tasks)


def _read_episodes(folder: Path, info: Info, uri: str) -> Iterator[Episode]:
    rows = _episode_rows(folder, info, uri)
    if len(rows) != info.total_episodes:
        raise wrong(
            uri,
            f"{INFO} counts {info.total_episodes} episodes, {EPISODES} has {len(rows)}: the"
            " recording was broken off, or one of them was edited",
        )
    videos = [name for name, feature in info.features.items() if feature.dtype == "video"]
    begin = 0
    for place, row in enumerate(rows):
        number = row["episode_index"]
        if number != place:
            raise wrong(uri, f"{EPISODES} has episode {number} where episode {place} must be")
        length = row["length"]
        if length < 1:
            raise wrong(uri, f"episode {number} has no frames", LEAVE_OUT)
        if (row["dataset_from_index"], row["dataset_to_index"]) != (begin, begin + length):
            raise wrong(
                uri,
                f"{EPISODES} gives episode {number} the rows {row['dataset_from_index']} to"
                f" {row['dataset_to_index']}, those of {length} frames after the episodes before it"
                f" are {begin} to {begin + length}",
            )
        spans = {key: _span(info, row, key, uri) for key in videos}
        file = _place(info.data_path, uri, "data_path", row, "data")
        yield Episode(number, slice(begin, begin + length), file, spans)
        begin += length


def _episode_rows(folder: Path, info: Info, uri: str) -> list[dict[str, Any]]:
    """The metadata of all episodes in the order of their files, without their statistics."""
    whole = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    whole += ["data/chunk_index", "data/file_index"]
    times: list[str] = []
    for name, feature in info.features.items():
        if feature.dtype == "video":
            whole += [f"videos/{name}/chunk_index", f"videos/{name}/file_index"]
            times += [f"videos/{name}/from_timestamp", f"videos/{name}/to_timestamp"]
    files = visible((folder / EPISODES).glob("*/*.parquet"))
    if not files:
        raise wrong(uri, f"the dataset is incomplete ({EPISODES} holds no table)")
    rows: list[dict[str, Any]] = []
    for path in files:
        file = path.relative_to(folder).as_posix()
        table = read_table(folder, file, uri, [*whole, *times])
        for name in table.column_names:
            kind, column = table.schema.field(name).type, table.column(name)
            fits = pa.types.is_integer(kind) if name in whole else pa.types.is_floating(kind)
            if not fits or column.null_count:
                raise wrong(uri, f"{file} has rows without a number in '{name}'")
        rows += table.to_pylist()
    return rows


def _span(info: Info, row: dict[str, Any], key: str, uri: str) -> Span:
    if info.video_path is None:
        raise wrong(uri, f"{INFO} has a camera '{key}' and no video_path")
    file = _place(info.video_path, uri, "video_path", row, f"videos/{key}", video_key=key)
    start, end = (float(row[f"videos/{key}/{end}_timestamp"]) for end in ("from", "to"))
    return Span(file, start, end)


def _place(pattern: str, uri: str, name: str, row: dict[str, Any], what: str, **names: str) -> str:
    """The file that a pattern of ``info.json`` names for an episode, inside the dataset."""
    try:
        file = pattern.format(
            chunk_index=row[f"{what}/chunk_index"], file_index=row[f"{what}/file_index"], **names
        )
    except (KeyError, IndexError, ValueError, AttributeError):
        raise wrong(uri, f"{INFO}: {name} is '{pattern}', no pattern of format v3.0") from None
    if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
        raise wrong(uri, f"{INFO}: {name} leads out of the dataset ({file})")
    return file
