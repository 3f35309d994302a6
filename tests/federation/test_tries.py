"""A learner that dies in a round, as its ClientApp sees it."""

from __future__ import annotations

from typing import Any, cast
from unittest.mock import Mock

import pytest

from zk0d.errors import Zk0dError
from zk0d.federation.learner_client import LearnerError
from zk0d.federation.messages import Train
from zk0d.federation.tries import Tries
from zk0d.learning.progress import Training, event_of

TASK: Train = cast("Any", Train).model_construct(round=3, deadline_seconds=100.0)
DIED = LearnerError("the learner is gone.", reason="learner_gone", vanished=True)


class Learner:
    """One that is back after so many looks."""

    def __init__(self, looks: int = 0) -> None:
        self.looks = looks

    def answers(self) -> bool:
        self.looks -= 1
        return self.looks < 0


class Clock:
    def __init__(self) -> None:
        self.now = 50.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tries(clock: Clock) -> Tries:
    return Tries(100.0, lambda event: None, lambda: clock.now, clock.sleep)


def reach(tries: Tries, step: int) -> None:
    tries.take(event_of(Training(step, 1000, 1.0)))


def again(tries: Tries, learner: Any, error: Zk0dError = DIED) -> Train:
    return tries.again(TASK, learner, error)


def test_a_learner_is_waited_for_with_growing_pauses(tries: Tries, clock: Clock) -> None:
    task = again(tries, Learner(looks=6))
    assert clock.pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]
    assert task.deadline_seconds == 100.0 - sum(clock.pauses)


def test_a_learner_that_does_not_come_back_is_waited_for_until_the_end(
    tries: Tries, clock: Clock
) -> None:
    with pytest.raises(LearnerError) as error:
        again(tries, Learner(looks=1000))
    assert error.value is DIED
    assert clock.now == 150.0


def test_one_that_gets_farther_each_time_may_die_often(tries: Tries) -> None:
    for step in (10, 20, 30, 40):
        reach(tries, step)
        again(tries, Learner())


@pytest.mark.parametrize("second", [0, 7, 10])
def test_one_that_gets_no_farther_is_given_up(tries: Tries, second: int) -> None:
    reach(tries, 10)
    again(tries, Learner())
    reach(tries, second)
    with pytest.raises(LearnerError):
        again(tries, Learner())


def test_one_that_dies_before_its_first_step_has_one_more_try(tries: Tries) -> None:
    again(tries, Learner())
    with pytest.raises(LearnerError):
        again(tries, Learner())


@pytest.mark.parametrize(
    "error",
    [
        LearnerError("nobody listens.", reason="learner_gone"),
        LearnerError("it said nothing.", reason="learner_silent"),
        Zk0dError("the day's bytes are spent.", reason="line_rests"),
    ],
)
def test_nothing_else_is_waited_for(tries: Tries, clock: Clock, error: Zk0dError) -> None:
    with pytest.raises(Zk0dError) as caught:
        again(tries, Learner(), error)
    assert caught.value is error
    assert clock.pauses == []


def test_one_that_is_away_again_when_it_gets_the_round_is_waited_for(tries: Tries) -> None:
    reach(tries, 10)
    again(tries, Learner())
    reach(tries, 20)
    again(tries, Learner(), LearnerError("nobody listens.", reason="learner_gone"))


def test_events_are_passed_on(clock: Clock) -> None:
    progress = Mock()
    Tries(1.0, progress, lambda: clock.now, clock.sleep).take({"event": "alive"})
    progress.assert_called_once_with({"event": "alive"})
