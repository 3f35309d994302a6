"""How many steps fit into a round's time, by a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest

from zk0d.config.run import StepBounds, TrainingSettings
from zk0d.learning.pace import MEASURED, SETTLED, Pace, SetPace, TimedPace

BOUNDS = StepBounds(5, 80)


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def taken(
    pace: Pace, clock: Clock, each: float, *, first: float = 0.0, ahead: int = 0
) -> list[float]:
    """Train as :func:`zk0d.learning.train.train` does; where each step was in the schedule.

    ``first`` is what a step takes more while it settles, ``ahead`` how many may be under way.
    """
    places: list[float] = []
    step = 0
    while True:
        while len(places) > step and len(places) - step > min(ahead, pace.steps - step - 1):
            clock.now += each + (first if step < SETTLED else 0.0)
            step += 1
            pace.took(step)
        if step >= pace.steps:
            return places
        places.append(pace.place(len(places)))


def timed(clock: Clock, seconds: float, known: float | None = None) -> TimedPace:
    return TimedPace(seconds, 40, BOUNDS, known, clock)


@pytest.mark.parametrize("known", [None, 0.5, 0.1, 5.0])
@pytest.mark.parametrize("each", [0.25, 0.5, 1.0, 2.0, 2.5])
def test_a_node_takes_what_there_is_time_for(each: float, known: float | None) -> None:
    """Whatever it took in an earlier round: this one's steps are measured, too."""
    clock = Clock()
    pace = timed(clock, 20.0, known)
    count = len(taken(pace, clock, each))
    assert count == 20.0 / each
    assert clock.now == 120.0
    assert pace.measured == (each if count >= SETTLED + MEASURED else None)


def test_what_the_first_steps_take_more_is_not_measured() -> None:
    clock = Clock()
    pace = timed(clock, 20.0)
    assert len(taken(pace, clock, 0.5, first=2.0)) == SETTLED + (20 - SETTLED * 2.5) / 0.5
    assert pace.measured == 0.5


@pytest.mark.parametrize(("each", "count"), [(1e-6, 80), (0.0, 80), (60.0, 5)])
def test_a_node_stays_within_the_bounds(each: float, count: int) -> None:
    """Be a step faster than a clock can tell, or slower than the round."""
    clock = Clock()
    assert len(taken(timed(clock, 20.0), clock, each)) == count


def test_what_is_under_way_when_the_time_is_up_counts() -> None:
    clock = Clock()
    count = len(taken(timed(clock, 20.0), clock, 1.0, ahead=2))
    assert 20 <= count <= 22
    assert len(taken(timed(clock, 20.0), clock, 0.1, ahead=2)) == 80, "but never more than the most"


def test_a_machine_that_slows_down_ends_in_time() -> None:
    """Somebody begins to play a game on it."""
    clock = Clock()
    pace = timed(clock, 20.0, known=0.4)
    step = 0
    while step < pace.steps:
        pace.place(step)
        step += 1
        clock.now += 0.4 if step <= 20 else 2.0
        pace.took(step)
    assert 26 <= step <= 27
    assert clock.now - 100.0 < 20.0 + 2.0


@pytest.mark.parametrize("known", [None, 0.25, 4.0])
def test_every_node_goes_through_the_whole_part_of_the_schedule(known: float | None) -> None:
    """From the round's begin to its end, evenly, and never back."""
    clock = Clock()
    places = taken(timed(clock, 20.0, known), clock, 0.5)
    assert places[0] == 0.0
    assert all(a < b < 40.0 for a, b in pairwise(places))
    assert places[-1] == pytest.approx(40.0 - (places[-1] - places[-2]), abs=0.1)


def test_equal_shares_of_a_round_have_equal_places() -> None:
    slow, fast = (taken(timed(c := Clock(), 20.0, each), c, each) for each in (1.0, 0.25))
    assert (len(slow), len(fast)) == (20, 80)
    assert fast[::4] == pytest.approx(slow)


def test_a_set_number_of_steps() -> None:
    assert taken(SetPace(4, 4), Clock(), 1.0) == [0, 1, 2, 3]
    assert taken(SetPace(4, 8), Clock(), 1.0) == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]


def test_bounds_follow_local_steps() -> None:
    assert TrainingSettings(local_steps=40).step_bounds == StepBounds(40, 40)
    assert TrainingSettings(local_steps=40, round_minutes=1.0).step_bounds == StepBounds(5, 80)
    assert TrainingSettings(local_steps=1, round_minutes=1.0).step_bounds == StepBounds(1, 2)
    assert StepBounds(5, 80).at_most(30) == StepBounds(5, 30)
