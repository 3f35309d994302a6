"""Which robot recordings are of, and whether those of two owners may train one policy. No torch.

Weights and statistics look alike whatever robot they come from: joints in another order, or radians
beside degrees, train in silence and end in a policy that fails on every robot. What a policy reads
and writes is a list of numbers, so robots are compared by what the numbers are called and how far
they go.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zk0d.config.run import NormalizeBy
from zk0d.errors import DataError
from zk0d.learning.spec import Components, RobotDescription

#: A refusal lists so many names.
MOST_LISTED = 48
#: A component whose range is narrower stood still, in any unit, and says nothing of its scale.
STILL = 0.02
#: Two ranges of one joint, in one unit, seldom differ by more than this factor. Between radians and
#: degrees lie 57, between degrees and a servo's ticks about 20.
OTHER_SCALE = 10.0
#: No joint turns so many degrees, and a servo's ticks seldom stay below.
MOST_DEGREES, FEWEST_TICKS, TICKS = 400.0, 720.0, 4096.0
_GRIPPER = re.compile(r"grip|jaw|finger|claw")
_SO_ARM = re.compile(r"so[-_ ]?(arm)?[-_ ]?10[01]|^so(_follower)?$")
_NO_FOLDER = re.compile(r"[^a-z0-9-]+")

Reason = Literal["robot_mismatch", "units_mismatch", ""]


@dataclass(frozen=True)
class Difference:
    """What lies between two robots.

    Attributes
    ----------
    reason
        Why recordings of both may not train one policy; empty for what is unknown.
    text
        A clause without an end: what is so here and what there.
    allowable
        Whether ``allow-mixed-units`` lets it pass.
    """

    reason: Reason
    text: str
    allowable: bool = False


def differences(
    robot: RobotDescription, like: RobotDescription, whose: str
) -> Iterator[Difference]:
    """What is other in ``robot`` than in ``like``, which is ``whose``; the gravest first."""
    unknown = []
    apart = list(_names(robot, like, whose))
    for each in apart:
        if each.reason:
            yield each
        else:
            unknown.append(each)
    mine, theirs = _kind(robot.robot_type), _kind(like.robot_type)
    if mine and theirs and mine != theirs and len(unknown) == len(apart):
        yield Difference(
            "robot_mismatch",
            f"the robot is a {robot.robot_type}, that of {whose} a {like.robot_type}, whose joints"
            " have other zeros and directions",
            allowable=True,
        )
    for what in ("state", "action"):
        own, other = getattr(robot, what), getattr(like, what)
        if own.low and len(own.low) == len(other.low):
            yield from _scale(what, own, other, whose)
    yield from unknown


def check_robot(
    robot: RobotDescription | None,
    like: RobotDescription | None,
    *,
    where: str,
    whose: str,
    mixed_units: bool = False,
) -> list[str]:
    """Refuse a robot whose recordings may not train one policy with those of ``like``.

    Parameters
    ----------
    robot
        ``None`` if its owner does not tell; ``like`` is ``None`` if there is none yet.
    where, whose
        What the sentences call the two.
    mixed_units
        The run's or command's ``allow-mixed-units``.

    Returns
    -------
    What a reader should know, a sentence each.

    Raises
    ------
    DataError
        With reason ``robot_mismatch`` or ``units_mismatch``.
    """
    if robot is None:
        return [f"{where}: its owner does not say which robot it is; compare joints and units."]
    if like is None:
        return []
    notices = []
    for each in differences(robot, like, whose):
        if each.reason and not (each.allowable and mixed_units):
            raise DataError(sentence(each, where), reason=each.reason)
        allowed = " (allow-mixed-units lets it pass)" if each.reason else ""
        notices.append(f"{where}: {each.text}{allowed}.")
    return notices


def sentence(each: Difference, where: str) -> str:
    """A difference that is refused, and what to do about it."""
    cure = "leave one of them out, or rewrite a copy of it with the other's joints"
    if each.allowable:
        cure = "convert a copy of one of them, or allow it with allow-mixed-units"
    return f"{where}: {each.text}; {cure}."


def merge_robots(robots: Iterable[RobotDescription]) -> RobotDescription | None:
    """One that goes as far as all of them, with the first names that are known."""
    parts = list(robots)
    if not parts:
        return None
    return RobotDescription(
        robot_type=next((part.robot_type for part in parts if _kind(part.robot_type)), ""),
        state=_merge([part.state for part in parts]),
        action=_merge([part.action for part in parts]),
    )


def _merge(parts: list[Components]) -> Components:
    names = next((part.names for part in parts if part.names), ())
    width = len(names) or next((part.width for part in parts if part.width), 0)
    ranges = [part for part in parts if part.low and len(part.low) == width]
    if not ranges:
        return Components(names=names)
    return Components(
        names=names,
        low=tuple(np.min([part.low for part in ranges], axis=0).tolist()),
        high=tuple(np.max([part.high for part in ranges], axis=0).tolist()),
    )


def _kind(robot_type: str) -> str:
    """What robots of one kind share: an SO-100 and an SO-101 have the same joints and ranges."""
    plain = robot_type.strip().lower()
    if plain in ("unknown", "none", "null"):
        return ""
    for word in ("_follower", "_leader", "_client", "_robot"):
        plain = plain.replace(word, "")
    return _SO_ARM.sub("so", plain)


def group_of(by: NormalizeBy, name: str, robot_type: str) -> str:
    """In whose group of statistics recordings are: those of the node ``name`` or of a robot type.

    A group's name can name a folder. It is empty if all are one group, and ``unknown`` for robots
    of no known type.
    """
    if by == "cohort":
        return ""
    return name if by == "node" else _NO_FOLDER.sub("-", _kind(robot_type)).strip("-") or "unknown"


def _plain(name: str) -> str:
    """A joint's name without what versions of LeRobot write differently."""
    return name.lower().removesuffix(".pos")


