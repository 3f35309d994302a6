"""The contributors' recordings: datasets, or one dataset's episodes, split."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from zk0d.config.cameras import MappedAt
from zk0d.config.machine import EvaluationDataset
from zk0d.config.names import ALIAS_PATTERN
from zk0d.learning.cameras import share_out
from zk0d.learning.layout import STATE
from zk0d.learning.partition import Scheme, held_out_count, partition
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.robot import check_robot, merge_robots
from zk0d.learning.spec import RobotDescription
from zk0d.simulation.plan import VirtualNode
from zk0d.simulators.calibration import Calibration, calibrations
from zk0d.simulators.task import TaskName
from zk0d.simulators.tasks import TASKS, recorded_task

HELD_OUT_SEED = 500_000  #: far from the training episodes' seeds
SEEDS_PER_DATASET = 1_000_000
NO_CAMERAS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Source:
    """The contributors, and what the coordinator evaluates on; no episode is in both."""

    nodes: list[VirtualNode]
    evaluation: list[EvaluationDataset]
    notes: list[str] = field(default_factory=list)  #: what a reader should know of it


def nodes_of(uris: list[str]) -> list[VirtualNode]:
    """A contributor for each dataset."""
    names = _names(uris)
    return [VirtualNode(name=name, dataset_uri=uri) for name, uri in zip(names, uris, strict=True)]


def of_nodes(
    nodes: list[VirtualNode],
    hold_out: float,
    *,
    cameras: Mapping[str, str] = NO_CAMERAS,
    mixed_units: bool = False,
) -> Source:
    """Hold out the last part of what each contributor has; their robots must be one.

    ``cameras`` are mapped wherever a dataset has them, unless a node's own say otherwise.

    Raises
    ------
    DataError, UnavailableError
        If a dataset cannot be opened, is too small to hold something out, or is another robot's.
    """
    shares = share_out(cameras, [node.dataset_uri for node in nodes])
    nodes = [
        node.model_copy(update={"cameras": share | node.cameras})
        for node, share in zip(nodes, shares, strict=True)
    ]
    kept, evaluation, notes = [], [], []
    robots: list[RobotDescription] = []
    for node in nodes:
        recordings = open_at_command(node.dataset_uri, node.cameras)
        notes += [f"{node.name}: {notice}" for notice in recordings.notices]
        notes += join_robots(robots, recordings, node.name, mixed_units=mixed_units)
        trained, held = _hold_out(recordings, node.episodes or recordings.episodes, hold_out)
        kept.append(node.model_copy(update={"episodes": trained}))
        evaluation.append(_evaluation(node.name, recordings, held, node.cameras))
    return Source(kept, evaluation, notes)


def open_at_command(uri: str, cameras: Mapping[str, str]) -> Recordings:
    """Recordings that a command names, whose cameras ``--camera`` maps."""
    return open_recordings(uri, cameras=cameras, mapped_at=MappedAt.COMMAND)


def join_robots(
    robots: list[RobotDescription], recordings: Recordings, name: str, *, mixed_units: bool
) -> list[str]:
    """Add the recordings' robot to those before, or refuse it; what is unknown of it."""
    robot = recordings.robot(recordings.finite_statistics())
    notes = check_robot(
        robot,
        merge_robots(robots),
        where=f"{name} ({recordings.uri})",
        whose="the recordings before it",
        mixed_units=mixed_units,
    )
    robots.append(robot)
    return notes


def of_episodes(
    uri: str,
    count: int,
    scheme: Scheme,
    hold_out: float,
    *,
    seed: int = 0,
    alpha: float = 0.5,
    cameras: Mapping[str, str] = NO_CAMERAS,
) -> Source:
    """One dataset, its episodes split among ``count`` contributors.

    The held-out episodes are spread evenly over the dataset and belong to nobody.
    """
    (mapped,) = share_out(cameras, [uri])
    recordings = open_at_command(uri, mapped)
    trained, held = _spread_out(recordings, hold_out)
    shares = partition(_only(recordings, trained), scheme, count, seed=seed, alpha=alpha)
    nodes = [
        VirtualNode(name=name, dataset_uri=uri, episodes=share, cameras=mapped)
        for name, share in zip(numbered(count), shares, strict=True)
    ]
    evaluation = [_evaluation("held-out", recordings, held, mapped)]
    return Source(nodes, evaluation, list(recordings.notices))


