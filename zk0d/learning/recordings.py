"""A LeRobot dataset, checked, with its numbers in memory.

Everything that can be wrong with somebody's recordings is said here in one sentence, before a
policy is loaded. Opening them reads files only: it asks no network and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from zk0d.config.cameras import CameraMap, MappedAt, camera_name
from zk0d.errors import DataError
from zk0d.learning.cameras import map_cameras
from zk0d.learning.layout import (
    ACTION,
    INFO,
    STATE,
    Episode,
    Feature,
    Info,
    Layout,
    find,
    read_layout,
    wrong,
)
from zk0d.learning.spec import LONGEST_NAME, Components, RecordingsSummary, RobotDescription
from zk0d.learning.statistics import FeatureStatistics, Statistics
from zk0d.learning.tables import read_columns
from zk0d.learning.videos import check_times, check_videos


@dataclass
class Recordings:
    """A readable dataset: numbers in memory, pictures where they are.

    Attributes
    ----------
    episodes
        The episodes that count, all at first.
    columns
        Every numeric feature, shape ``(frames, ...)``, in recording order.
    first, last
        For each frame the row of its episode's first and last frame, shape ``(frames,)``.
    cameras
        The policy's camera name for each of this dataset's video or image features.
    mapped_at
        Where their owner maps cameras.
    notices
        What their owner should know of them, a sentence each.
    """

    layout: Layout
    episodes: list[int]
    columns: dict[str, torch.Tensor]
    first: torch.Tensor
    last: torch.Tensor
    tasks: list[str]
    cameras: dict[str, str]
    mapped_at: MappedAt = MappedAt.SETTINGS
    notices: tuple[str, ...] = ()
    _summary: RecordingsSummary = field(init=False)

    def __post_init__(self) -> None:
        info = self.layout.info
        self._summary = RecordingsSummary(
            episodes=len(self.episodes),
            frames=len(self),
            fps=info.fps,
            state_width=self.columns[STATE].shape[1],
            action_width=self.columns[ACTION].shape[1],
            cameras={name: info.features[key].channels_first for key, name in self.cameras.items()},
            robot_type=info.robot_type or "unknown",
        )

    def __len__(self) -> int:
        return len(self.columns[ACTION])

    @property
    def uri(self) -> str:
        return self.layout.uri

    @property
    def camera_map(self) -> CameraMap:
        """How its cameras are mapped, for sentences that say how to map them otherwise."""
        return CameraMap(self.mapped_at, {to: camera_name(key) for key, to in self.cameras.items()})

    @property
    def summary(self) -> RecordingsSummary:
        return self._summary

    def rows(self, episode: int) -> slice:
        """The rows of one episode."""
        return self.layout.episodes[episode].rows

    def length(self, episode: int) -> int:
        """Frames of one episode."""
        rows = self.rows(episode)
        return int(rows.stop - rows.start)

    def source(self, episode: int) -> tuple[Recordings, int]:
        """The dataset that an episode lies in, and its number there."""
        return self, episode

    def key(self, camera: str) -> str:
        """The feature whose pictures the policy knows as ``camera``."""
        return next(key for key, name in self.cameras.items() if name == camera)

    def newest(self, count: int) -> list[int]:
        """The last ``count`` episodes of each dataset.

        Raises
        ------
        DataError
            If a dataset has no more than those.
        """
        if count and count >= len(self.episodes):
            raise DataError(
                f"{self.uri}: learner.holdout-episodes is {count}, but there are only"
                f" {len(self.episodes)} episodes; hold out fewer."
            )
        return self.episodes[len(self.episodes) - count :]

    def by_dataset(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """These rows (int64, shape ``(n,)``), by the address of the dataset that they are from."""
        return {self.uri: rows}

    def draws(self) -> torch.Tensor | None:
        """How often each frame is drawn against the others, float64, shape ``(frames,)``; ``None``
        if all are alike.
        """
        return None

    def statistics(
        self, usable: torch.Tensor | None = None, *, histograms: bool = False
    ) -> Statistics:
        """Statistics of state and action over the usable frames (all, if none are given)."""
        rows = slice(None) if usable is None else usable
        return Statistics(
            features={
                name: FeatureStatistics.of(self.columns[name][rows].numpy(), histogram=histograms)
                for name in (STATE, ACTION)
            }
        )

    def robot(self, statistics: Statistics | None = None) -> RobotDescription:
        """Which robot this is, by the metadata and, if they are given, by statistics of it."""
        info, given = self.layout.info, statistics.features if statistics else {}
        state, action = (
            Components.of(info.features[name].names, self.columns[name].shape[1], given.get(name))
            for name in (STATE, ACTION)
        )
        kind = info.robot_type or ""
        shown = kind if kind.isprintable() and len(kind) <= LONGEST_NAME else ""
        return RobotDescription(robot_type=shown, state=state, action=action)

    def finite_statistics(self) -> Statistics | None:
        """Statistics over the frames that hold numbers; ``None`` if none does."""
        finite = ~self.not_finite()
        return self.statistics(finite) if bool(finite.any()) else None

    def not_finite(self) -> torch.Tensor:
        """Frames whose state or action holds NaN or infinity, shape ``(frames,)``, bool."""
        finite = torch.isfinite(self.columns[STATE]).all(1)
        return ~(finite & torch.isfinite(self.columns[ACTION]).all(1))

    def place(self, row: int) -> str:
        """How a person finds a frame: its episode and its number there."""
        episode = int(self.columns["episode_index"][row])
        return f"episode {episode}, frame {int(self.columns['frame_index'][row])}"


def open_recordings(
    uri: str,
    *,
    cameras: Mapping[str, str] | None = None,
    mapped_at: MappedAt = MappedAt.SETTINGS,
) -> Recordings:
    """Open a dataset that is on this machine and check that it can be learned from.

    Parameters
    ----------
    uri
        ``local:/folder``, ``hf:user/name`` or ``user/name``.
    cameras
        This dataset's camera names mapped to the policy's; ``""`` leaves one out. A camera that is
        not named keeps its name; a depth camera or a mask is then left out.
    mapped_at
        Where a person says so.

    Raises
    ------
    DataError
        If it is no LeRobot v3.0 dataset, is empty or damaged, lacks action, state or cameras, or
        if rows and pictures do not belong together.
    UnavailableError
        If it is a dataset of the hub that was not fetched yet.
    """
    layout = read_layout(find(uri), uri)
    _check_features(layout.info.features, uri)
    mapped, notices = map_cameras(layout.info, uri, cameras or {}, mapped_at)
    numbers = read_columns(layout)
    check_times(layout, numbers["timestamp"])
    check_videos(layout, mapped)
    columns = {name: torch.from_numpy(values) for name, values in numbers.items()}
    first, last = _episode_bounds(layout.episodes)
    return Recordings(
        layout=layout,
        episodes=[episode.number for episode in layout.episodes],
        columns=columns,
        first=first,
        last=last,
        tasks=[layout.tasks[task] for task in columns["task_index"].tolist()],
        cameras=mapped,
        mapped_at=mapped_at,
        notices=(*notices, *_splits(layout.info)),
    )


def _splits(info: Info) -> Iterator[str]:
    """Whether the dataset divides its episodes, which nothing here heeds."""
    said = info.splits if isinstance(info.splits, dict) else {}
    if said and said != {"train": f"0:{info.total_episodes}"}:
        parts = ", ".join(f"{name} {part}" for name, part in said.items())[:200]
        yield (
            f"the splits in {INFO} ({parts}) are ignored: all {info.total_episodes} episodes are"
            " used."
        )


def _check_features(features: Mapping[str, Feature], uri: str) -> None:
    for needed, what in ((ACTION, "no action was recorded"), (STATE, "no state was recorded")):
        if needed not in features:
            raise wrong(uri, f"has no '{needed}' ({what})", "a policy cannot be trained on it")
        if len(features[needed].shape) != 1:
            raise wrong(uri, f"'{needed}' must be a list of numbers in every frame")


def _episode_bounds(episodes: tuple[Episode, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(episode) for episode in episodes])
    starts = torch.tensor([episode.rows.start for episode in episodes])
    return starts.repeat_interleave(lengths), (starts + lengths - 1).repeat_interleave(lengths)
