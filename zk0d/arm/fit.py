"""Whether a policy fits an arm: everything that can be known before a motor moves.

LeRobot starts a policy on another robot without a word as long as the numbers are as many: joints
in another order, degrees beside percent and a camera in another's place all move the arm.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zk0d.arm.robot import Arm, Unit
from zk0d.config.cameras import MappedAt, camera_feature, did_you_mean, suggest_cameras
from zk0d.config.families import FAMILIES
from zk0d.config.names import CONFIG_FILE
from zk0d.errors import DataError, UsageError
from zk0d.learning.layout import ACTION
from zk0d.learning.robot import MOST_DEGREES, differences, group_of
from zk0d.learning.spec import SAME_RATE, Components, RobotDescription
from zk0d.learning.statistics import Statistics, still
from zk0d.learning.trained import TrainedPolicy

#: LeRobot's rollout takes this rate if none is named.
USUAL_RATE = 30.0
#: Beyond the ends of a unit by so much no number is a rounded one.
_SLACK = 0.5
#: A joint whose range ends as near as this to -100 or 100 was cut off there.
_CUT = 0.05
_OPTION = "--robot-config"


@dataclass(frozen=True)
class Fit:
    """How the two go together.

    Attributes
    ----------
    cameras
        The policy's camera by the robot's; empty for one that is left out.
    fps
        Actions per second.
    notices
        What nothing here can tell, a sentence each.
    """

    cameras: Mapping[str, str]
    fps: float
    notices: tuple[str, ...]

    @property
    def renamed(self) -> dict[str, str]:
        """LeRobot's ``rename_map``; it checks no cameras then, which is done here."""
        pairs = {
            camera_feature(own): camera_feature(to or f"{own}_left_out")
            for own, to in self.cameras.items()
        }
        return pairs if any(own != to for own, to in pairs.items()) else {}


def group_for(policy: TrainedPolicy, arm: Arm, asked: str, alias: str) -> str:
    """Whose processors of the policy's the arm needs; empty if all arms have the same.

    Parameters
    ----------
    asked
        The group that the owner named; empty if none.
    alias
        What this node is called in runs; empty if it is no node.

    Raises
    ------
    UsageError
        If the policy has no such group, or has groups and none is this arm's.
    """
    known = ", ".join(policy.groups)
    if asked:
        if asked not in policy.groups:
            has = f"it has {known}" if known else "all arms share its statistics; leave it out"
            raise UsageError(f"--group: {policy.title} has no statistics of '{asked}'; {has}.")
        return asked
    if not policy.groups:
        return ""
    own = (alias, group_of("robot-type", "", arm.kind))
    if found := next((each for each in own if each and each in policy.groups), ""):
        return found
    raise UsageError(
        f"{policy.title} normalizes by group ({known}), and none is a {arm.kind}'s"
        f"{f' or called {alias}' if alias else ''}; with another's statistics the arm would go"
        " elsewhere. Name yours with --group, or take another policy."
    )


def check(
    policy: TrainedPolicy,
    statistics: Statistics,
    arm: Arm,
    *,
    rate: float | None,
    asked_rate: float | None = None,
    cameras: Mapping[str, str] | None = None,
    mixed_units: bool = False,
) -> Fit:
    """Refuse a policy that does not fit the arm.

    Parameters
    ----------
    statistics
        Those of the arm's group.
    rate
        Frames per second that the policy is made for, if it says so.
    asked_rate, cameras, mixed_units
        What the owner typed.

    Raises
    ------
    DataError
        With reason ``robot_mismatch``, ``units_mismatch``, ``camera_missing`` or ``rate_mismatch``.
    UsageError
        If ``cameras`` name none.
    """
    if not arm.calibrated:
        raise DataError(
            f"{_OPTION}: this {arm.kind} was never calibrated here under its id; run"
            f" lerobot-calibrate --robot.type={arm.kind} with its port and id.",
            reason="not_calibrated",
        )
    notices = [*_joints(policy, statistics, arm, mixed_units)]
    notices += _scales(policy, statistics, arm, mixed_units)
    mapped = _cameras(policy, arm, cameras or {})
    notices += _pictures(policy, arm, mapped)
    fps = _rate(policy, arm, rate, asked_rate)
    if rate is None and asked_rate is None:
        notices.append(
            f"{policy.title} does not say for how many frames per second it is made; {fps:g} are"
            " taken (--fps)."
        )
    return Fit(mapped, fps, tuple(notices))


