from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zk0d.learning.inspection import Inspection, inspect, inspect_together
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.recordings import Recordings, open_recordings


@pytest.fixture
def own(recordings_folder: Path) -> Recordings:
    """Recordings whose numbers a test may change."""
    return open_recordings(f"local:{recordings_folder}")


def texts(inspection: Inspection, check: str) -> list[str]:
    return [remark.text for remark in inspection.remarks if remark.check == check]


def test_good_recordings(own: Recordings) -> None:
    found = inspect(own)
    assert not found.wrong
    assert len(found.episodes) == 6
    assert sum(each.frames for each in found.episodes) == len(own)
    assert not any(each.wild or each.not_finite or each.same_as for each in found.episodes)
    assert {remark.check for remark in found.remarks} == {"episodes", "still", "widths", "license"}
    assert "goal.z" in texts(found, "still")[0]


def test_nan_is_wrong(own: Recordings) -> None:
    own.columns[ACTION][own.rows(2).start + 3, 1] = float("nan")
    found = inspect(own)
    assert found.wrong
    assert "1 of" in texts(found, "not-finite")[0]
    assert "episode 2, frame 3" in texts(found, "not-finite")[0]
    assert [each.not_finite for each in found.episodes] == [0, 0, 1, 0, 0, 0]


def test_a_spike_is_wild(own: Recordings) -> None:
    own.columns[STATE][own.rows(1).start + 5, 0] = 5000.0
    found = inspect(own)
    assert found.episodes[1].wild >= 1
    assert sum(each.wild for each in found.episodes) == found.episodes[1].wild
    assert "episodes 1 hold" in texts(found, "outliers")[0]


@pytest.mark.parametrize(
    ("scale", "turn", "unit"),
    [(1.0, 360.0, "degrees"), (0.0174533, 2 * np.pi, "radians"), (11.378, 4096.0, "ticks")],
)
def test_an_encoders_zero_in_a_joints_travel(
    own: Recordings, scale: float, turn: float, unit: str
) -> None:
    """The joint moves by small steps; what is recorded wraps around in its middle."""
    for name in (STATE, ACTION):
        joint = own.columns[name][:, 0] * scale
        own.columns[name][:, 0] = (joint - joint.median()) % turn
    found = inspect(own)
    said = texts(found, "seam")
    assert len(said) == 2
    assert said[0].startswith("observation.state[0] (shoulder_pan.pos) jumps by nearly a full turn")
    assert f"({turn:g} {unit})" in said[0]
    assert sum(each.wild for each in found.episodes) > 0
    assert not found.wrong


#: By unit: one degree, and where an encoder's turn begins and how long it is.
UNITS = {
    "degrees": (1.0, 0.0, 360.0),
    "degrees around 0": (1.0, -180.0, 360.0),
    "radians": (np.pi / 180, 0.0, 2 * np.pi),
    "radians around 0": (np.pi / 180, -np.pi, 2 * np.pi),
    "ticks": (4096 / 360, 0.0, 4096.0),
}
units = st.sampled_from(sorted(UNITS))
seeds = st.integers(0, 2**32 - 1)
by_seed = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def recorded(own: Recordings, unit: str, degrees: NDArray[np.float64]) -> NDArray[np.intp]:
    """Let state 0 be a joint's way as its encoder tells it; the rows where it wraps around."""
    degree, begin, turn = UNITS[unit]
    told = (degrees * degree - begin) % turn + begin
    if unit == "ticks":
        told = np.floor(told)
    own.columns[STATE][:, 0] = torch.from_numpy(told.astype(np.float32))
    crossed = np.abs(np.diff(told, prepend=told[0])) > turn / 2
    return np.nonzero(crossed & (own.columns["frame_index"].numpy() > 0))[0]


def smooth(own: Recordings, generator: np.random.Generator, span: float) -> NDArray[np.float64]:
    """A joint's way over all episodes around 0, in degrees: it swings, jitters and rests."""
    time = own.columns["frame_index"].numpy() / 30
    way = np.zeros(len(time))
    for _ in range(3):
        way += np.sin(2 * np.pi * (generator.uniform(0.1, 0.8) * time + generator.random()))
    way *= span / max(1e-9, np.ptp(way))
    return way + generator.normal(0, generator.choice([0.0, 0.05, 0.3]), len(time))


@pytest.mark.slow
@given(seed=seeds, unit=units, span=st.floats(5, 250), at=st.floats(0, 360))
@by_seed
def test_every_seam_and_nothing_else_is_named(
    own: Recordings, seed: int, unit: str, span: float, at: float
) -> None:
    crossed = recorded(own, unit, smooth(own, np.random.default_rng(seed), span) + at)
    found = inspect(own)
    said = texts(found, "seam")
    assert len(said) == (len(crossed) > 0)
    if said:
        assert f"{len(crossed)} times, first {own.place(int(crossed[0]))}:" in said[0]
    assert sum(each.wild for each in found.episodes) == len(crossed)


