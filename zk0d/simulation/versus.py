"""``zk0bot policy compare``: which of two trained policies is better for an owner's recordings.

Both are measured on the same held-out frames with the same seeds, noise and times, and compared
episode by episode: frames of one episode are alike, so an episode is what counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from zk0d.config.cameras import camera_name
from zk0d.learner.evaluator import ROLLOUT_SEED
from zk0d.learning.evaluate import (
    Rollouts,
    action_errors,
    losses_by_episode,
    roll_out,
    stratified_rows,
)
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import release_gpu_memory
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.progress import Progress
from zk0d.learning.recordings import Recordings
from zk0d.learning.statistics import Statistics
from zk0d.learning.trained import TrainedPolicy
from zk0d.simulation.arms import Difference, difference
from zk0d.simulation.owned import OwnRecordings, check_measured, statistics_for
from zk0d.simulation.sources import simulator_of
from zk0d.simulators.task import Sector
from zk0d.simulators.tasks import TASKS

#: Of an interval.
CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Interval:
    """A mean of paired differences, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether the difference is within the spread."""
        return self.low <= 0.0 <= self.high

    def __str__(self) -> str:
        return f"95 % interval {self.low:+.4f} to {self.high:+.4f}"


def paired_interval(first: Sequence[float], second: Sequence[float]) -> Interval:
    """``first`` minus ``second``, paired: a bootstrap over the pairs, with a fixed seed.

    Of few pairs a bootstrap's interval is too narrow, because resamples repeat what there is. So
    its confidence is raised until a normal interval of as many values would be as wide as
    Student's t (Hesterberg 2015, "What Teachers Should Know about the Bootstrap").
    """
    from scipy.stats import bootstrap, norm, t

    pairs = np.array(first) - np.array(second)
    count, mean = len(pairs), float(pairs.mean())
    if np.ptp(pairs) == 0.0:
        return Interval(mean, mean, mean)
    wide = (count / (count - 1)) ** 0.5 * t.ppf(0.5 + CONFIDENCE / 2, count - 1)
    found = bootstrap(
        (pairs,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=float(1.0 - 2.0 * norm.sf(wide)),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


@dataclass(frozen=True)
class Options:
    """How policies are measured.

    Attributes
    ----------
    hold_out
        Share of each dataset's episodes; ``None`` is as many as the node holds out, or a tenth.
    frames
        Of the held-out episodes; 0 is all.
    rollouts
        Closed-loop episodes, where there is a simulator.
    """

    hold_out: float | None = None
    frames: int = 256
    rollouts: int = 20
    seed: int = 42
    device: str = "auto"
    mixed_units: bool = False


@dataclass(frozen=True)
class Measured:
    """One policy on the held-out episodes.

    Attributes
    ----------
    group
        Whose statistics it normalized with; empty if those of all of its arms.
    by_episode
        Its mean loss, or its mean error of actions where losses cannot be compared.
    errors
        The error of each frame, by its row; empty where losses are compared.
    """

    title: str
    group: str
    by_episode: Mapping[int, float]
    errors: Mapping[int, tuple[int, float]]
    rollouts: Rollouts | None

    @property
    def mean(self) -> float:
        """Of the episodes."""
        return float(np.mean(list(self.by_episode.values())))

    def of_rows_of(self, other: Measured) -> Measured:
        """The same of what both were measured on: some policies learn nothing of last frames."""
        errors = {row: each for row, each in self.errors.items() if row in other.errors}
        by_episode = dict(self.by_episode)
        if errors:
            by_episode = _means(errors.values())
        shared = by_episode.keys() & other.by_episode.keys()
        return replace(
            self,
            by_episode={each: by_episode[each] for each in sorted(shared)},
            errors=errors,
        )


def _means(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for episode, value in values:
        found.setdefault(episode, []).append(value)
    return {episode: float(np.mean(each)) for episode, each in found.items()}


@dataclass(frozen=True)
class Comparison:
    """Two policies on one owner's held-out episodes.

    Attributes
    ----------
    by_loss
        Whether the policies' losses mean the same thing, and are compared.
    gap
        ``second`` minus ``first``: above zero, the first is better.
    success
        The first's minus the second's, where there is a simulator.
    """

    first: Measured
    second: Measured
    by_loss: bool
    gap: Interval
    success: Difference | None
    notices: tuple[str, ...]

    @property
    def better(self) -> str:
        """The better one's title; empty if they are within the spread."""
        if self.gap.holds_zero:
            return ""
        return self.first.title if self.gap.mean > 0 else self.second.title

    def sentences(self) -> list[str]:
        """What was found, for a person."""
        first, second, gap = self.first, self.second, self.gap
        what = "of loss" if self.by_loss else "standard deviations of an action"
        episodes = f"{len(first.by_episode)} held-out episodes"
        if self.gap.holds_zero:
            said = [
                f"For your recordings the difference between {first.title} and {second.title} is"
                f" within the spread: {first.mean:.4f} against {second.mean:.4f} {what} ({gap},"
                f" {episodes})."
            ]
        else:
            best, other = (first, second) if gap.mean > 0 else (second, first)
            low, high = sorted((abs(gap.low), abs(gap.high)))
            said = [
                f"For your recordings {best.title} is better than {other.title} by"
                f" {abs(gap.mean):.4f} {what}: {best.mean:.4f} against {other.mean:.4f} (95 %"
                f" interval {low:.4f} to {high:.4f}, {episodes})."
            ]
        if not self.by_loss:
            said.append(
                "Their losses cannot be compared, because they are of other kinds or normalize"
                " otherwise; compared is how far the actions that each plans lie from yours."
            )
        if self.success is not None and first.rollouts and second.rollouts:
            said.append(
                f"In the simulator, on its whole table, {first.title} succeeds in"
                f" {first.rollouts.successes} of {first.rollouts.episodes} episodes,"
                f" {second.title} in {second.rollouts.successes}: {self._success_sentence()}"
            )
        return said

    def _success_sentence(self) -> str:
        assert self.success is not None
        if self.success.is_noise:
            return "within the spread."
        best = self.first.title if self.success.mean > 0 else self.second.title
        if self.better and self.better != best:
            return f"{best} is better there, and success says more than the figures above."
        return f"{best} is better there, too." if self.better else f"{best} is better there."

    def to_json(self) -> dict[str, Any]:
        """All of it, for a program."""
        return {
            "schema_version": 1,
            "measure": "loss" if self.by_loss else "action_error",
            "better": self.better or None,
            "second_minus_first": {
                "mean": self.gap.mean,
                "low": self.gap.low,
                "high": self.gap.high,
                "confidence": CONFIDENCE,
            },
            "policies": [
                {
                    "policy": each.title,
                    "statistics_of": each.group or None,
                    "mean": each.mean,
                    "by_episode": {
                        str(episode): value for episode, value in each.by_episode.items()
                    },
                    "successes": each.rollouts.successes if each.rollouts else None,
                    "rollouts": each.rollouts.episodes if each.rollouts else 0,
                }
                for each in (self.first, self.second)
            ],
            "notices": list(self.notices),
        }


