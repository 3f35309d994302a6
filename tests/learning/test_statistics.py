from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zk0d.errors import Zk0dError
from zk0d.learning.statistics import MIN_STD, FeatureStatistics, Statistics, merge


def of(values: np.ndarray) -> Statistics:
    return Statistics(features={"action": FeatureStatistics.of(values)})


parts = st.lists(
    arrays(
        np.float64,
        st.tuples(st.integers(1, 20), st.just(3)),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    min_size=1,
    max_size=4,
)


@given(parts)
def test_merging_equals_statistics_of_everything(values: list[np.ndarray]) -> None:
    merged = merge(of(part) for part in values).features["action"]
    together = FeatureStatistics.of(np.concatenate(values))
    assert merged.count == together.count
    for name in ("mean", "std", "min", "max"):
        assert np.allclose(getattr(merged, name), getattr(together, name), atol=1e-6), name


def test_merging_equals_lerobots() -> None:
    from lerobot.datasets.compute_stats import aggregate_stats

    random = np.random.default_rng(0)
    values = [random.normal(3, 2, (40, 2)), random.normal(-1, 5, (70, 2))]
    theirs = aggregate_stats(
        [
            {
                "action": {
                    "mean": v.mean(0),
                    "std": v.std(0),
                    "min": v.min(0),
                    "max": v.max(0),
                    "count": np.array([len(v)]),
                }
            }
            for v in values
        ]
    )["action"]
    ours = merge(of(v) for v in values).features["action"]
    for name in ("mean", "std", "min", "max"):
        assert np.allclose(getattr(ours, name), theirs[name]), name


def test_a_motor_that_never_moved_does_not_blow_up() -> None:
    statistics = of(np.ones((10, 2)))
    assert statistics.for_training()["action"]["std"].tolist() == pytest.approx([MIN_STD] * 2)


def test_the_hash_names_the_set() -> None:
    first, second = of(np.zeros((3, 2))), of(np.ones((3, 2)))
    assert first.sha256 == of(np.zeros((3, 2))).sha256 != second.sha256
    assert Statistics.model_validate_json(first.model_dump_json()).sha256 == first.sha256


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        ([], "no_statistics"),
        ([of(np.ones((2, 2))), of(np.ones((2, 3)))], "statistics_mismatch"),
        (
            [
                of(np.ones((2, 2))),
                Statistics(features={"x": FeatureStatistics.of(np.ones((2, 2)))}),
            ],
            "statistics_mismatch",
        ),
    ],
)
def test_statistics_that_cannot_be_merged_are_refused(sets: list[Statistics], reason: str) -> None:
    with pytest.raises(Zk0dError) as error:
        merge(sets)
    assert error.value.reason == reason


@pytest.mark.parametrize(
    "change", [{"mean": (float("nan"),)}, {"std": (-1.0,)}, {"min": (0.0, 0.0)}, {"count": 0}]
)
def test_statistics_from_the_network_are_checked(change: dict[str, object]) -> None:
    good = FeatureStatistics.of(np.ones((3, 1))).model_dump()
    with pytest.raises(ValueError, match="validation error"):
        FeatureStatistics.model_validate({**good, **change})


def test_statistics_need_no_torch() -> None:
    code = (
        "import sys, zk0d.learning.statistics, zk0d.learning.spec, zk0d.learning.schedule;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
