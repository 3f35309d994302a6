"""Normalization statistics: asked for once, merged once, sent by hash. numpy only.

A policy that is trained with one set and run with another fails, so a run has one set, for every
node, and the release carries it. A run whose arms are calibrated otherwise has one for each group
of nodes besides. Quantiles come from counts that can be merged (:mod:`zk0d.learning.quantiles`),
where a policy normalizes by them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from zk0d.config.base import Settings
from zk0d.config.run import NormalizeBy
from zk0d.errors import Zk0dError
from zk0d.learning.quantiles import Counts, counted, merged, quantiles

#: Standard deviations of this and more are taken as they are. A motor that did not move gets this:
#: dividing by less would blow noise up.
MIN_STD = 1e-2
#: A component that moves in a small unit has less (4 mm are 0.004 m): down to this share of its
#: own range, so that no value is further than 50 standard deviations from the mean.
MIN_SPREAD = 0.02
#: A range below this is noise (0.1 mm, 0.1 mrad), as is this share of a larger value: an encoder's
#: step is a 4096th of a turn.
_NOISE = 1e-4


class FeatureStatistics(Settings):
    """Count, mean, standard deviation, minimum and maximum of one feature, per component.

    And, where quantiles are needed, frames by parts of the range from minimum to maximum.
    """

    count: PositiveInt
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    histogram: tuple[Counts, ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        lengths = {len(self.mean), len(self.std), len(self.min), len(self.max)}
        if len(lengths) != 1 or not all(
            np.isfinite(v).all() for v in (self.mean, self.std, self.min, self.max)
        ):
            raise ValueError("mean, std, min and max must be finite and of one length")
        if min(self.std) < 0:
            raise ValueError("a standard deviation is negative")
        if self.histogram is not None and (
            len(self.histogram) != len(self.mean) or not all(self.histogram)
        ):
            raise ValueError("a histogram must have counts of each component")
        return self

    @classmethod
    def of(cls, values: NDArray[Any], *, histogram: bool = False) -> Self:
        """Statistics of ``values``, shape ``(frames, width)``, population standard deviation."""
        values = np.asarray(values, dtype=np.float64)
        low, high = values.min(0).tolist(), values.max(0).tolist()
        return cls(
            count=len(values),
            mean=tuple(values.mean(0).tolist()),
            std=tuple(values.std(0).tolist()),
            min=tuple(low),
            max=tuple(high),
            histogram=tuple(map(counted, values.T, low, high)) if histogram else None,
        )

    def quantiles(self) -> dict[str, NDArray[np.float64]]:
        """By LeRobot's names for them; empty without a histogram."""
        if self.histogram is None:
            return {}
        each = list(map(quantiles, self.histogram, self.min, self.max))
        return {name: np.array([of[name] for of in each]) for name in each[0]}


class Statistics(Settings):
    """Statistics of a policy's numeric inputs and outputs."""

    features: dict[str, FeatureStatistics]
    nodes: NonNegativeInt = 1

    @property
    def sha256(self) -> str:
        """Names this exact set."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def for_training(self) -> dict[str, dict[str, NDArray[np.float32]]]:
        """The set as LeRobot's processors take it: float32, standard deviations bounded below.

        A component's bound follows from its own range alone (see :data:`MIN_SPREAD`).
        """
        return {
            name: {
                "mean": np.asarray(feature.mean, dtype=np.float32),
                "std": _bounded(feature).astype(np.float32),
                "min": np.asarray(feature.min, dtype=np.float32),
                "max": np.asarray(feature.max, dtype=np.float32),
                **{key: each.astype(np.float32) for key, each in _apart(feature).items()},
            }
            for name, feature in self.features.items()
        }

    def without_histograms(self) -> Statistics:
        """The same, without counts of frames."""
        bare = {n: f.model_copy(update={"histogram": None}) for n, f in self.features.items()}
        return Statistics(features=bare, nodes=self.nodes)


class RunStatistics(Statistics):
    """Those of all nodes together, and of each group that normalizes with its own."""

    by: NormalizeBy = "cohort"
    groups: dict[str, Statistics] = Field(
        default_factory=dict, description="By robot type or by node; none if by cohort."
    )

    @property
    def sha256(self) -> str:
        """Names this exact set; without groups that of the statistics alone."""
        return super().sha256 if self.groups else self.of("").sha256

    def of(self, group: str) -> Statistics:
        """What a group normalizes with: its own, or those of all if it has none here."""
        return self.groups.get(group) or Statistics(features=self.features, nodes=self.nodes)

    def with_group(self, group: str, statistics: Statistics) -> Self:
        """The same with one group more."""
        return self.model_copy(update={"groups": {**self.groups, group: statistics}})

    def only(self, groups: Iterable[str]) -> Self:
        """The same without any other group."""
        kept = {name: each for name, each in self.groups.items() if name in set(groups)}
        return self.model_copy(update={"groups": kept})


def still(low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.bool_]:
    """Which components never change, by their minimum and maximum, in whatever unit."""
    size = np.maximum(np.abs(low), np.abs(high))
    return np.asarray(high - low <= _NOISE * np.maximum(size, 1.0))


def _least(feature: FeatureStatistics) -> NDArray[np.float64]:
    """The smallest number that each component's distance from the middle is divided by."""
    low, high = np.asarray(feature.min), np.asarray(feature.max)
    spread = np.minimum(MIN_STD, MIN_SPREAD * (high - low))
    return np.asarray(np.where(still(low, high), MIN_STD, spread))


