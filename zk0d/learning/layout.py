"""What the metadata of a LeRobot v3.0 dataset says, read, never written, and held together.

LeRobot's own classes ask the hub for whatever a folder lacks, write the answer into that folder,
and keep a copy of every table in a cache. Nothing here does: files are read with pyarrow, and a
dataset is refused if its parts need not belong together. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import (
    BaseModel,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
)

from zk0d.config.names import DATASET_FILE, DatasetUri
from zk0d.errors import DataError, UnavailableError

STATE = "observation.state"
ACTION = "action"
FORMAT = "v3."
#: Formats that ``zk0bot data convert`` copies into v3.0.
FORMER = ("v2.0", "v2.1")
INFO = DATASET_FILE
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes"
#: Where v3.0 has its files, whatever other pattern ``info.json`` names.
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
#: Columns that LeRobot adds to every dataset.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
#: How a file begins that stands for one which Git LFS did not fetch.
POINTER = b"version https://git-lfs.github.com/spec/"
_CHANNELS = (1, 3, 4)
RESTORE = "restore it or record it again"
LEAVE_OUT = "leave the episode out (lerobot-edit-dataset deletes it) or record it again"


class Feature(BaseModel):
    """A feature as ``info.json`` describes it."""

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()  #: of the components, or of a picture's axes
    info: dict[str, Any] | None = None
    video_info: dict[str, Any] | None = None
    _parts: tuple[str, ...] = PrivateAttr(())

    @field_validator("names", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        """LeRobot's versions wrote lists, also in lists and dicts, a dict of places, or null."""
        return list(_flattened(value))

    @classmethod
    def joined(cls, parts: Mapping[str, Feature], names: Iterable[str]) -> Feature:
        """One feature of those that were recorded apart or under another name."""
        made = cls(dtype="float32", shape=(sum(part.shape[0] for part in parts.values()),))
        made.names, made._parts = tuple(names), tuple(parts)
        return made

    @property
    def parts(self) -> tuple[str, ...]:
        """The columns that this is made of; none if it is a column itself."""
        return self._parts

    @property
    def is_picture(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def is_number(self) -> bool:
        """Whether it is one real number a frame."""
        return self.dtype.startswith("float") and self.shape == (1,)

    @property
    def is_depth(self) -> bool:
        told = {**(self.video_info or {}), **(self.info or {})}
        return bool(told.get("is_depth_map") or told.get("video.is_depth_map"))

    @property
    def channels_first(self) -> tuple[int, int, int]:
        """A picture's channels, height and width; a camera of grey gives three equal channels."""
        first, second, third = self.shape
        ahead = first in _CHANNELS and third not in _CHANNELS
        channels, height, width = (first, second, third) if ahead else (third, first, second)
        return channels if self.is_depth else 3, height, width


class Info(BaseModel):
    """``meta/info.json``, as far as it is read."""

    codebase_version: str
    fps: PositiveFloat
    total_episodes: int
    total_frames: int
    features: dict[str, Feature]
    robot_type: str | None = None
    data_path: str = DATA_PATH
    video_path: str | None = VIDEO_PATH
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
    tasks: tuple[str, ...] = ()  #: its instructions, where they are named

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
        If there is no such folder, or this process may not look into it.
    UnavailableError
        If it is a dataset of the hub that was not fetched yet.
    """
    address = DatasetUri.parse(uri)
    if not address.fetched:
        if not is_there(address.folder, uri, Path.is_dir):
            raise wrong(uri, f"there is no folder {address.folder}", "give a dataset's folder")
        return address.folder
    fetched = datasets_folder() / address.location
    if is_there(fetched / INFO, uri):
        return fetched
    # LeRobot's own downloads are snapshots, one for each commit, with the commits of its tags.
    cached = datasets_folder() / f"hub/datasets--{address.location.replace('/', '--')}"
    tags = (tag for tag in listed(cached / "refs", uri) if tag.match("v3.*"))
    for tag in sorted(tags, reverse=True):
        try:
            snapshot = cached / "snapshots" / tag.read_text(encoding="utf-8").strip()
        except PermissionError:
            raise forbidden(tag, uri) from None
        if is_there(snapshot / INFO, uri):
            return snapshot
    raise UnavailableError(
        f"{uri}: is not on this machine; zk0bot data fetch {address.location} gets it (for a"
        " service: systemctl start zk0d-fetch).",
        reason="not_fetched",
    )


def read_info(folder: Path, uri: str, formats: tuple[str, ...] = (FORMAT,)) -> Info:
    """What a dataset says it is.

    Raises
    ------
    DataError
        If it is not a LeRobot dataset of these ``formats``, is forbidden, or holds nothing.
    """
    path = folder / INFO
    if not is_there(path, uri):
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
        raise unreadable(folder, INFO, error, uri) from None
    if version in FORMER and version not in formats:
        raise wrong(
            uri,
            f"is of LeRobot's format {version}, this needs v3.0",
            f"make a converted copy: zk0bot data convert {folder}",
        )
    if not version.startswith(formats):
        raise wrong(
            uri,
            f"{INFO} names the format {version}",
            f"v3.0 is read and {' and '.join(FORMER)} are converted, so convert an older one with"
            " the LeRobot that wrote it, or correct 'codebase_version'",
        )
    try:
        info = Info.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        dotted = ".".join(map(str, first["loc"]))
        raise wrong(uri, f"{path} cannot be read ('{dotted}': {first['msg']})") from None
    info.features |= _joined(info.features)
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
        If a file is missing, forbidden or damaged, or two of them disagree.
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


def metadata_hash(uri: str) -> str:
    """SHA-256 over a dataset's metadata: another one once an episode came, went or was edited.

    Raises
    ------
    DataError
        If it is not there, or a file cannot be read.
    UnavailableError
        If it is a dataset of the hub that was not fetched yet.
    """
    folder, whole = find(uri), hashlib.sha256()
    try:
        for path in visible((folder / INFO).parent.rglob("*")):
            if path.is_file():
                whole.update(f"{path.relative_to(folder).as_posix()}\n".encode())
                whole.update(hashlib.sha256(path.read_bytes()).digest())
    except PermissionError as error:
        raise forbidden(Path(error.filename), uri) from None
    except OSError as error:
        raise wrong(uri, f"its metadata cannot be read ({error})") from None
    return whole.hexdigest()


def is_there(path: Path, uri: str, is_kind: Callable[[Path], bool] = Path.is_file) -> bool:
    """Whether a dataset has this file, or what else ``is_kind`` asks for.

    Raises
    ------
    DataError
        If this process may not look into the folder.
    """
    try:
        return is_kind(path)
    except PermissionError:
        raise forbidden(path, uri) from None


def listed(folder: Path, uri: str) -> list[Path]:
    """What a dataset's folder holds; nothing if there is no such folder.

    ``Path.glob`` passes over folders that it may not read.

    Raises
    ------
    DataError
        If this process may not read it.
    """
    try:
        return list(folder.iterdir())
    except PermissionError:
        raise forbidden(folder, uri) from None
    except (FileNotFoundError, NotADirectoryError):
        return []


def visible(paths: Iterator[Path]) -> list[Path]:
    """Sorted, as LeRobot reads them, without what macOS leaves beside each file (``._name``)."""
    return sorted(path for path in paths if not path.name.startswith("."))


def read_table(
    folder: Path, file: str, uri: str, needed: Iterable[str] = (), wanted: Iterable[str] = ()
) -> pa.Table:
    """A parquet file: the columns that are ``needed``, and those of ``wanted`` that it has.

    Raises
    ------
    DataError
        If it is missing, forbidden or damaged, or lacks what is needed.
    """
    path = folder / file
    if not is_there(path, uri):
        raise wrong(uri, f"the dataset is incomplete ({file} is missing)")
    try:
        table = pq.ParquetFile(path)
        there = table.schema_arrow.names
        for name in needed:
            if name not in there:
                raise wrong(uri, f"{file} has no column '{name}'")
        asked = dict.fromkeys([*needed, *wanted])
        return table.read(columns=[name for name in asked if name in there] or None)
    except PermissionError:
        raise forbidden(path, uri) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(folder, file, error, uri) from None


def unreadable(folder: Path, file: str, error: BaseException, uri: str) -> DataError:
    """The refusal of a dataset with a file that is damaged, or stands for one that is not here."""
    if not _is_pointer(folder / file):
        return wrong(uri, f"{file} is damaged ({first_line(error)})")
    parts = (path for part in ("meta", "data", "videos") for path in (folder / part).rglob("*"))
    return wrong(
        uri,
        f"{sum(map(_is_pointer, parts))} of its files, {file} among them, are Git LFS pointers",
        f"run git lfs pull in {folder}",
    )


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False


def forbidden(path: Path, uri: str) -> DataError:
    """The refusal of a dataset with a file or folder that this process may not read."""
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


def _flattened(names: Any) -> Iterator[str]:
    if isinstance(names, dict):
        nested = any(isinstance(value, dict | list) for value in names.values())
        names = list(names.values() if nested else names)
    if isinstance(names, list):
        for each in names:
            yield from _flattened(each)
    elif names is not None:
        yield str(names)


def _joined(features: Mapping[str, Feature]) -> dict[str, Feature]:
    """State and action of recordings that name them otherwise.

    ``action.JOINT`` and ``observation.JOINT`` (or ``observation.state.JOINT``), each one number,
    become ``action`` and ``observation.state`` in the order of ``info.json``'s actions. openpi
    calls the two ``actions`` and ``state``.
    """
    made = {}
    for name, other in ((ACTION, "actions"), (STATE, "state")):
        if name not in features and other in features and len(features[other].shape) == 1:
            made[name] = Feature.joined({other: features[other]}, features[other].names)
    if made or ACTION in features or STATE in features:
        return made
    joints = {}
    for name, feature in features.items():
        joint = name.removeprefix(f"{ACTION}.")
        states = [f"{STATE}.{joint}", f"observation.{joint}"]
        state = next((other for other in states if other in features), None)
        if joint != name and state and feature.is_number and features[state].is_number:
            joints[joint] = {ACTION: name, STATE: state}
    if not joints:
        return {}
    return {
        name: Feature.joined({each[name]: features[each[name]] for each in joints.values()}, joints)
        for name in (ACTION, STATE)
    }


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
        spans = {key: _span(folder, info, row, key, uri) for key in videos}
        file = _place(folder, info, "data_path", row, "data", uri)
        tasks = tuple(map(str, row.get("tasks") or ()))
        yield Episode(number, slice(begin, begin + length), file, spans, tasks)
        begin += length


def _episode_rows(folder: Path, info: Info, uri: str) -> list[dict[str, Any]]:
    """The metadata of all episodes in the order of their files, without their statistics."""
    needed = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
    whole = [*needed, "data/chunk_index", "data/file_index"]
    times: list[str] = []
    for name, feature in info.features.items():
        if feature.dtype == "video":
            whole += [f"videos/{name}/chunk_index", f"videos/{name}/file_index"]
            times += [f"videos/{name}/from_timestamp", f"videos/{name}/to_timestamp"]
    chunks = listed(folder / EPISODES, uri)
    tables = (path for chunk in chunks for path in listed(chunk, uri) if path.match("*.parquet"))
    files = visible(tables)
    if not files:
        raise wrong(uri, f"the dataset is incomplete ({EPISODES} holds no table)")
    rows: list[dict[str, Any]] = []
    for path in files:
        file = path.relative_to(folder).as_posix()
        table = read_table(folder, file, uri, needed, [*whole, *times, "tasks"])
        for name in {*table.column_names} - {"tasks"}:
            kind, column = table.schema.field(name).type, table.column(name)
            fits = pa.types.is_integer(kind) if name in whole else pa.types.is_floating(kind)
            if not fits or column.null_count:
                raise wrong(uri, f"{file} has rows without a number in '{name}'")
        rows += table.to_pylist()
    return rows


def _span(folder: Path, info: Info, row: dict[str, Any], key: str, uri: str) -> Span:
    """An episode's part of a video; without times in the metadata it is the whole of one."""
    if info.video_path is None:
        raise wrong(uri, f"{INFO} has a camera '{key}' and no video_path")
    file = _place(folder, info, "video_path", row, f"videos/{key}", uri, video_key=key)
    start = row.get(f"videos/{key}/from_timestamp", 0.0)
    end = row.get(f"videos/{key}/to_timestamp", row["length"] / info.fps)
    return Span(file, float(start), float(end))


def _place(
    folder: Path, info: Info, name: str, row: dict[str, Any], what: str, uri: str, **names: str
) -> str:
    """An episode's file by ``data_path`` or ``video_path``."""
    patterns = {
        "data_path": (info.data_path, DATA_PATH),
        "video_path": (info.video_path or VIDEO_PATH, VIDEO_PATH),
    }
    numbers = {
        number: row[f"{what}/{number}"]
        for number in ("chunk_index", "file_index")
        if f"{what}/{number}" in row
    }
    number = row["episode_index"]
    numbers |= {"episode_index": number, "episode_chunk": number // info.chunks_size, **names}
    return locate(folder, f"{INFO}: {name}", patterns[name], numbers, uri)


def locate(
    folder: Path, where: str, patterns: Iterable[str], numbers: Mapping[str, Any], uri: str
) -> str:
    """A file of a dataset: the first that a pattern names and that is there, or else the first.

    Raises
    ------
    DataError
        If none is a pattern for these ``numbers``, or one leads out of the dataset or into a folder
        that this process may not read.
    """
    named: list[str] = []
    for pattern in patterns:
        try:
            file = pattern.format(**numbers)
        except KeyError:
            continue  # the other may do
        except (IndexError, ValueError, AttributeError):
            raise wrong(uri, f"{where} is '{pattern}', which is not a pattern") from None
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise wrong(uri, f"{where} leads out of the dataset ({file})")
        named.append(file)
    if not named:
        given = next(iter(patterns))
        raise wrong(uri, f"{where} is '{given}', and the episodes have no such numbers")
    return next((file for file in named if is_there(folder / file, uri)), named[0])
