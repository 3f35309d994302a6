"""Quantiles over all nodes, and policies that normalize in each of LeRobot's ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import NormalizationMode
from numpy.typing import NDArray

from zk0d.config.machine import CacheSettings
from zk0d.errors import Zk0dError
from zk0d.learning.evaluate import roll_out
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.quantiles import BINS, QUANTILES, SMALLEST, counted
from zk0d.learning.recordings import Recordings
from zk0d.learning.statistics import MIN_STD, FeatureStatistics, Statistics, merge
from zk0d.simulators.soreach import SoReach

LEVELS = list(QUANTILES.values())
Values = NDArray[np.float64]


def of(values: Values) -> Statistics:
    return Statistics(features={"action": FeatureStatistics.of(values, histogram=True)})


def found(parts: list[Values]) -> Values:
    """The merged quantiles of these nodes, shape ``(levels, width)``."""
    by_name = merge(map(of, parts)).features["action"].quantiles()
    return np.stack([by_name[name] for name in QUANTILES])


#: Nodes whose values lie apart, overlap, are few, and are skewed.
NODES = {
    "alike": [(0.0, 1.0, 4000), (0.0, 1.0, 5000)],
    "apart": [(-40.0, 3.0, 3000), (55.0, 1.0, 9000)],
    "one in the other": [(0.0, 30.0, 8000), (5.0, 0.2, 8000)],
    "unequal": [(0.0, 10.0, 20000), (30.0, 5.0, 500), (-10.0, 1.0, 60)],
}


@pytest.mark.parametrize("case", NODES)
@pytest.mark.parametrize("kind", ["normal", "skewed", "two heaps"])
def test_merged_quantiles_are_within_a_hundredth_of_those_of_everything(
    case: str, kind: str
) -> None:
    random = np.random.default_rng(7)
    parts = []
    for mean, spread, count in NODES[case]:
        values = random.normal(size=(count, 2))
        if kind == "skewed":
            values = np.exp(values)
        elif kind == "two heaps":
            values = values / 10 + random.choice([-3.0, 3.0], (count, 2))
        parts.append(mean + spread * values)
    everything = np.concatenate(parts)
    # Between two heaps a quantile may be anywhere; its share of the frames is what counts.
    each = found(parts)
    for number in range(2):
        below = (everything[:, number][None] <= each[:, number, None]).mean(1)
        value = np.quantile(everything[:, number], LEVELS)
        near = np.abs(each[:, number] - value) <= 0.01 * np.ptp(everything[:, number])
        assert (near | (np.abs(below - LEVELS) <= 0.001)).all()


@given(
    st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30), min_size=1, max_size=4
    )
)
def test_no_frame_is_lost_and_quantiles_lie_in_the_range(values: list[list[float]]) -> None:
    parts = [np.array(each, np.float64)[:, None] for each in values]
    (counts,) = merge(map(of, parts)).features["action"].histogram or ()
    assert sum(frames for _, frames in counts) == pytest.approx(sum(map(len, parts)), abs=0.2)
    each, everything = found(parts), np.concatenate(parts)
    assert (np.diff(each, axis=0) >= 0).all()
    assert (each >= everything.min() - 1e-9).all()
    assert (each <= everything.max() + 1e-9).all()


def test_few_frames_are_told_with_their_neighbours() -> None:
    values = np.concatenate([np.linspace(0, 0.4, 1000), [0.7], np.linspace(0.99, 1.0, 50)])
    told = dict(counted(values, 0.0, 1.0))
    assert min(told.values()) >= SMALLEST
    assert sum(told.values()) == len(values)
    assert round(0.7 * BINS) not in told, "one frame alone is not told"
    assert counted(np.array([1.0, 2.0]), 1.0, 2.0) == ((round((BINS - 1) / 2), 2.0),)


def test_a_joint_that_stood_still_is_not_blown_up() -> None:
    still = of(np.full((100, 1), 12.0)).for_training()["action"]
    assert still["q99"] - still["q01"] == pytest.approx(2 * MIN_STD, rel=1e-3)
    rarely = np.concatenate([np.zeros(995), np.full(5, 50.0)])[:, None]
    moved = of(rarely).for_training()["action"]
    assert moved["q99"] > moved["q01"]


def test_a_node_that_keeps_its_counts_leaves_the_others() -> None:
    random = np.random.default_rng(1)
    told, kept = random.normal(0, 1, (5000, 1)), random.normal(9, 1, (5000, 1))
    part = merge([of(told), of(kept).without_histograms()])
    alone = of(told).features["action"].quantiles()
    for name, value in part.features["action"].quantiles().items():
        assert value == pytest.approx(alone[name], abs=0.05)
    assert merge([of(told).without_histograms()]).features["action"].quantiles() == {}


def test_the_hash_of_statistics_without_counts_is_as_before() -> None:
    plain = Statistics(features={"action": FeatureStatistics.of(np.eye(3))})
    assert plain.sha256 == of(np.eye(3)).without_histograms().sha256
    assert "histogram" not in plain.model_dump_json(exclude_none=True)


# --- in each of LeRobot's ways -------------------------------------------------------------------


@pytest.fixture(params=list(NormalizationMode))
def prepared(
    request: pytest.FixtureRequest, recordings: Recordings, tmp_path: Path
) -> PreparedRecordings:
    """A published policy that normalizes state and action in that way."""
    made = load_policy(spec_for("act", "tiny", 0, recordings.summary, {}), device="cpu").policy
    for kind in ("STATE", "ACTION"):
        made.config.normalization_mapping[kind] = request.param
    made.save_pretrained(tmp_path / "model")
    models = {"mine": tmp_path / "model"}
    spec = spec_for("act", "mine", 0, recordings.summary, models)
    return PreparedRecordings(recordings, load_policy(spec, models=models), CacheSettings())


def mode_of(policy: LoadedPolicy) -> NormalizationMode:
    return NormalizationMode(policy.config.normalization_mapping["ACTION"])


@pytest.mark.slow
def test_a_policy_is_normalized_as_it_says_and_acts_in_the_arms_numbers(
    prepared: PreparedRecordings,
) -> None:
    policy, mode = prepared.policy, mode_of(prepared.policy)
    rows = torch.arange(len(prepared.recordings.columns[ACTION]))
    state, action = (prepared.recordings.columns[name][rows] for name in (STATE, ACTION))
    preprocess, postprocess = policy.processors(prepared.statistics())
    images = {
        key: torch.zeros(len(rows), *f.shape) for key, f in policy.config.image_features.items()
    }
    seen = preprocess({STATE: state, ACTION: action, "task": ["reach"] * len(rows), **images})
    levels = {NormalizationMode.QUANTILES: (0.01, 0.99), NormalizationMode.QUANTILE10: (0.1, 0.9)}
    for recorded, made in ((state, seen[STATE]), (action, seen[ACTION])):
        moves = np.ptp(recorded.numpy(), axis=0) > 1e-3
        if mode is NormalizationMode.IDENTITY:
            assert torch.equal(recorded, made)
            continue
        assert not torch.allclose(recorded, made), "an identity by accident"
        made = made.numpy()[:, moves]
        if mode is NormalizationMode.MIN_MAX:
            assert made.min(0) == pytest.approx(-1, abs=1e-4)
            assert made.max(0) == pytest.approx(1, abs=1e-4)
        elif mode is NormalizationMode.MEAN_STD:
            assert made.mean(0) == pytest.approx(0, abs=0.02)
        else:
            # Of few frames some are told with their neighbours'.
            for end, level in zip((-1, 1), levels[mode], strict=True):
                share, value = (made <= end).mean(0), np.quantile(made, level, axis=0)
                assert ((np.abs(share - level) < 0.05) | (np.abs(value - end) < 0.1)).all()
    assert torch.allclose(postprocess(seen[ACTION]), action, atol=1e-3)
    rolled = roll_out(policy, prepared.statistics(), lambda: SoReach(cameras=("top",)), [4])
    assert rolled.episodes == 1


@pytest.mark.slow
def test_a_policy_by_quantiles_refuses_statistics_without_counts(
    prepared: PreparedRecordings,
) -> None:
    bare = prepared.statistics().without_histograms()
    if mode_of(prepared.policy) in (NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10):
        with pytest.raises(Zk0dError, match="normalizes by quantiles, and no node told"):
            prepared.policy.processors(bare)
    else:
        assert prepared.statistics() == bare, "nobody tells what no policy needs"
        prepared.policy.processors(bare)
