"""What an arm is not asked to do, whatever the policy says.

LeRobot's loop sends a policy's actions to a robot as they are. :class:`HeldRobot` stands between:
no goal lies outside of a joint's limits, and none is further than a step from the one before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zk0d.errors import Zk0dError
from zk0d.learning.statistics import FeatureStatistics

#: A joint that stood still in the recordings counts as moving by this share of the widest range:
#: with a step of zero it would never reach where it shall stand.
_STILL = 0.02


@dataclass(frozen=True)
class JointLimit:
    """How far a joint may be sent, and how far in a tick; in the robot's units."""

    name: str
    low: float
    high: float
    step: float


@dataclass(frozen=True)
class Limits:
    """Those of every joint, in the order of the actions."""

    joints: tuple[JointLimit, ...]

    @classmethod
    def of(
        cls,
        names: tuple[str, ...],
        actions: FeatureStatistics,
        reach: Mapping[str, tuple[float, float]],
        *,
        fps: float,
        speed: float,
        margin: float,
    ) -> Limits:
        """By what the recordings asked for.

        Parameters
        ----------
        reach
            Of the joints whose calibration tells how far they go.
        speed
            How many of its training ranges a joint may move in a second.
        margin
            Beyond the training range at either side, as a share of it.
        """
        ranges = [high - low for low, high in zip(actions.min, actions.max, strict=True)]
        least = _STILL * max(ranges)
        joints = []
        for name, low, high, wide in zip(names, actions.min, actions.max, ranges, strict=True):
            lowest, highest = reach.get(name, (-math.inf, math.inf))
            beyond = margin * max(wide, least)
            joints.append(
                JointLimit(
                    name=name,
                    low=max(low - beyond, lowest),
                    high=min(high + beyond, highest),
                    step=max(wide, least) * speed / fps,
                )
            )
        return cls(tuple(joints))


class HeldRobot:
    """A robot of LeRobot's that is sent nothing beyond the limits.

    A joint that stands outside of its limits is led in step by step. The way back to where the arm
    stood when it was connected may end outside, too.
    """

    def __init__(self, robot: Any, limits: Limits) -> None:
        self._robot = robot
        self._limits = {joint.name: joint for joint in limits.joints}
        self._seen: dict[str, float] = {}  #: where the joints were last
        self._sent: dict[str, float] = {}  #: the last goals
        self._home: Mapping[str, float] = {}
        self.commands = 0
        self.held = 0  #: commands that were another before

    def begin(self, home: Mapping[str, float] | None = None) -> None:
        """Begin to move from where the arm is.

        Parameters
        ----------
        home
            Where it is going back to; ``None`` if a policy moves it.
        """
        self._seen, self._sent = {}, {}
        self._home = home or {}
        self.commands = self.held = 0

    def get_observation(self) -> dict[str, Any]:
        """The robot's, whose positions are noted."""
        observed: dict[str, Any] = self._robot.get_observation()
        self._seen = {name: float(observed[name]) for name in self._limits if name in observed}
        return observed

    def send_action(self, action: Mapping[str, Any]) -> Any:
        """Send what of the action is within the limits.

        Raises
        ------
        Zk0dError
            If a number is none; nothing is sent then.
        """
        goals = {}
        held = False
        for name, limit in self._limits.items():
            if name not in action:
                continue
            wanted = float(action[name])
            if not math.isfinite(wanted):
                raise Zk0dError(
                    f"the policy asks {name} for {wanted}, which is not a number; nothing was"
                    " sent to the arm: take another policy.",
                    reason="not_finite",
                )
            goals[name] = self._within(limit, wanted)
            held = held or goals[name] != wanted
        self.commands += 1
        self.held += held
        self._sent |= goals
        return self._robot.send_action(goals)

    def _within(self, limit: JointLimit, wanted: float) -> float:
        home = self._home.get(limit.name)
        low = limit.low if home is None else min(limit.low, home)
        high = limit.high if home is None else max(limit.high, home)
        goal = min(max(wanted, low), high)
        # A base's velocity has no place: it begins at rest.
        before = self._sent.get(limit.name, self._seen.get(limit.name, 0.0))
        if not math.isfinite(before):
            raise Zk0dError(
                f"the arm says that {limit.name} is at {before}, which is not a number;"
                " nothing was sent to it: look at its cables and its calibration.",
                reason="not_finite",
            )
        return min(max(goal, before - limit.step), before + limit.step)

    # What LeRobot's loop asks of a robot besides.

    @property
    def observation_features(self) -> Any:
        return self._robot.observation_features

    @property
    def action_features(self) -> Any:
        return self._robot.action_features

    @property
    def name(self) -> Any:
        return self._robot.name

    @property
    def robot_type(self) -> Any:
        return self._robot.robot_type

    @property
    def cameras(self) -> Any:
        return getattr(self._robot, "cameras", {})

    @property
    def is_connected(self) -> bool:
        return bool(self._robot.is_connected)

    def disconnect(self) -> None:
        self._robot.disconnect()