def _names(robot: RobotDescription, like: RobotDescription, whose: str) -> Iterator[Difference]:
    for what in ("state", "action"):
        own, other = getattr(robot, what), getattr(like, what)
        if own.width and other.width and own.width != other.width:
            yield Difference(
                "robot_mismatch",
                f"the {what} has {own.width} values ({_listed(own.names)}), that of {whose}"
                f" {other.width} ({_listed(other.names)})",
            )
        elif not own.names or not other.names:
            if not _within(own, other):
                whom = f"of {whose} " if own.names else ""
                yield Difference(
                    "", f"the names of the {what}'s values {whom}are unknown; compare their order"
                )
        else:
            mine, theirs = [_plain(n) for n in own.names], [_plain(n) for n in other.names]
            if mine == theirs:
                continue
            how = "in another order than" if sorted(mine) == sorted(theirs) else "others than"
            yield Difference(
                "robot_mismatch",
                f"the {what}'s values ({_listed(own.names)}) are {how} those of {whose}"
                f" ({_listed(other.names)})",
            )


def _within(own: Components, other: Components) -> bool:
    """Whether nothing is told of ``own`` that is not as far as is known of ``other``."""
    if own.names != other.names or len(own.low) != len(other.low):
        return False
    ends = zip(own.low, own.high, other.low, other.high, strict=True)
    return all(low >= lowest and high <= highest for low, high, lowest, highest in ends)


def _scale(what: str, own: Components, other: Components, whose: str) -> Iterator[Difference]:
    """Components on another scale, by their ranges.

    One joint may stand nearly still in one dataset and swing in the other, so that a single range
    proves nothing, unless it is a servo's ticks or a gripper's: a gripper opens in every task.
    Three joints, or half of those that move, are no chance.
    """
    mine, theirs = np.array([own.low, own.high]).T, np.array([other.low, other.high]).T
    moves = (np.ptp(mine, 1) > STILL) & (np.ptp(theirs, 1) > STILL)
    reach, reach_there = np.abs(mine).max(1), np.abs(theirs).max(1)
    factor = reach / np.maximum(reach_there, 1e-12)
    ticks = _is_ticks(mine) & (reach_there < MOST_DEGREES)
    ticks |= _is_ticks(theirs) & (reach < MOST_DEGREES)
    names = own.names or other.names or tuple(f"value {n}" for n in range(len(mine)))
    gripper = np.array([bool(_GRIPPER.search(name.lower())) for name in names])
    for far in (factor >= OTHER_SCALE, factor <= 1 / OTHER_SCALE):
        far = far & moves
        if not far.any():
            continue
        sure = far if far.sum() >= min(3, moves.sum() / 2) else far & (ticks | gripper)
        told = sure if sure.any() else far
        first = int(told.argmax())
        more, have = (f" and {told.sum() - 1} more", "have") if told.sum() > 1 else ("", "has")
        scale = f"{have if sure.any() else 'may have'} another scale"
        units, units_there = _units(mine[told]), _units(theirs[told])
        guess = f", as {units} beside {units_there}" if units != units_there else ""
        text = (
            f"the {what}'s {names[first]}{more} {scale}: {_range(mine[first])} here,"
            f" {_range(theirs[first])} in {whose}{guess}"
        )
        if sure.any():
            yield Difference("units_mismatch", text, allowable=True)
        else:
            yield Difference("", text)


def _is_ticks(ranges: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of the ranges, shape ``(width, 2)``, are those of a servo's encoder."""
    found: NDArray[np.bool_] = (ranges[:, 0] >= 0) & (ranges[:, 1] > FEWEST_TICKS)
    return found & (ranges[:, 1] <= TICKS)


def _units(ranges: NDArray[np.float64]) -> str:
    """What such ranges, shape ``(n, 2)``, are usually recorded in."""
    reach = float(np.abs(ranges).max())
    if reach <= 1:
        return "a range of 1"
    if reach <= 2 * np.pi:
        return "radians"
    if reach <= MOST_DEGREES:
        return "degrees"
    return "servo ticks" if _is_ticks(ranges).any() else "another unit"


def _range(ends: NDArray[np.float64]) -> str:
    return f"{ends[0]:.4g} to {ends[1]:.4g}"


def _listed(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return (", ".join(names[:MOST_LISTED]) + more) or "unknown names"