def _joints(
    policy: TrainedPolicy, statistics: Statistics, arm: Arm, mixed_units: bool
) -> Iterator[str]:
    own = RobotDescription(
        robot_type=arm.kind,
        state=Components(names=arm.state),
        action=Components(names=arm.action),
    )
    if blind := [name for name in arm.action if name.endswith(".pos") and name not in arm.state]:
        raise DataError(
            f"{_OPTION}: the robot does not tell where {blind[0]} is, so no step of it can be"
            " limited; start lerobot-rollout by hand.",
            reason="robot_mismatch",
        )
    like = policy.robot(statistics, arm.kind)
    for each in differences(own, like, f"{policy.title}'s recordings"):
        if not each.reason:
            yield f"{each.text}."
            continue
        if each.allowable and mixed_units:
            yield f"{each.text} (--allow-mixed-units lets it pass)."
            continue
        allow = ", or let it pass with --allow-mixed-units" if each.allowable else ""
        raise DataError(
            f"{_OPTION}: {each.text}; take a policy of this robot{allow}.", reason=each.reason
        )
    if not like.robot_type:
        yield f"{policy.title} does not say of which robot it is; this is a {arm.kind}."


def _scales(
    policy: TrainedPolicy, statistics: Statistics, arm: Arm, mixed_units: bool
) -> Iterator[str]:
    """Whether the recordings' numbers can be those of the arm's units."""
    if unknown := [name for name in arm.action if name not in arm.units]:
        yield (
            f"LeRobot does not say in which units {unknown[0]} is; compare the ranges with those"
            " that your robot shows."
        )
    told = statistics.features[ACTION]
    for text in _other_units(policy.title, arm, np.array([told.min, told.max])):
        if not mixed_units:
            raise DataError(
                f"{_OPTION}: {text}; change the robot's units (use_degrees of an SO-101), take a"
                " policy of these units, or let it pass with --allow-mixed-units.",
                reason="units_mismatch",
            )
        yield f"{text} (--allow-mixed-units lets it pass)."


def _other_units(title: str, arm: Arm, ends: NDArray[np.float64]) -> Iterator[str]:
    """What of the ranges, shape ``(2, joints)``, no joint of the arm can have."""
    low, high = ends
    far = np.abs(ends).max(0)
    moves = ~still(low, high)
    body = []  # joints but for grippers, which are percent beside any unit
    for number, name in enumerate(arm.action):
        unit = arm.units.get(name)
        said = f"{name} goes from {low[number]:.4g} to {high[number]:.4g} in {title}'s recordings"
        is_percent = unit is Unit.PERCENT
        if is_percent and (low[number] < -_SLACK or high[number] > 100 + _SLACK):
            yield f"{said}, the robot's from 0 to 100"
        elif is_percent and moves[number] and high[number] <= 1 + 1e-3:
            yield f"{said}, as a share of 1, the robot's from 0 to 100"
        elif unit is Unit.EITHER and far[number] > 100 + _SLACK:
            yield f"{said}, as degrees, the robot's from -100 to 100"
        elif unit is Unit.DEGREES and far[number] > MOST_DEGREES:
            yield f"{said}, as servo ticks, the robot's are degrees"
        elif unit is Unit.DEGREES and name in arm.reach:
            lowest, highest = arm.reach[name]
            if low[number] > highest or high[number] < lowest:
                yield (
                    f"{said}, by the robot's calibration from {lowest:.4g} to {highest:.4g}; its"
                    " zero lies elsewhere"
                )
        if unit in (Unit.DEGREES, Unit.EITHER) and moves[number]:
            body.append(number)
    if not body:
        return
    unit = arm.units[arm.action[body[0]]]
    here = "degrees" if unit is Unit.DEGREES else f"from {unit.value}"
    if far[body].max() <= 2 * np.pi:
        yield (
            f"no joint goes further than {far[body].max():.3g} in {title}'s recordings, as radians,"
            f" the robot's are {here}"
        )
    elif unit is Unit.DEGREES and far[body].max() <= 100 + _CUT:
        cut = [n for n in body if abs(far[n] - 100) <= _CUT]
        if cut:
            yield (
                f"{arm.action[cut[0]]} ends at {far[cut[0]]:.4g} and no joint goes further in"
                f" {title}'s recordings, as from -100 to 100, the robot's are degrees"
            )


