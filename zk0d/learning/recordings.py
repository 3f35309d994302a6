"""A LeRobot dataset, checked, with its numbers in memory.

Everything that can be wrong with somebody's recordings is said here in one sentence, before a
policy is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.utils.constants import HF_LEROBOT_HOME

from zk0d.config.names import DatasetUri
from zk0d.errors import DataError, UnavailableError
from zk0d.learning.spec import MAX_STATE_WIDTH, RecordingsSummary
from zk0d.learning.statistics import FeatureStatistics, Statistics

STATE = "observation.state"
ACTION = "action"
IMAGES = "observation.images."
#: Columns that LeRobot adds to every dataset.
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass
class Recordings:
    """A readable dataset: numbers in memory, videos where they are.

    Attributes
    ----------
    columns
        Every numeric feature, shape ``(frames, ...)``, in recording order.
    first, last
        For each frame the row of its episode's first and last frame, shape ``(frames,)``.
    cameras
        The policy's camera name for each of this dataset's video or image features.
    """

    uri: str
    metadata: LeRobotDatasetMetadata
    dataset: LeRobotDataset
    episodes: list[int]
    columns: dict[str, torch.Tensor]
    first: torch.Tensor
    last: torch.Tensor
    tasks: list[str]
    cameras: dict[str, str]
    _summary: RecordingsSummary = field(init=False)

    def __post_init__(self) -> None:
        features = self.metadata.features
        self._summary = RecordingsSummary(
            episodes=len(self.episodes),
            frames=len(self),
            fps=int(self.metadata.fps),
            state_width=self.columns[STATE].shape[1],
            action_width=self.columns[ACTION].shape[1],
            cameras={name: _channels_first(features[key]) for key, name in self.cameras.items()},
            robot_type=self.metadata.robot_type or "unknown",
        )

    def __len__(self) -> int:
        return len(self.columns[ACTION])

    @property
    def summary(self) -> RecordingsSummary:
        return self._summary

    def rows(self, episode: int) -> slice:
        """The rows of one episode."""
        at = torch.nonzero(self.columns["episode_index"] == episode).flatten()
        return slice(int(at[0]), int(at[-1]) + 1)

    def statistics(self, usable: torch.Tensor | None = None) -> Statistics:
        """Statistics of state and action over the usable frames (all, if none are given)."""
        rows = slice(None) if usable is None else usable
        return Statistics(
            features={
                name: FeatureStatistics.of(self.columns[name][rows].numpy())
                for name in (STATE, ACTION)
            }
        )

    def not_finite(self) -> torch.Tensor:
        """Frames whose state or action holds NaN or infinity, shape ``(frames,)``, bool."""
        finite = torch.isfinite(self.columns[STATE]).all(1)
        return ~(finite & torch.isfinite(self.columns[ACTION]).all(1))

    def place(self, row: int) -> str:
        """How a person finds a frame: its episode and its number there."""
        episode = int(self.columns["episode_index"][row])
        return f"episode {episode}, frame {int(self.columns['frame_index'][row])}"


def open_recordings(
    uri: str, *, cameras: Mapping[str, str] | None = None, max_episodes: int = 0
) -> Recordings:
    """Open a dataset and check that it can be learned from.

    Parameters
    ----------
    uri
        ``local:/folder``, ``hf:user/name`` or ``user/name``.
    cameras
        This dataset's camera names mapped to the policy's; ``""`` leaves one out. A camera that is
        not named keeps its name.
    max_episodes
        Read only the first so many episodes; 0 reads all.

    Raises
    ------
    DataError
        If it is no LeRobot v3.0 dataset, is empty, or lacks action, state or cameras.
    UnavailableError
        If it is not on this machine and the hub cannot be reached.
    """
    address = _as_fetched(DatasetUri.parse(uri))
    if address.scheme == "local":
        _check_folder(address.folder, uri)
    metadata = _fetched(address, uri, LeRobotDatasetMetadata)
    _check_features(metadata.features, uri)
    mapped = _map_cameras(metadata, dict(cameras or {}), uri)
    if address.scheme == "local":
        _check_files(metadata, uri)
    # torchcodec needs a system FFmpeg; PyAV brings its own and gives the same pixels.
    dataset = _fetched(
        address,
        uri,
        LeRobotDataset,
        episodes=list(range(min(max_episodes, metadata.total_episodes))) if max_episodes else None,
        video_backend="pyav",
        return_uint8=True,
    )
    columns = _numeric_columns(dataset)
    first, last = _episode_bounds(columns["episode_index"])
    names = metadata.tasks.index if metadata.tasks is not None else []
    if int(columns["task_index"].max()) >= len(names):
        raise DataError(
            f"{uri}: a frame names task {int(columns['task_index'].max())}, meta/tasks.parquet has"
            f" {len(names)}; restore it or record it again."
        )
    return Recordings(
        uri=uri,
        metadata=metadata,
        dataset=dataset,
        episodes=sorted(set(columns["episode_index"].tolist())),
        columns=columns,
        first=first,
        last=last,
        tasks=[str(names[int(task)]) for task in columns["task_index"]],
        cameras=mapped,
    )


def _as_fetched(address: DatasetUri) -> DatasetUri:
    """A dataset of the hub that ``zk0d fetch`` put on this machine is a folder like any other."""
    folder = HF_LEROBOT_HOME / address.location
    if address.scheme == "hf" and (folder / "meta" / "info.json").is_file():
        return DatasetUri("local", str(folder))
    return address


def _check_features(features: dict[str, dict[str, Any]], uri: str) -> None:
    for needed, what in ((ACTION, "no action was recorded"), (STATE, "no state was recorded")):
        if needed not in features:
            raise DataError(f"{uri}: has no '{needed}' ({what}); a policy cannot be trained on it.")
        if len(features[needed]["shape"]) != 1:
            raise DataError(f"{uri}: '{needed}' must be a list of numbers in every frame.")
        if features[needed]["shape"][0] > MAX_STATE_WIDTH:
            raise DataError(
                f"{uri}: '{needed}' has {features[needed]['shape'][0]} values per frame, a policy"
                f" takes at most {MAX_STATE_WIDTH}."
            )


def _check_folder(folder: Path, uri: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{uri}: there is no folder {folder}; give the folder of a dataset.")
    info = folder / "meta" / "info.json"
    if not info.is_file():
        raise DataError(
            f"{uri}: {folder} is no LeRobot dataset (meta/info.json is missing); give the folder"
            " that holds meta, data and videos."
        )
    try:
        facts = json.loads(info.read_text(encoding="utf-8"))
        version, episodes = str(facts["codebase_version"]), int(facts["total_episodes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{uri}: {info} cannot be read ({error!r}); restore it.") from None
    if not version.startswith("v3."):
        raise DataError(
            f"{uri}: is of LeRobot's format {version}, this needs v3.0; make a converted copy:"
            f" zk0bot data convert {folder}"
        )
    if episodes < 1:
        raise DataError(f"{uri}: holds no episodes; record some first.")
    for name in ("meta/tasks.parquet", "meta/episodes", "meta/stats.json"):
        _check_there(folder, name, uri)


def _check_files(metadata: LeRobotDatasetMetadata, uri: str) -> None:
    """LeRobot would ask the hub for a missing file, and so tell it a private folder's name."""
    for episode in range(metadata.total_episodes):
        _check_there(metadata.root, str(metadata.get_data_file_path(episode)), uri)
        for key in metadata.video_keys:
            _check_there(metadata.root, str(metadata.get_video_file_path(episode, key)), uri)


