"""A robot plugin of LeRobot's, for tests: zk0d's SO-101 in MuJoCo as if it were an arm.

It has the joints of a real one, in degrees, and the jaws in percent. A command takes a tenth of a
second of the simulation's time.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from lerobot.robots import Robot

from tests.mocks.config_so101_in_mujoco import SO101InMujocoConfig
from zk0d.simulators.so101 import ACTION, SO101


class SO101InMujoco(Robot):
    config_class = SO101InMujocoConfig
    name = "so101_in_mujoco"
    connected_ones: ClassVar[list[SO101InMujoco]] = []

    def __init__(self, config: SO101InMujocoConfig) -> None:
        super().__init__(config)
        self.config = config
        self.sent: list[list[float]] = []
        self.seen: list[list[float]] = []
        self._arm: SO101 | None = None

    @property
    def observation_features(self) -> dict[str, Any]:
        return {**dict.fromkeys(ACTION, float), "front": (96, 96, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(ACTION, float)

    @property
    def is_connected(self) -> bool:
        return self._arm is not None

    def connect(self, calibrate: bool = True) -> None:
        self._arm = SO101(goal_in_state=False)
        self._arm.reset(self.config.seed)
        self.connected_ones.append(self)

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        assert self._arm is not None
        observed = self._arm.observe()
        places = [float(each) for each in observed["observation.state"][: len(ACTION)]]
        self.seen.append(places)
        joints = dict(zip(ACTION, places, strict=True))
        return {**joints, "front": observed["observation.images.front"]}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        assert self._arm is not None
        goals = [float(action[name]) for name in ACTION]
        self.sent.append(goals)
        self._arm.step(np.array(goals))
        return action

    def disconnect(self) -> None:
        self._arm = None
