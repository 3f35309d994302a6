"""A round's variate: how much it changes the one of before."""

from __future__ import annotations

import pytest

from zk0d.learner.variates import FULL_STEPS, share_of


def test_a_full_round_replaces_the_variate() -> None:
    assert share_of(FULL_STEPS) == share_of(10 * FULL_STEPS) == 1.0


def test_a_shorter_round_changes_it_by_its_share_of_steps() -> None:
    assert share_of(20) == pytest.approx(0.5)


def test_the_variate_of_the_slowest_machine_follows_within_ten_rounds() -> None:
    left = 1.0
    for _ in range(10):
        left *= 1.0 - share_of(1)
    assert left < 0.1
