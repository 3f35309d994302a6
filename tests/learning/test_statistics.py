from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zk0d.errors import Zk0dError
from zk0d.learning.recordings import open_recordings
from zk0d.learning.statistics import (
    MIN_SPREAD,
    MIN_STD,
    FeatureStatistics,
    RunStatistics,
    Statistics,
    merge,
    merge_groups,
)


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


def test_groups_are_merged_apart_and_together() -> None:
    random = np.random.default_rng(0)
    a, b, c = (of(random.normal(mean, 1.0, (9, 3))) for mean in (0.0, 1.0, 50.0))
    by_type = merge_groups("robot-type", {"so": [a, b], "koch": [c]})
    assert by_type.of("so") == merge([a, b])
    assert by_type.of("koch") == merge([c])
    assert by_type.of("unknown") == by_type.of("") == merge([a, b, c])
    cohort = merge_groups("cohort", {"": [a, b, c]})
    assert cohort.of("so") == cohort.of("") == merge([a, b, c])
    assert cohort.sha256 == merge([a, b, c]).sha256, "runs of earlier versions are resumed"
    assert by_type.sha256 != cohort.sha256
    assert RunStatistics.model_validate_json(by_type.model_dump_json()).sha256 == by_type.sha256
    added = by_type.with_group("panda", a)
    assert added.of("panda") == a
    assert added.of("") == by_type.of("")
    assert added.only(["so", "koch"]) == by_type


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
    """Nor one that an encoder's noise moves, about zero or about another value."""
    noise = 1e-5 * np.sin(np.arange(100))
    statistics = of(np.stack([np.ones(100), noise, 1.5 + noise], 1))
    assert statistics.for_training()["action"]["std"] == pytest.approx([MIN_STD] * 3)


def test_a_small_movement_is_scaled_by_its_own_deviation() -> None:
    """4 mm beside 80 degrees, and beside a motor that moved by one tick in ten thousand frames."""
    swing = np.sin(np.linspace(0, 9, 10_000))
    tick = np.zeros(10_000)
    tick[500] = 0.088
    together = of(np.stack([0.004 * swing, 80 * swing, tick], 1)).for_training()["action"]["std"]
    assert together[:2] == pytest.approx([0.004 * swing.std(), 80 * swing.std()])
    assert together[2] == pytest.approx(MIN_SPREAD * 0.088)


def test_a_deviation_of_a_hundredth_is_not_bounded() -> None:
    """Nor one beside a wild frame, whose range says nothing of the other frames."""
    swing = np.sin(np.linspace(0, 9, 10_000))
    wild = swing.copy()
    wild[500] = 1000
    statistics = of(np.stack([0.015 * swing, 1.5 * swing, wild], 1))
    own = np.asarray(statistics.features["action"].std)
    assert own.min() > MIN_STD
    assert own[2] < MIN_SPREAD * 1000
    assert np.array_equal(statistics.for_training()["action"]["std"], own.astype(np.float32))


def test_the_demos_recordings_have_usual_deviations(recordings_folder: Path) -> None:
    """Each is a hundredth or more, or that of a component that never changes."""
    recordings = open_recordings(f"local:{recordings_folder}")
    statistics = recordings.statistics(~recordings.not_finite())
    for name, used in statistics.for_training().items():
        own = np.asarray(statistics.features[name].std)
        assert used["std"] == pytest.approx(np.maximum(own, MIN_STD)), name


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
