"""A robot without hardware, which LeRobot's ``make_robot_from_config`` makes by this module's name.

It is a fake: a joint is at once where it is sent. It keeps what it was sent, and can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from lerobot.motors import Motor, MotorCalibration, MotorNormMode
from lerobot.robots import Robot, RobotConfig

SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")


@dataclass
class MockCamera:
    width: int = 96
    height: int = 96
    fps: int = 30


@RobotConfig.register_subclass("mock_robot")
@dataclass
class MockRobotConfig(RobotConfig):
    """What a test needs to be otherwise.

    Attributes
    ----------
    degrees
        As ``use_degrees`` of an SO-101; ``None`` if the driver tells no units.
    fails_after
        Commands, after which a cable is pulled.
    """

    joints: list[str] = field(default_factory=lambda: list(SO101))
    cameras: dict[str, MockCamera] = field(default_factory=lambda: {"front": MockCamera()})
    degrees: bool | None = True
    calibrated: bool = True
    start: float = 0.0
    fails_after: int = 10**9


class MockRobot(Robot):
    config_class = MockRobotConfig
    name = "mock_robot"
    #: Every one that was connected, the last one last.
    connected_ones: ClassVar[list[MockRobot]] = []
    #: Called after each command.
    when_sent: ClassVar[Callable[[MockRobot], None]] = lambda robot: None

    def __init__(self, config: MockRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self.places = {f"{joint}.pos": config.start for joint in config.joints}
        self.sent: list[dict[str, float]] = []
        self._connected = False
        if config.degrees is not None:
            body = MotorNormMode.DEGREES if config.degrees else MotorNormMode.RANGE_M100_100
            motors = {
                joint: Motor(number, "sts3215", body)
                for number, joint in enumerate(config.joints, 1)
            }
            if "gripper" in motors:
                motors["gripper"].norm_mode = MotorNormMode.RANGE_0_100
            self.bus = SimpleNamespace(motors=motors, model_resolution_table={"sts3215": 4096})
            if config.calibrated:
                # A quarter of a turn to either side.
                self.calibration = {
                    joint: MotorCalibration(motor.id, 0, 0, 1024, 3071)
                    for joint, motor in motors.items()
                }

    @property
    def observation_features(self) -> dict[str, Any]:
        cameras = {name: (c.height, c.width, 3) for name, c in self.config.cameras.items()}
        return {**dict.fromkeys(self.places, float), **cameras}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(self.places, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    def connect(self, calibrate: bool = True) -> None:
        self._connected = True
        self.connected_ones.append(self)

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None:
        raise AssertionError("a try does not calibrate")

    def configure(self) -> None:
        pass

    def get_observation(self) -> dict[str, Any]:
        pictures = {
            name: np.full((camera.height, camera.width, 3), 128, np.uint8)
            for name, camera in self.config.cameras.items()
        }
        return {**self.places, **pictures}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        if len(self.sent) >= self.config.fails_after:
            raise ConnectionError("no status packet from the bus")
        self.sent.append(dict(action))
        self.places |= action
        MockRobot.when_sent(self)
        return action

    def disconnect(self) -> None:
        self._connected = False