def of_soreach(
    folder: Path,
    count: int,
    scheme: Scheme,
    demonstrations: int,
    held_out: int,
    *,
    seed: int = 0,
    alpha: float = 0.5,
    make: Callable[..., Future[Any]],
) -> Source:
    """SoReach recordings of the whole table, made here, split among ``count`` contributors.

    Parameters
    ----------
    demonstrations, held_out
        Episodes in all.
    make
        Starts :func:`zk0d.demo.recordings.make_recordings` in a worker.
    """
    from zk0d.demo.recordings import make_recordings
    from zk0d.simulators.task import Sector

    training, evaluation = folder / "recordings" / "all", folder / "recordings" / "held-out"
    first = seed * SEEDS_PER_DATASET
    waits = [
        make(make_recordings, path, Sector(), episodes, number)
        for path, episodes, number in (
            (training, demonstrations, first),
            (evaluation, held_out, first + HELD_OUT_SEED),
        )
        if not path.exists()
    ]
    for wait in waits:
        wait.result()
    recordings = open_recordings(f"local:{training}")
    shares = partition(recordings, scheme, count, seed=seed, alpha=alpha)
    nodes = [
        VirtualNode(name=name, dataset_uri=f"local:{training}", episodes=share)
        for name, share in zip(numbered(count), shares, strict=True)
    ]
    held = open_recordings(f"local:{evaluation}")
    return Source(nodes, [_evaluation("held-out", held, [], {})])


def of_calibrations(
    folder: Path,
    count: int,
    deviations: float,
    demonstrations: int,
    held_out: int,
    *,
    seed: int = 0,
    make: Callable[..., Future[Any]],
) -> Source:
    """SoReach recordings by ``count`` arms, each of the whole table and in its own calibration.

    Each has a held-out set, of its own name, which the other arms' numbers do not fit.

    Parameters
    ----------
    deviations
        How far joints read from the standard, in standard deviations of each joint; 0: they do not.
    demonstrations, held_out
        Episodes in all, and of each held-out set.
    """
    from zk0d.demo.recordings import make_recordings
    from zk0d.simulators.task import Sector

    names = numbered(count)
    first = seed * SEEDS_PER_DATASET
    offsets: list[Calibration] = [()] * count
    if deviations:
        offsets = calibrations(TASKS["soreach"], count, deviations, first)
    wanted: dict[Path, tuple[int, int, Calibration]] = {}
    for index, (name, calibration) in enumerate(zip(names, offsets, strict=True)):
        home, start = folder / "recordings" / name, first + index * HELD_OUT_SEED // count
        held = home.with_name(f"{name}-held-out")
        wanted[home] = (demonstrations // count, start, calibration)
        wanted[held] = (held_out, first + HELD_OUT_SEED, calibration)
    waits = [
        make(make_recordings, path, Sector(), episodes, number, calibration=calibration)
        for path, (episodes, number, calibration) in wanted.items()
        if not path.exists()
    ]
    for wait in waits:
        wait.result()
    nodes, evaluation = [], []
    for name, calibration in zip(names, offsets, strict=True):
        home = folder / "recordings" / name
        nodes.append(VirtualNode(name=name, dataset_uri=f"local:{home}"))
        settings = _evaluation(name, open_recordings(f"local:{home}-held-out"), [], {})
        evaluation.append(settings.model_copy(update={"calibration": calibration}))
    return Source(nodes, evaluation)


def numbered(count: int) -> list[str]:
    """Contributors' names whose order as texts is their order."""
    width = len(str(count - 1))
    return [f"contributor-{number:0{width}d}" for number in range(count)]


def _names(uris: list[str]) -> list[str]:
    """A name for each dataset: its own, as far as a contributor may be called so."""
    names: list[str] = []
    for uri in uris:
        plain = re.sub(r"[^a-z0-9-]+", "-", uri.rstrip("/").rsplit("/", 1)[-1].lower()).strip("-")
        name = plain[:28] if ALIAS_PATTERN.fullmatch(plain[:28]) else "contributor"
        again = sum(other == name or other.startswith(f"{name}-x") for other in names)
        names.append(f"{name}-x{again + 1}" if again else name)
    return names


def _hold_out(
    recordings: Recordings, episodes: list[int], share: float
) -> tuple[list[int], list[int]]:
    """Split a contributor's episodes into those it trains on and the last ones."""
    count = held_out_count(recordings.uri, len(episodes), share)
    ordered = sorted(episodes)
    return ordered[:-count], ordered[-count:]


def _spread_out(recordings: Recordings, share: float) -> tuple[list[int], list[int]]:
    """The same with the held-out episodes spread over the dataset."""
    episodes = recordings.episodes
    count = held_out_count(recordings.uri, len(episodes), share)
    held = {episodes[int((place + 0.5) * len(episodes) / count)] for place in range(count)}
    return [episode for episode in episodes if episode not in held], sorted(held)


def _only(recordings: Recordings, episodes: list[int]) -> Recordings:
    """A view for dealing out: the same recordings, these episodes."""
    view = copy.copy(recordings)
    view.episodes = episodes
    return view


def _evaluation(
    name: str, recordings: Recordings, episodes: list[int], cameras: dict[str, str]
) -> EvaluationDataset:
    return EvaluationDataset(
        name=name,
        dataset_uri=recordings.uri,
        episodes=episodes,
        cameras=cameras,
        simulator=simulator_of(recordings),
    )


def simulator_of(recordings: Recordings) -> TaskName | Literal[""]:
    """In which simulator a policy of these recordings can be driven; empty if in none."""
    task = recorded_task(recordings.layout.info.features[STATE].names)
    return task.name if task else ""