@pytest.mark.slow
@given(seed=seeds, unit=units, by=st.floats(45, 150), length=st.integers(1, 4))
@by_seed
def test_a_jump_beside_a_seam_is_judged_without_it(
    own: Recordings, seed: int, unit: str, by: float, length: int
) -> None:
    """The seam makes the range a whole turn; a slip of a sixth of one stays beyond belief."""
    generator = np.random.default_rng(seed)
    way = smooth(own, generator, 30) + UNITS[unit][1] / UNITS[unit][0]
    rows = own.rows(int(generator.integers(len(own.episodes))))
    row = int(generator.integers(rows.start + 2, rows.stop - length - 2))
    slipped = way.copy()
    slipped[row : row + length] += by
    crossed = recorded(own, unit, way)
    assume(len(crossed))
    recorded(own, unit, slipped)
    found = inspect(own)
    assert texts(found, "seam")
    assert own.columns["episode_index"][row] in [e.episode for e in found.episodes if e.wild]
    seams = {*recorded(own, unit, slipped).tolist()}
    assert sum(each.wild for each in found.episodes) >= len(seams | {row, row + length})


def test_a_joint_that_rests_on_its_seam(own: Recordings) -> None:
    """Half of its steps are turns, and hide none."""
    way = np.random.default_rng(0).normal(0, 0.5, len(own))
    crossed = recorded(own, "degrees", way)
    assert len(crossed) > len(own) / 4
    found = inspect(own)
    assert f"{len(crossed)} times" in texts(found, "seam")[0]
    assert sum(each.wild for each in found.episodes) == len(crossed)


@pytest.mark.slow
@given(seed=seeds, unit=units, by=st.floats(40, 250), frames=st.integers(2, 8))
@by_seed
def test_a_fast_but_honest_motion_is_not_named(
    own: Recordings, seed: int, unit: str, by: float, frames: int
) -> None:
    """A throw: the joint speeds up and slows down again, if only for two frames."""
    generator = np.random.default_rng(seed)
    way = smooth(own, generator, 10)
    rows = own.rows(int(generator.integers(len(own.episodes))))
    row = int(generator.integers(rows.start + 2, rows.stop - frames - 2))
    steps = np.sin(np.pi * (np.arange(frames) + 0.5) / frames)
    way[row : rows.stop] += (
        by
        * np.minimum(1, np.cumsum(steps) / steps.sum())[
            np.minimum(np.arange(rows.stop - row), frames - 1)
        ]
    )
    low = UNITS[unit][1] / UNITS[unit][0]
    recorded(own, unit, way + low + 30)
    found = inspect(own)
    assert not texts(found, "seam")
    assert not texts(found, "outliers")


@pytest.mark.parametrize("ends", [(-100.0, 100.0), (0.0, 360.0), (0.0, 6.2)])
def test_a_command_that_only_snaps_from_end_to_end_is_not_a_seam(
    own: Recordings, ends: tuple[float, float]
) -> None:
    opened = torch.arange(len(own)) // 20 % 2 == 0
    own.columns[ACTION][:, 5] = torch.where(opened, *ends)
    found = inspect(own)
    assert not texts(found, "seam")
    assert not texts(found, "outliers")


def test_a_fast_motion_of_small_degrees_is_not_a_seam_in_radians(own: Recordings) -> None:
    """A joint that goes 6.8 degrees in all, once most of it within a frame."""
    way = 0.02 * np.sin(np.arange(len(own)))
    rows = own.rows(1)
    way[rows.start + 10] += 1.4
    way[rows.start + 11 : rows.stop] += 6.8
    own.columns[STATE][:, 0] = torch.from_numpy(way.astype(np.float32))
    assert not texts(inspect(own), "seam")


def test_a_gripper_that_snaps_shut_is_not_wild(own: Recordings) -> None:
    for name in (STATE, ACTION):
        for episode in own.episodes:
            rows = own.rows(episode)
            middle = (rows.start + rows.stop) // 2
            own.columns[name][rows.start : middle, 5] = 40.0
            own.columns[name][middle : rows.stop, 5] = 0.0
    assert not texts(inspect(own), "outliers")


def test_a_copied_episode(own: Recordings) -> None:
    a, b = own.rows(0), own.rows(1)
    assert a.stop - a.start == b.stop - b.start
    for name in (STATE, ACTION):
        own.columns[name][b] = own.columns[name][a]
    found = inspect(own)
    assert found.episodes[1].same_as == 0
    assert "episode 1 is the same as episode 0" in texts(found, "duplicates")[0]


def test_times_without_pictures(own: Recordings) -> None:
    own.columns["timestamp"][own.rows(2)] += 0.002
    found = inspect(own)
    assert found.wrong
    assert "time stamps in episodes 2 are those of no picture" in texts(found, "timestamps")[0]


def test_a_still_motor(own: Recordings) -> None:
    own.columns[STATE][:, 4] = 1.0
    own.columns[STATE][:, 3] *= 0.004 / own.columns[STATE][:, 3].abs().max()
    assert "wrist_roll.pos" in texts(inspect(own), "still")[0]
    assert "wrist_flex.pos" not in texts(inspect(own), "still")[0]


def test_two_datasets_that_do_not_fit_are_named(own: Recordings, recordings_folder: Path) -> None:
    other = open_recordings(f"local:{recordings_folder}", cameras={"top": "wrist"})
    found = inspect_together([(own, inspect(own)), (other, inspect(other))])
    assert [remark.severity for remark in found] == ["wrong", "notice"]
    assert "does not know camera 'wrist'" in found[0].text
    assert "6 episodes are also in" in found[1].text
