from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.simulators.soreach import (
    FAR,
    HALF_ANGLE,
    JOINTS,
    MAX_FRAMES,
    NEAR,
    SOREACH_TASK,
    SoReach,
    demonstrate,
    joint_positions,
    reach_pose,
)
from zk0d.simulators.task import Sector


@given(
    radius=st.floats(NEAR, FAR),
    bearing=st.floats(-HALF_ANGLE, HALF_ANGLE),
    height=st.floats(0.02, 0.09),
)
def test_inverse_kinematics_reaches_the_whole_table(
    radius: float, bearing: float, height: float
) -> None:
    goal = np.array([radius * np.cos(bearing), radius * np.sin(bearing), height])
    assert np.linalg.norm(joint_positions(reach_pose(goal))[4] - goal) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("sector", [Sector(0, 2), Sector(1, 2)])
def test_the_expert_hardly_ever_fails(sector: Sector) -> None:
    arm = SoReach(sector, cameras=())
    successes = sum(demonstrate(arm, seed)[1] for seed in range(300))
    assert successes >= 0.99 * 300


def test_sectors_share_the_table_without_overlap() -> None:
    bounds = [Sector(i, 3).part(-HALF_ANGLE, HALF_ANGLE) for i in range(3)]
    assert bounds[0][0] == pytest.approx(-HALF_ANGLE)
    assert bounds[2][1] == pytest.approx(HALF_ANGLE)
    assert bounds[0][1] == pytest.approx(bounds[1][0])
    arm = SoReach(Sector(1, 3), cameras=())
    for seed in range(50):
        arm.reset(seed)
        bearing = np.arctan2(arm.goal[1], arm.goal[0])
        assert bounds[1][0] <= bearing <= bounds[1][1]


def test_a_sector_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="no sector 2 of 2"):
        Sector(2, 2)


def test_an_episode_is_determined_by_its_seed() -> None:
    first, _ = demonstrate(SoReach(), seed=3)
    second, _ = demonstrate(SoReach(), seed=3)
    other, _ = demonstrate(SoReach(), seed=4)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a["observation.state"], b["observation.state"])
        assert np.array_equal(a["observation.images.top"], b["observation.images.top"])
    assert not np.array_equal(first[0]["observation.state"], other[0]["observation.state"])


def test_standing_still_is_not_a_success() -> None:
    arm = SoReach(cameras=())
    arm.reset(0)
    over = False
    while not over:
        success, over = arm.step(arm.joints)
        assert not success
    assert arm.frame == MAX_FRAMES


def test_observations_are_as_described() -> None:
    arm = SoReach(cameras=("top", "side"), size=64)
    observation = arm.reset(0)
    for name, feature in SOREACH_TASK.features(("top", "side"), 64).items():
        if name != "action":
            assert observation[name].shape == tuple(feature["shape"])
    assert observation["observation.images.top"].dtype == np.uint8


def test_an_unknown_camera_is_refused() -> None:
    with pytest.raises(ValueError, match="no camera"):
        SoReach(cameras=("wrist",))


def test_the_simulator_needs_no_torch() -> None:
    code = "import sys, zk0d.simulators.soreach; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_the_goal_only_images_tell_where_the_block_is() -> None:
    arm = SoReach(size=32, goal_in_state=False)
    first = arm.reset(1)
    second = arm.reset(2)
    assert first["observation.state"].shape == (len(JOINTS),)
    described = SOREACH_TASK.features(("top",), size=32, goal_in_state=False)
    assert described["observation.state"]["shape"] == (len(JOINTS),)
    assert not np.array_equal(first["observation.images.top"], second["observation.images.top"])