def _check_there(folder: Path, name: str, uri: str) -> None:
    if not (folder / name).exists():
        raise DataError(
            f"{uri}: the dataset is incomplete ({name} is missing); restore it or record it again."
        )


def _fetched(address: DatasetUri, uri: str, what: type[Any], **how: Any) -> Any:
    """LeRobot's metadata or dataset at ``address``, from this machine or the hub."""
    local = address.scheme == "local"
    name = f"local/{address.folder.name or 'dataset'}" if local else address.location
    try:
        return what(name, root=address.folder if local else None, **how)
    except Exception as error:  # lerobot and the hub raise many kinds; all mean the same here
        first = str(error).splitlines()[0] if str(error) else ""
        reason = f"{type(error).__name__}: {first}"
        if local:
            raise DataError(
                f"{uri}: the dataset is incomplete or damaged ({reason}); restore it or record it"
                " again."
            ) from error
        raise UnavailableError(
            f"{uri}: is not on this machine and could not be fetched from the hub ({reason});"
            " zk0d fetch gets it (systemctl start zk0d-fetch).",
            reason="hub_unreachable",
        ) from error


def _map_cameras(
    metadata: LeRobotDatasetMetadata, mapping: dict[str, str], uri: str
) -> dict[str, str]:
    keys = {key.removeprefix(IMAGES): key for key in metadata.camera_keys}
    unknown = sorted(set(mapping) - set(keys))
    if unknown:
        raise DataError(
            f"{uri}: [cameras] names '{unknown[0]}', the recordings have"
            f" {', '.join(sorted(keys)) or 'no camera'}."
        )
    mapped = {key: mapping.get(short, short) for short, key in keys.items()}
    mapped = {key: name for key, name in mapped.items() if name}
    if not mapped:
        raise DataError(f"{uri}: has no camera that is used; a policy needs at least one.")
    if len(set(mapped.values())) != len(mapped):
        raise DataError(f"{uri}: [cameras] maps two cameras to one name.")
    depth = [key for key in mapped if key in metadata.depth_keys]
    if depth:
        raise DataError(
            f"{uri}: '{depth[0].removeprefix(IMAGES)}' is a depth camera, which no policy here"
            ' takes; map it to "" under [cameras].'
        )
    return mapped


def _numeric_columns(dataset: LeRobotDataset) -> dict[str, torch.Tensor]:
    table = dataset.hf_dataset.with_format("numpy").data
    columns: dict[str, torch.Tensor] = {}
    for name, feature in dataset.meta.features.items():
        if name in dataset.meta.camera_keys or feature["dtype"] in ("string", "language"):
            continue
        column = table.column(name)
        if name in BOOKKEEPING:
            columns[name] = torch.from_numpy(column.to_numpy().copy())
        else:
            values = np.array(column.to_pylist(), dtype=np.float32)
            columns[name] = torch.from_numpy(values.reshape(len(values), *feature["shape"]))
    return columns


def _episode_bounds(episode: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    _, inverse, counts = torch.unique_consecutive(episode, return_inverse=True, return_counts=True)
    ends = torch.cumsum(counts, 0)
    return (ends - counts)[inverse], (ends - 1)[inverse]


def _channels_first(feature: dict[str, Any]) -> tuple[int, int, int]:
    shape = tuple(int(n) for n in feature["shape"])
    names = feature.get("names") or []
    if names and names[0] in ("channel", "channels"):
        return shape  # type: ignore[return-value]
    height, width, channels = shape
    return (channels, height, width)