def _cameras(policy: TrainedPolicy, arm: Arm, asked: Mapping[str, str]) -> dict[str, str]:
    have = arm.colour_cameras
    for own, to in asked.items():
        if own not in have:
            raise UsageError(
                f"--camera: the robot has no camera '{own}'{did_you_mean(own, have)}; it has"
                f" {', '.join(have) or 'none'}."
            )
        if to and to not in policy.cameras:
            raise UsageError(
                f"--camera: {policy.title} knows no camera '{to}'{did_you_mean(to, policy.cameras)}"
                f"; it knows {', '.join(policy.cameras) or 'none'}."
            )
    names = {own: asked.get(own, own) for own in have}
    mapped = {own: to for own, to in names.items() if to in policy.cameras}
    left_out = {own: "" for own in names if own in policy.cameras and not names[own]}
    if twice := next((to for to in mapped.values() if [*mapped.values()].count(to) > 1), ""):
        raise UsageError(
            f"--camera maps two of the robot's cameras to '{twice}'; leave one out, such as"
            f" --camera {twice}=."
        )
    missing = [name for name in policy.cameras if name not in mapped.values()]
    spare = [own for own in have if own not in mapped and names[own]]
    # One more camera may be a missing one under another name.
    if not missing or (FAMILIES[policy.family].spares_cameras and mapped and not spare):
        return mapped | left_out
    suggested = suggest_cameras(spare, missing)
    has = ", ".join(have) or "none"
    do = f"map it ({MappedAt.COMMAND.spell(suggested)}) or " if suggested else ""
    raise DataError(
        f"{_OPTION}: {policy.title} sees by camera '{missing[0]}', and the robot has {has};"
        f" {do}add the camera to the file.",
        reason="camera_missing",
    )


def _pictures(policy: TrainedPolicy, arm: Arm, mapped: Mapping[str, str]) -> Iterator[str]:
    """Cameras whose pictures have another size than those of the recordings."""
    features = json.loads((policy.folder / CONFIG_FILE).read_text())["input_features"]
    for own, to in mapped.items():
        if not to:
            continue
        shape = tuple(features[camera_feature(to)]["shape"])[1:]
        camera = arm.cameras[own]
        if shape != (camera.height, camera.width):
            yield (
                f"camera '{own}' gives pictures of {camera.width}x{camera.height}, {policy.title}"
                f" was trained on {shape[1]}x{shape[0]}; LeRobot does not make them alike."
            )


def _rate(policy: TrainedPolicy, arm: Arm, rate: float | None, asked: float | None) -> float:
    if rate is not None and asked is not None and abs(asked - rate) > SAME_RATE * rate:
        raise DataError(
            f"--fps: {policy.title} is made for {rate:g} frames per second; at {asked:g} the arm"
            " would move at another speed. Leave --fps out.",
            reason="rate_mismatch",
        )
    fps = asked or rate or USUAL_RATE
    for name in arm.colour_cameras:
        own = arm.cameras[name].fps
        if own is not None and own < fps * (1 - SAME_RATE):
            raise DataError(
                f"{_OPTION}: camera '{name}' gives {own:g} pictures per second,"
                f" {policy.title} acts {fps:g} times; let the camera give {fps:g}.",
                reason="rate_mismatch",
            )
    return fps