def no_tell(progress: Progress) -> None:
    """Tell nobody."""


def compare(
    first: TrainedPolicy,
    second: TrainedPolicy,
    own: OwnRecordings,
    options: Options,
    tell: Callable[[Progress], None] = no_tell,
) -> Comparison:
    """Measure both, one after the other: two policies may not fit on a GPU.

    Raises
    ------
    DataError
        If the recordings do not fit one of them, or are too few.
    ConfigError, UnavailableError
        If one cannot be loaded.
    """
    by_loss = losses_compare(first, second, own)
    one, other = (_measured(each, own, options, by_loss, tell) for each in (first, second))
    one, other = one.of_rows_of(other), other.of_rows_of(one)
    check_measured(own.open(first), one.by_episode)
    success = None
    if one.rollouts and other.rollouts:
        success = difference(
            [one.rollouts.success], [other.rollouts.success], one.rollouts.episodes
        )
    notices = list(own.notices(one.by_episode))
    for policy, measured in ((first, one), (second, other)):
        if policy.groups and not measured.group:
            notices.append(
                f"{policy.title} normalizes each of {', '.join(policy.groups)} by its own"
                " statistics, and these recordings are of none of them: those of all are used,"
                " with which it was not trained."
            )
    gap = paired_interval(list(other.by_episode.values()), list(one.by_episode.values()))
    return Comparison(one, other, by_loss, gap, success, tuple(notices))


def losses_compare(first: TrainedPolicy, second: TrainedPolicy, own: OwnRecordings) -> bool:
    """Whether a loss means the same for both: one kind of policy and one normalization."""
    if first.settings() != second.settings():
        return False
    used = [statistics_for(each, own, own.open(each))[0] for each in (first, second)]
    one, other = (_numbers(each) for each in used)
    return one.keys() == other.keys() and all(
        np.array_equal(values, other[key]) for key, values in one.items()
    )


def _numbers(statistics: Statistics) -> Mapping[str, Any]:
    return {
        f"{feature}.{part}": values
        for feature, parts in statistics.for_training().items()
        for part, values in parts.items()
    }


def _measured(
    policy: TrainedPolicy,
    own: OwnRecordings,
    options: Options,
    by_loss: bool,
    tell: Callable[[Progress], None],
) -> Measured:
    recordings = own.open(policy)
    held = own.held_out(recordings, options.hold_out)
    statistics, group = statistics_for(policy, own, recordings)
    loaded = policy.load(
        recordings, statistics, device=options.device, mixed_units=options.mixed_units
    )
    prepared = PreparedRecordings(
        recordings,
        loaded,
        own.reading.cache,
        own.reading.max_bad_frames,
        episodes=held,
        tell=tell,
    )
    numbers = recordings.columns["episode_index"]
    rows = torch.nonzero(torch.isin(numbers, torch.tensor(held))).flatten()
    rows = stratified_rows(rows, numbers, options.frames)  # the same ones for every policy
    rows = rows[torch.isin(rows, prepared.usable)]
    batches = prepared.batches(statistics)
    errors: dict[int, tuple[int, float]] = {}
    if by_loss:
        by_episode = losses_by_episode(loaded, batches, rows, options.seed)
    else:
        found = action_errors(loaded, batches, statistics, rows).tolist()
        places = zip(numbers[rows].tolist(), found, strict=True)
        errors = dict(zip(rows.tolist(), places, strict=True))
        by_episode = _means(errors.values())
    rollouts = _driven(loaded, statistics, recordings, options.rollouts)
    del loaded, prepared, batches
    release_gpu_memory()
    return Measured(policy.title, group, by_episode, errors, rollouts)


def _driven(
    loaded: LoadedPolicy, statistics: Statistics, recordings: Recordings, rollouts: int
) -> Rollouts | None:
    """Success in closed loop, if the recordings are a simulator's."""
    name = simulator_of(recordings)
    if not name or not rollouts:
        return None
    task = TASKS[name]
    own = {camera_name(key): to for key, to in recordings.cameras.items()}
    size = next(iter(recordings.summary.cameras.values()))[-1]
    knows_goal = task.knows_goal(loaded.spec.state_width)
    return roll_out(
        loaded,
        statistics,
        lambda: task.make(Sector(), tuple(own), size, knows_goal),
        list(range(ROLLOUT_SEED, ROLLOUT_SEED + rollouts)),
        own,
    )
