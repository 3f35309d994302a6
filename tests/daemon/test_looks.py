"""Waits between looks for what may come at any time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from zk0d.daemon.looks import PART, Looks


def test_a_look_comes_at_most_a_twentieth_late_and_costs_less_and_less() -> None:
    now = [0.0]
    looks = Looks(0.25, 2.0, lambda: now[0])
    times: list[float] = []
    while now[0] < 600.0:
        now[0] += looks.wait
        times.append(now[0])
    late = [b - a for a, b in pairwise(times)]
    assert all(wait <= max(0.25, PART * at) + 1e-9 for at, wait in zip(times, late, strict=False))
    assert late[-1] == pytest.approx(2.0)
    assert len(times) < 600.0 / 0.25 / 5
    looks.news()
    assert looks.wait == 0.25


def test_a_setting_above_the_longest_wait_stays() -> None:
    assert Looks(10.0, 2.0, lambda: 0.0).wait == 10.0
