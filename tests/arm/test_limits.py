"""No goal lies outside of a joint's limits, or further than a step from the one before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.arm.policies import HIGH, JOINTS, LOW, statistics
from zk0d.arm.limits import HeldRobot, JointLimit, Limits
from zk0d.errors import Zk0dError
from zk0d.learning.layout import ACTION
from zk0d.learning.statistics import FeatureStatistics

LIMITS = Limits((JointLimit("pan.pos", -10.0, 20.0, 2.0), JointLimit("grip.pos", 0.0, 100.0, 5.0)))


class FakeRobot:
    """Is at once where it is sent."""

    name = robot_type = "fake"

    def __init__(self, **places: float) -> None:
        self.places = {f"{joint}.pos": place for joint, place in places.items()}
        self.sent: list[dict[str, float]] = []

    def get_observation(self) -> dict[str, Any]:
        return {**self.places, "front": np.zeros((2, 2, 3), np.uint8)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.sent.append(action)
        self.places |= action
        return action


def began(**places: float) -> tuple[HeldRobot, FakeRobot]:
    robot = FakeRobot(**places)
    held = HeldRobot(robot, LIMITS)
    held.begin()
    held.get_observation()
    return held, robot


def test_a_jump_becomes_steps_and_ends_at_the_limit() -> None:
    held, robot = began(pan=0.0, grip=50.0)
    for _ in range(20):
        held.send_action({"pan.pos": 1000.0, "grip.pos": -1000.0})
    pans = [0.0, *(sent["pan.pos"] for sent in robot.sent)]
    assert max(np.diff(pans)) == 2.0
    assert pans[-1] == 20.0
    assert robot.sent[-1]["grip.pos"] == 0.0
    assert (held.commands, held.held) == (20, 20)


def test_what_is_within_the_limits_is_sent_as_it_is() -> None:
    held, robot = began(pan=0.0, grip=50.0)
    held.send_action({"pan.pos": 1.5, "grip.pos": 54.0})
    assert robot.sent == [{"pan.pos": 1.5, "grip.pos": 54.0}]
    assert (held.commands, held.held) == (1, 0)


def test_random_commands_never_leave_the_limits() -> None:
    held, robot = began(pan=5.0, grip=5.0)
    dice = np.random.default_rng(0)
    before = dict(robot.places)
    for _ in range(500):
        held.send_action({name: dice.normal(0, 60) for name in before})
        for limit in LIMITS.joints:
            now = robot.places[limit.name]
            assert limit.low <= now <= limit.high
            assert abs(now - before[limit.name]) <= limit.step + 1e-9
        before = dict(robot.places)


def test_a_joint_outside_of_its_limits_is_led_in_by_steps() -> None:
    held, robot = began(pan=-15.0, grip=50.0)
    for _ in range(4):
        held.send_action({"pan.pos": 100.0, "grip.pos": 50.0})
    assert [sent["pan.pos"] for sent in robot.sent] == [-13.0, -11.0, -9.0, -7.0]


def test_the_way_home_may_end_where_the_arm_stood() -> None:
    held, robot = began(pan=-15.0, grip=50.0)
    held.begin({"pan.pos": -15.0})
    robot.places["pan.pos"] = -9.0
    held.get_observation()
    for _ in range(9):
        held.send_action({"pan.pos": -40.0, "elsewhere.pos": 3.0})
    assert robot.places["pan.pos"] == -15.0
    assert "elsewhere.pos" not in robot.places


def test_the_first_step_is_from_where_the_arm_is_now() -> None:
    held, robot = began(pan=0.0, grip=50.0)
    held.send_action({"pan.pos": 2.0})
    robot.places["pan.pos"] = 15.0  # moved by hand between two episodes
    held.begin()
    held.get_observation()
    held.send_action({"pan.pos": 20.0})
    assert robot.places["pan.pos"] == 17.0


@pytest.mark.parametrize("wanted", [math.nan, math.inf])
def test_something_else_than_a_number_is_not_sent(wanted: float) -> None:
    held, robot = began(pan=0.0, grip=50.0)
    with pytest.raises(Zk0dError, match=r"pan\.pos") as refused:
        held.send_action({"grip.pos": 50.0, "pan.pos": wanted})
    assert refused.value.reason == "not_finite"
    assert robot.sent == []


def test_an_arm_that_does_not_know_where_it_is_is_not_moved() -> None:
    held, robot = began(pan=math.nan, grip=50.0)
    with pytest.raises(Zk0dError, match=r"the arm says that pan\.pos is at nan"):
        held.send_action({"pan.pos": 1.0})
    assert robot.sent == []


def test_limits_are_the_training_ranges_with_a_margin_and_within_the_calibration() -> None:
    actions = statistics().features[ACTION]
    reach = {JOINTS[0]: (-50.0, 90.0), JOINTS[5]: (0.0, 100.0)}
    limits = Limits.of(JOINTS, actions, reach, fps=30, speed=2.0, margin=0.05)
    first, second, *_, jaws = limits.joints
    assert (first.low, first.high) == (-50.0, 66.0)
    assert (second.low, second.high) == (LOW[1] - 4.5, HIGH[1] + 4.5)
    assert (jaws.low, jaws.high) == (0.0, 100.0)
    # The whole range takes half a second.
    assert first.step == pytest.approx(120 / 15)


def test_a_joint_that_stood_still_may_be_brought_there() -> None:
    still = FeatureStatistics(
        count=2, mean=(5.0, 0.0), std=(0.0, 50.0), min=(5.0, -100.0), max=(5.0, 100.0)
    )
    limits = Limits.of(("a.pos", "b.pos"), still, {}, fps=10, speed=1.0, margin=0.05)
    joint = limits.joints[0]
    assert joint.step > 0
    assert joint.low < 5.0 < joint.high
    assert joint.high - joint.low < 1.0
