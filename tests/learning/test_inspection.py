from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

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
