"""``zk0bot policy tune``: a release's finish at home, on its owner's recordings; never sent.

A pull keeps the weights near the shared ones (FedProx's term, Li et al. 2020), so that what all
arms taught stays. The tuned policy has a gate of its own: it is kept only if held-out episodes do
not show it to be worse than the release.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.config.cameras import camera_feature, camera_name
from zk0d.config.names import WEIGHTS_FILE
from zk0d.config.run import run_settings
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.evaluate import losses_by_episode, stratified_rows
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.progress import Progress
from zk0d.learning.recordings import Recordings
from zk0d.learning.trained import TrainedPolicy
from zk0d.release.checkpoint import name_of, settings_of
from zk0d.release.personal import PersonalSummary, describe_personal
from zk0d.simulation.fitted import Course, fit
from zk0d.simulation.owned import OwnRecordings, check_measured, statistics_for
from zk0d.simulation.versus import Interval, Options, no_tell, paired_interval

#: Of the release's own peak rate. It has converged: the whole rate would first undo that.
RATE_SHARE = 0.25


@dataclass(frozen=True)
class TuneOptions:
    """How a release is tuned.

    Attributes
    ----------
    pull
        FedProx's mu.
    learning_rate, batch_size
        The release's run's by default, the rate at a quarter; or its family's usual ones.
    """

    steps: int
    pull: float
    measured: Options
    learning_rate: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Tuned:
    """What came of it. ``folder`` is ``None`` if nothing was kept.

    Attributes
    ----------
    change
        Of the held-out loss, tuned minus release: below zero, tuning helped.
    moved
        Norm of the weights' change, as a share of their norm.
    """

    release: str
    before: float
    after: float
    change: Interval
    episodes: int
    moved: float
    folder: Path | None
    notices: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it is not worse than the release beyond the spread."""
        return self.change.low <= 0.0

    def sentence(self) -> str:
        """What the gate says."""
        figures = (
            f"held-out loss {self.after:.4f} against {self.before:.4f} ({self.change},"
            f" {self.episodes} episodes)"
        )
        if not self.passed:
            return (
                f"The tuned policy is worse than {self.release} on your recordings: {figures}."
                " Nothing was kept; use the release, or tune with fewer steps, a lower"
                " --learning-rate or a stronger --pull."
            )
        if self.change.holds_zero:
            return (
                f"The tuned policy is neither better nor worse than {self.release} on your"
                f" recordings within the spread: {figures}."
            )
        return f"The tuned policy is better than {self.release} on your recordings: {figures}."

    def to_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        return {
            "schema_version": 1,
            "kept": str(self.folder) if self.folder else None,
            "loss_before": self.before,
            "loss_after": self.after,
            "change": {"mean": self.change.mean, "low": self.change.low, "high": self.change.high},
            "held_out_episodes": self.episodes,
            "moved": self.moved,
            "notices": list(self.notices),
        }


def tune(
    release: TrainedPolicy,
    own: OwnRecordings,
    options: TuneOptions,
    folder: Path,
    tell: Callable[[Progress], None] = no_tell,
) -> Tuned:
    """Tune the release, measure before and after, and keep the result if its gate lets it.

    Raises
    ------
    DataError
        If the recordings do not fit the release, are too few, or training ends in no numbers.
    ConfigError, UnavailableError
        If the release cannot be loaded.
    TryAgainError
        If the result cannot be written.
    """
    how = options.measured
    recordings = own.open(release)
    held = own.held_out(recordings, how.hold_out)
    statistics, _ = statistics_for(release, own, recordings)
    loaded = release.load(recordings, statistics, device=how.device, mixed_units=how.mixed_units)
    run = settings_of(release.folder) or run_settings({"policy": release.family})
    course = Course.of(
        run,
        options.steps,
        how.seed,
        peak=options.learning_rate or RATE_SHARE * run.schedule.initial_lr,
        batch_size=options.batch_size,
        pull=options.pull,
    )
    prepared = PreparedRecordings(
        recordings,
        loaded,
        own.reading.cache,
        own.reading.max_bad_frames,
        held,
        augments=course.training.image_augmentation,
        tell=tell,
    )
    numbers = recordings.columns["episode_index"]
    rows = stratified_rows(prepared.held_out, numbers, how.frames)
    check_measured(recordings, set(numbers[rows].tolist()))
    batches = prepared.batches(statistics)
    before = losses_by_episode(loaded, batches, rows, how.seed)
    shared = loaded.weights()
    fit(loaded, prepared, statistics, course, tell)
    after = losses_by_episode(loaded, batches, rows, how.seed)
    tuned = Tuned(
        release=release.title,
        before=_mean(before),
        after=_mean(after),
        change=paired_interval(list(after.values()), list(before.values())),
        episodes=len(before),
        moved=distance(loaded, shared),
        folder=None,
        notices=tuple(own.notices(held)),
    )
    if not tuned.passed:
        return tuned
    summary = PersonalSummary(
        policy=release.family,
        release=_name(release),
        release_sha256=_sha256(release.folder / WEIGHTS_FILE),
        made=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        steps=options.steps,
        pull=options.pull,
        learning_rate=course.schedule.peak,
        batch_size=course.training.batch_size,
        seed=how.seed,
        episodes=len(recordings.episodes) - len(held),
        frames=len(prepared.usable),
        held_out_episodes=tuned.episodes,
        loss_before=tuned.before,
        loss_after=tuned.after,
        change_low=tuned.change.low,
        change_high=tuned.change.high,
        moved=tuned.moved,
        versions={name: version(name) for name in ("zk0d", "lerobot", "torch")},
    )
    written = write_checkpoint(
        loaded,
        statistics,
        folder,
        lambda draft: describe_personal(draft, summary, tuned.sentence()),
        cameras=camera_names(recordings),
    )
    return replace(tuned, folder=written)


def camera_names(recordings: Recordings) -> dict[str, str]:
    """For each of the policy's cameras the name by which LeRobot's tools find the arm's own.

    If datasets call one camera differently, it keeps the policy's name.
    """
    datasets = [recordings.source(episode)[0] for episode in recordings.episodes]
    names: dict[str, set[str]] = {}
    for each in datasets:
        for key, to in each.cameras.items():
            names.setdefault(to, set()).add(camera_feature(camera_name(key)))
    return {to: own.pop() if len(own) == 1 else camera_feature(to) for to, own in names.items()}


def distance(loaded: LoadedPolicy, shared: Mapping[str, NDArray[np.float32]]) -> float:
    """How far the weights are from ``shared``, as a share of those's norm."""
    moved = size = 0.0
    for name, weights in loaded.weights().items():
        moved += float(np.square(weights - shared[name], dtype=np.float64).sum())
        size += float(np.square(shared[name], dtype=np.float64).sum())
    return float(np.sqrt(moved / size))


def _mean(by_episode: Mapping[int, float]) -> float:
    return float(np.mean(list(by_episode.values())))


def _name(release: TrainedPolicy) -> str:
    """RUN/ROUND of a run's checkpoint, the folder's name of another."""
    folder = release.folder
    return name_of(folder) if folder.name.startswith("checkpoint_round_") else folder.name


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
