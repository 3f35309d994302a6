"""An owner's robot, as LeRobot's configuration file and LeRobot's driver describe it.

Nothing here opens a port: a driver tells names, units and calibration before it connects.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import draccus
import lerobot.scripts.lerobot_rollout  # noqa: F401  registers the robots and cameras it takes
import yaml
from draccus.utils import DraccusException
from lerobot.motors import MotorNormMode
from lerobot.robots import RobotConfig, make_robot_from_config
from lerobot.utils.import_utils import register_third_party_plugins

from zk0d.config.base import suggest
from zk0d.errors import ConfigError, UnavailableError

#: A file of a whole ``lerobot-rollout`` has the robot under this key.
_ROBOT = "robot"
#: What of a robot's numbers LeRobot's rollout gives to a policy, and takes from it.
_ENDINGS = (".pos", ".vel")


class Unit(Enum):
    """What a joint is measured in."""

    DEGREES = "degrees"
    EITHER = "-100 to 100"
    PERCENT = "0 to 100"


_UNITS = {
    MotorNormMode.DEGREES: Unit.DEGREES,
    MotorNormMode.RANGE_M100_100: Unit.EITHER,
    MotorNormMode.RANGE_0_100: Unit.PERCENT,
}
_ENDS = {Unit.EITHER: (-100.0, 100.0), Unit.PERCENT: (0.0, 100.0)}


@dataclass(frozen=True)
class RobotFile:
    """LeRobot's configuration of a robot.

    Attributes
    ----------
    content
        As it stands in the file.
    kind
        LeRobot's name of the type there; one class may have several.
    """

    path: Path
    content: Mapping[str, Any]
    kind: str
    config: RobotConfig

    @classmethod
    def read(cls, path: Path) -> RobotFile:
        """Read the file, YAML or JSON.

        Raises
        ------
        ConfigError
            If it cannot be read, or LeRobot knows no such robot.
        """
        _register_plugins()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            said = getattr(error, "strerror", None) or str(error).replace("\n", " ")
            raise ConfigError(f"{path}: the robot's file cannot be read ({said}).") from None
        if isinstance(content, dict) and isinstance(content.get(_ROBOT), dict):
            content = content[_ROBOT]
        known = sorted(RobotConfig.get_known_choices())
        kind = content.get("type") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(kind, str):
            raise ConfigError(
                f"{path}: it has no robot's 'type'; write LeRobot's configuration of a robot, such"
                " as type: so101_follower, port, id and cameras."
            )
        if kind not in known:
            raise ConfigError(
                f"{path}: type: LeRobot {version('lerobot')} knows no robot"
                f" '{kind}'{suggest(kind, known)}; it knows {', '.join(known)}."
            )
        try:
            config = draccus.decode(RobotConfig, content)
        except (DraccusException, ValueError, TypeError) as error:
            said = str(error.__cause__ or error).rstrip(".").replace("\n", " ")
            raise ConfigError(f"{path}: LeRobot does not take it for a '{kind}': {said}.") from None
        if config.calibration_dir is not None:
            config.calibration_dir = config.calibration_dir.expanduser().absolute()
        return cls(path, content, kind, config)

    def driver(self) -> Any:
        """LeRobot's driver, which is not connected.

        Raises
        ------
        UnavailableError
            If its packages are not here.
        ConfigError
            If it does not take the configuration.
        """
        try:
            return make_robot_from_config(self.config)
        except ImportError as error:
            wanted = f"lerobot[{_extra(str(error))}]=={version('lerobot')}"
            raise UnavailableError(
                f"{self.path}: the driver of '{self.kind}' is not installed beside zk0d"
                f" ({_first_sentence(error)}); install it there: pip install '{wanted}'.",
                reason="driver_missing",
            ) from None
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError(
                f"{self.path}: LeRobot cannot make a '{self.kind}' of it"
                f" ({_first_sentence(error)}); correct the file."
            ) from None


@dataclass(frozen=True)
class ArmCamera:
    """A camera of the robot's: pixels, colour channels and pictures per second."""

    height: int
    width: int
    channels: int
    fps: float | None = None


@dataclass(frozen=True)
class Arm:
    """What a policy has to fit.

    Attributes
    ----------
    state, action
        Names of the numbers, in the order in which LeRobot gives and takes them.
    units
        By joint; LeRobot does not tell those of every robot.
    reach
        How far joints go by their units and calibration, where that is known.
    calibrated
        ``False`` if the driver would calibrate before it moves.
    """

    kind: str
    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: Mapping[str, ArmCamera]
    units: Mapping[str, Unit] = field(default_factory=dict)
    reach: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    calibrated: bool = True

    @classmethod
    def of(cls, file: RobotFile, driver: Any) -> Arm:
        """What the driver tells."""
        observed = driver.observation_features
        rates = {name: each.fps for name, each in _configured(file).items()}
        cameras = {
            name: ArmCamera(*shape, fps=rates.get(name))
            for name, shape in observed.items()
            if isinstance(shape, tuple) and len(shape) == 3
        }
        motors = getattr(getattr(driver, "bus", None), "motors", None) or {}
        calibration = getattr(driver, "calibration", None) or {}
        units, reach = {}, {}
        for motor, each in motors.items():
            name = f"{motor}.pos"
            if (unit := _UNITS.get(each.norm_mode)) is None:
                continue
            units[name] = unit
            if ends := _ENDS.get(unit) or _degrees(driver.bus, each, calibration.get(motor)):
                reach[name] = ends
        return cls(
            kind=file.kind,
            state=tuple(k for k, v in observed.items() if v is float and k.endswith(_ENDINGS)),
            action=tuple(k for k in driver.action_features if k.endswith(_ENDINGS)),
            cameras=cameras,
            units=units,
            reach=reach,
            calibrated=not motors or bool(calibration),
        )

    @property
    def colour_cameras(self) -> tuple[str, ...]:
        """Those whose pictures a policy takes."""
        return tuple(name for name, camera in self.cameras.items() if camera.channels == 3)


@functools.cache
def _register_plugins() -> None:
    """Import the packages called ``lerobot_robot_*`` and so on, as LeRobot's programs do."""
    register_third_party_plugins()


def _configured(file: RobotFile) -> Mapping[str, Any]:
    cameras: Mapping[str, Any] = getattr(file.config, "cameras", None) or {}
    return cameras


def _degrees(bus: Any, motor: Any, calibration: Any) -> tuple[float, float] | None:
    """How far a motor goes to either side of its middle, by its calibration."""
    turn = getattr(bus, "model_resolution_table", {}).get(motor.model)
    if calibration is None or not turn:
        return None
    half = (calibration.range_max - calibration.range_min) / 2 * 360 / (turn - 1)
    return (-half, half) if math.isfinite(half) and half > 0 else None


def _extra(said: str) -> str:
    """LeRobot's name of the extra that has a driver's package."""
    _, found, rest = said.partition("lerobot[")
    return rest.partition("]")[0] if found else "hardware"


def _first_sentence(error: BaseException) -> str:
    return str(error).partition(". ")[0].replace("\n", " ").rstrip(".")
