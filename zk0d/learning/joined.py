"""Several datasets as one, or a part of one: the rest of training sees a single dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from zk0d.config.datasets import DatasetSettings
from zk0d.errors import DataError
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.recordings import Recordings
from zk0d.learning.robot import differences, merge_robots, sentence
from zk0d.learning.spec import RecordingsSummary, check_alike

#: Numbers of a dataset's episodes, in the joined numbering. They stay when another dataset grows.
EPISODES_APART = 10_000_000


@dataclass(frozen=True)
class Part:
    """A dataset, and what of it counts.

    Attributes
    ----------
    episodes
        By its own numbers, in its order.
    """

    recordings: Recordings
    settings: DatasetSettings
    episodes: tuple[int, ...]

    @property
    def summary(self) -> RecordingsSummary:
        """What it looks like from outside."""
        frames = sum(map(self.recordings.length, self.episodes))
        counts = {"episodes": len(self.episodes), "frames": frames}
        return self.recordings.summary.model_copy(update=counts)


@dataclass
class JoinedRecordings(Recordings):
    """Rows of several datasets, one after the other; episodes have numbers of their own.

    Attributes
    ----------
    parts
        The datasets, in the settings' order.
    """

    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rows: dict[int, slice] = {}
        start = 0
        for number in self.episodes:
            dataset, own = self.source(number)
            self._rows[number] = slice(start, start + dataset.length(own))
            start += dataset.length(own)

    @property
    def uri(self) -> str:
        return ", ".join(part.recordings.uri for part in self.parts)

    def rows(self, episode: int) -> slice:
        return self._rows[episode]

    def source(self, episode: int) -> tuple[Recordings, int]:
        place, own = divmod(episode, EPISODES_APART)
        return self.parts[place].recordings, own

    def newest(self, count: int) -> list[int]:
        if count:
            for part in self.parts:
                if count >= len(part.episodes):
                    raise DataError(
                        f"{part.recordings.uri}: learner.holdout-episodes is {count}, but only"
                        f" {len(part.episodes)} episodes are lent; hold out fewer."
                    )
        return [
            place * EPISODES_APART + own
            for place, part in enumerate(self.parts)
            for own in part.episodes[len(part.episodes) - count :]
        ]

    def by_dataset(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        places = self.columns["episode_index"][rows] // EPISODES_APART
        found = {part.recordings.uri: rows[places == n] for n, part in enumerate(self.parts)}
        return {uri: its for uri, its in found.items() if len(its)}

    def draws(self) -> torch.Tensor | None:
        weights = torch.tensor([part.settings.weight for part in self.parts], dtype=torch.float64)
        if bool((weights == weights[0]).all()):
            return None
        return weights[self.columns["episode_index"] // EPISODES_APART]

    def place(self, row: int) -> str:
        number = int(self.columns["episode_index"][row])
        dataset, own = self.source(number)
        frame = int(self.columns["frame_index"][row])
        return f"{dataset.uri}, episode {own}, frame {frame}"


def part_of(recordings: Recordings, settings: DatasetSettings, where: str) -> Part:
    """The part of a dataset that its settings choose.

    Raises
    ------
    DataError
        If they name an episode that it does not have; ``where`` names the settings' table.
    """
    there = recordings.episodes
    if missing := sorted(set(settings.episodes) - set(there)):
        raise DataError(
            f"{where}.episodes: {settings.uri} has no episode {missing[0]} (it has {len(there)},"
            f" {there[0]} to {there[-1]}); name those that are there."
        )
    chosen = sorted(set(settings.episodes)) or there
    return Part(recordings, settings, tuple(chosen[-settings.last :]))


def join(parts: Sequence[Part]) -> Recordings:
    """All of these as one dataset; a single whole one is itself.

    Raises
    ------
    DataError
        If they do not fit each other: frame rate, widths, cameras, pictures' sizes or joints.
    """
    first = parts[0].recordings
    if len(parts) == 1 and parts[0].settings.is_plain:
        return first
    _check_together(parts)
    numbers = torch.tensor(
        [place * EPISODES_APART + own for place, part in enumerate(parts) for own in part.episodes]
    )
    lengths = torch.tensor([part.recordings.length(own) for part in parts for own in part.episodes])
    ends = lengths.cumsum(0)
    tasks = [task for part in parts for task in _tasks(part)]
    columns = _columns(parts)
    columns["episode_index"] = numbers.repeat_interleave(lengths)
    columns["index"] = torch.arange(len(tasks))
    known = {task: place for place, task in enumerate(dict.fromkeys(tasks))}
    columns["task_index"] = torch.tensor([known[task] for task in tasks])
    return JoinedRecordings(
        layout=first.layout,
        episodes=numbers.tolist(),
        columns=columns,
        first=(ends - lengths).repeat_interleave(lengths),
        last=(ends - 1).repeat_interleave(lengths),
        tasks=tasks,
        cameras=first.cameras,
        mapped_at=first.mapped_at,
        notices=tuple(
            f"{part.recordings.uri}: {notice}"
            for part in parts
            for notice in part.recordings.notices
        ),
        parts=tuple(parts),
    )


def _check_together(parts: Sequence[Part]) -> None:
    first = parts[0].recordings
    robots = [first.robot(first.finite_statistics())]
    for part in parts[1:]:
        recordings = part.recordings
        summary, like = recordings.summary, first.summary
        check_alike(summary, like, where=recordings.uri, cameras=recordings.camera_map)
        for camera, shape in like.cameras.items():
            if summary.cameras[camera] != shape:
                raise DataError(
                    f"{recordings.uri}: camera '{camera}' has pictures of {_size(summary, camera)},"
                    f" those of {first.uri} are {_size(like, camera)}; the datasets of one node"
                    " must have pictures of one size."
                )
        robot, cohort = recordings.robot(recordings.finite_statistics()), merge_robots(robots)
        for each in differences(robot, cohort, first.uri) if cohort else ():
            if each.reason:
                raise DataError(sentence(each, recordings.uri))
        robots.append(robot)


def _size(summary: RecordingsSummary, camera: str) -> str:
    _, height, width = summary.cameras[camera]
    return f"{width} x {height}"


def _columns(parts: Sequence[Part]) -> dict[str, torch.Tensor]:
    """The numbers that all of them have, in the same shape."""
    first = parts[0].recordings.columns
    shared = [
        name
        for name, values in first.items()
        if all(
            name in part.recordings.columns
            and part.recordings.columns[name].shape[1:] == values.shape[1:]
            for part in parts
        )
    ]
    assert {STATE, ACTION} <= set(shared)
    return {name: torch.cat([_chosen(part, name) for part in parts]) for name in shared}


def _chosen(part: Part, column: str) -> torch.Tensor:
    values = part.recordings.columns[column]
    return torch.cat([values[part.recordings.rows(own)] for own in part.episodes])


def _tasks(part: Part) -> list[str]:
    rows = [part.recordings.rows(own) for own in part.episodes]
    tasks = [task for each in rows for task in part.recordings.tasks[each]]
    return [part.settings.task] * len(tasks) if part.settings.task else tasks


def open_all(
    datasets: Sequence[DatasetSettings], opened: Callable[[DatasetSettings], Recordings]
) -> Recordings:
    """Open each dataset, and join what their settings choose.

    Raises
    ------
    DataError, UnavailableError
        As :func:`~zk0d.learning.recordings.open_recordings`, :func:`part_of` and :func:`join`.
    """
    parts = [part_of(opened(each), each, f"dataset.{place}") for place, each in enumerate(datasets)]
    return join(parts)
