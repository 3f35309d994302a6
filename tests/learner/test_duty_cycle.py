from __future__ import annotations

import time

import pytest
import torch

from zk0d.learner.duty_cycle import DutyCycle
from zk0d.learner.tasks import Stopped, TaskControl


class Clock:
    """Stands in for time: a step takes a second, a rest takes what it takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.rested = 0.0
        monkeypatch.setattr("zk0d.learner.duty_cycle.time.perf_counter", lambda: self.now)

    def rest(self, seconds: float) -> None:
        self.now += seconds
        self.rested += seconds


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 1.0])
def test_computing_is_the_share_of_the_time(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    clock = Clock(monkeypatch)
    control = TaskControl()
    monkeypatch.setattr(control, "rest", clock.rest)
    rest = DutyCycle(control, share, torch.device("cpu"))
    for _ in range(20):
        clock.now += 1.0
        rest()
    assert 20.0 / (clock.now - 100.0) == pytest.approx(share)


def test_a_task_that_is_dropped_does_not_rest() -> None:
    control = TaskControl()
    rest = DutyCycle(control, 0.05, torch.device("cpu"))
    control.stop()
    with pytest.raises(Stopped):
        rest()


def test_a_rest_ends_with_the_deadline() -> None:
    control = TaskControl()
    control.set_deadline(0.2)
    began = time.monotonic()
    control.rest(600.0)
    assert time.monotonic() - began < 60
    with pytest.raises(Stopped):
        control.check()
