"""The configuration of :mod:`tests.mocks.so101_in_mujoco`: LeRobot finds a plugin's class so."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.robots import RobotConfig

from tests.mocks.mock_robot import MockCamera


@RobotConfig.register_subclass("so101_in_mujoco")
@dataclass
class SO101InMujocoConfig(RobotConfig):
    cameras: dict[str, MockCamera] = field(
        default_factory=lambda: {"front": MockCamera(96, 96, 10)}
    )
    seed: int = 0
