"""A GPU that is kept below its owner's limit; the GPU is a stand-in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zk0d.learner.cooling import BELOW, LOOK_SECONDS, HeatLimit
from zk0d.learner.tasks import Stopped, TaskControl


class Card:
    """A GPU whose heat the test says, by a clock that a rest moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *heats: int) -> None:
        self.now, self.heats, self.rests = 100.0, list(heats), 0
        self.told: list[dict[str, Any]] = []
        self.control = TaskControl(self.told.append)
        monkeypatch.setattr(self.control, "rest", self._rest)

    def limit(self, most: int, device: str = "cuda") -> HeatLimit:
        return HeatLimit(
            self.control,
            most,
            torch.device(device),
            celsius=lambda device: self.heats.pop(0),
            clock=lambda: self.now,
        )

    def _rest(self, seconds: float) -> None:
        self.now += seconds
        self.rests += 1


def test_training_rests_above_the_limit_until_it_is_cooler(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, 80, 81, 80, 77, 76, 75)
    check = card.limit(80)
    check()
    assert card.rests == 0, "at the limit it goes on"
    card.now += LOOK_SECONDS
    check()
    assert card.heats == []
    assert card.rests == 4
    assert [event["celsius"] for event in card.told] == [81, 80, 77, 76]
    assert {event["limit"] for event in card.told} == {80 - BELOW}


def test_a_card_is_asked_every_few_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, 50, 50)
    check = card.limit(80)
    for _ in range(10):
        check()
        card.now += LOOK_SECONDS / 6
    assert card.heats == []


@pytest.mark.parametrize(("most", "device"), [(0, "cuda"), (80, "cpu")])
def test_without_a_limit_or_a_gpu_nothing_is_asked(
    monkeypatch: pytest.MonkeyPatch, most: int, device: str
) -> None:
    Card(monkeypatch).limit(most, device)()


def test_a_rest_for_heat_ends_with_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, *[90] * 100)
    card.control.stop()
    with pytest.raises(Stopped):
        card.limit(80)()