def _bounded(feature: FeatureStatistics) -> NDArray[np.float64]:
    bounded: NDArray[np.float64] = np.maximum(np.asarray(feature.std), _least(feature))
    return bounded


def _apart(feature: FeatureStatistics) -> dict[str, NDArray[np.float64]]:
    """The quantiles; those of each pair that LeRobot divides by keep a distance."""
    found = feature.quantiles()
    for low, high in (("q01", "q99"), ("q10", "q90")) if found else ():
        missing = np.maximum(_least(feature) - (found[high] - found[low]) / 2, 0)
        found[low], found[high] = found[low] - missing, found[high] + missing
    return found


def merge(sets: Iterable[Statistics]) -> Statistics:
    """The statistics of all frames together (parallel variance, Chan, Golub, LeVeque 1983).

    Raises
    ------
    Zk0dError
        If there is nothing to merge, or two sets do not speak of the same features and widths.
    """
    parts = list(sets)
    if not parts:
        raise Zk0dError(
            "no node shared its statistics, so nothing can be normalized; at least one must"
            " (share-statistics in its settings).",
            reason="no_statistics",
        )
    names = set(parts[0].features)
    if any(set(part.features) != names for part in parts):
        raise Zk0dError(
            "the nodes' statistics are of different features and cannot be merged.",
            reason="statistics_mismatch",
        )
    return Statistics(
        features={name: _merge_feature(name, [p.features[name] for p in parts]) for name in names},
        nodes=len(parts),
    )


def merge_groups(by: NormalizeBy, groups: Mapping[str, Iterable[Statistics]]) -> RunStatistics:
    """The statistics of all frames together, and unless ``by`` cohort those of each group's."""
    parts = {name: list(sets) for name, sets in groups.items()}
    whole = merge(part for sets in parts.values() for part in sets)
    own = {}
    if by != "cohort":
        # Those of one node stay as they are, to the bit, as do those of a late one.
        own = {name: merge(sets) if sets[1:] else sets[0] for name, sets in parts.items()}
    return RunStatistics(features=whole.features, nodes=whole.nodes, by=by, groups=own)


def _merge_feature(name: str, parts: list[FeatureStatistics]) -> FeatureStatistics:
    if len({len(part.mean) for part in parts}) != 1:
        raise Zk0dError(
            f"the nodes' statistics of '{name}' differ in width and cannot be merged.",
            reason="statistics_mismatch",
        )
    count = np.array([part.count for part in parts], dtype=np.float64)[:, None]
    mean = np.array([part.mean for part in parts])
    variance = np.array([part.std for part in parts]) ** 2
    total = count.sum()
    middle = (count * mean).sum(0) / total
    spread = (count * (variance + (mean - middle) ** 2)).sum(0) / total
    low = np.min([part.min for part in parts], axis=0).tolist()
    high = np.max([part.max for part in parts], axis=0).tolist()
    return FeatureStatistics(
        count=int(total),
        mean=tuple(middle.tolist()),
        std=tuple(np.sqrt(spread).tolist()),
        min=tuple(low),
        max=tuple(high),
        histogram=_merge_histograms(parts, low, high),
    )


def _merge_histograms(
    parts: list[FeatureStatistics], low: list[float], high: list[float]
) -> tuple[Counts, ...] | None:
    """Of the parts that have one; the others' owners keep theirs."""
    with_counts = [part for part in parts if part.histogram is not None]
    if not with_counts:
        return None
    made = []
    for number in range(len(low)):
        of_each = []
        for part in with_counts:
            assert part.histogram is not None
            of_each.append((part.histogram[number], part.min[number], part.max[number]))
        made.append(merged(of_each, low[number], high[number]))
    return tuple(made)
