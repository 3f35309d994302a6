"""Homes that come and go, against the real ServerApp; the week itself is tests/bench/week.py."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from tests.federation.fakes import FakeEvaluator
from tests.week.grid import BOOT_SECONDS
from tests.week.homes import DAY, HOUR, MINUTE, Away, Home, Kind, Span, homes, undisturbed
from tests.week.learners import FakeLearners, told_by
from tests.week.week import Account, Trouble, run_week
from zk0d.config.run import run_settings

#: A step of a machine in the middle.
STEP = 90.0
SETTINGS = {
    "local-steps": 20,
    "round-minutes": 30,
    "min-fit-clients": 2,
    # All weights of the fakes are 0 or 1, all updates far longer.
    "max-update-ratio": 0.0,
    "server-momentum": 0.0,
    "drift-correction": "none",
    "uplink-codec": "fp32",
    "downlink-codec": "fp32",
    "eval-frequency": 0,
    "checkpoint-interval": 0,
    "keep-rounds": 1,
}


def simulate(
    folder: Path,
    lenders: list[Home],
    rounds: int,
    days: float,
    trouble: Trouble = Trouble(),
    *,
    parks: bool = False,
) -> Account:
    settings = run_settings({**SETTINGS, "num-server-rounds": rounds})
    learners = FakeLearners(lenders, STEP)
    return run_week(
        folder,
        lenders,
        settings,
        learners,
        FakeEvaluator(),
        step_seconds=STEP,
        days=days,
        trouble=trouble,
        parks=parks,
    )


def check_model(made: Account, folder: Path) -> None:
    """The weights are those that the journal's updates make, each counted once."""
    value, counted = 0.0, Counter[tuple[str, int]]()
    for event in made.committed[1:]:
        asked = {(n.node, event.round - n.staleness): 1.0 / (1 + n.staleness) for n in event.nodes}
        counted.update(list(asked))
        sent = [told_by(*which) * share for which, share in asked.items()]
        value += sum(sent) / sum(asked.values())
    assert set(counted.values()) == {1}
    (weights,) = folder.glob("rounds/*/global.safetensors")
    assert np.allclose(safetensors.numpy.load_file(weights)["a"], value, rtol=1e-5)


@pytest.mark.slow
def test_two_days_of_twelve_homes(tmp_path: Path) -> None:
    """A ServerApp that dies and a full disk in them: no committed round is lost, and the run ends.

    Of the work 96 % counted when this was written.
    """
    trouble = Trouble(
        deaths=(9.4 * HOUR, 20.7 * HOUR), full=(Span(1.2 * DAY, 1.2 * DAY + 2 * HOUR),)
    )
    made = simulate(tmp_path / "run", homes(0, 2), rounds=45, days=2.0, trouble=trouble)
    assert made.finished
    assert [event.round for event in made.committed] == list(range(46))
    assert made.counted > 0.9
    assert made.late, "some of it late"
    assert made.steps.total() == sum(work.done for work in made.works)
    assert len([home for home, (_, counted) in made.by_home.items() if counted]) >= 10
    check_model(made, tmp_path / "run")


@pytest.mark.parametrize("parks", [False, True], ids=["forgets", "parks"])
def test_a_machine_that_sleeps_resumes_and_one_that_restarts_is_asked_again(
    tmp_path: Path, parks: bool
) -> None:
    """Both are away for 10 minutes in their second round, of 30 minutes, in which others work on.

    A learner that parks its step takes none twice.
    """
    at = Away(60 * MINUTE, 70 * MINUTE, Kind.SLEEP)
    laptop = Home("laptop", "laptop", away=(at,))
    desktop = Home("desktop", "always", away=(Away(at.begin, at.end, Kind.SHUTDOWN),))
    slow = [Home(name, "always", up=2e5) for name in ("a", "b")]
    made = simulate(tmp_path / "run", [*slow, laptop, desktop], rounds=4, days=1.0, parks=parks)
    assert made.finished
    works = [work for work in made.works if work.round == 2]
    assert [work.end for work in works if work.home == "laptop"] == ["answered"]
    first, again = (work for work in works if work.home == "desktop")
    assert (first.end, again.end) == ("restarted", "answered")
    assert 0 < first.done < 20
    assert again.done == (20 - first.done if parks else 20)
    assert made.steps["restarted"] == (0 if parks else first.done)
    assert made.steps["counted"] == 4 * 4 * 20
    second = made.committed[2]
    assert {node.node for node in second.nodes} == {"a", "b", "laptop", "desktop"}
    assert not second.lost
    check_model(made, tmp_path / "run")


def test_who_is_outside_of_its_hours_takes_part_when_they_begin(tmp_path: Path) -> None:
    """It is asked again, and not left out of the run."""
    night = Home("night", "nights", hours="04:00-08:00")
    made = simulate(tmp_path / "run", [Home("a", "always"), night], rounds=3, days=1.0)
    assert made.finished
    assert made.hours[0] > 4.0
    assert made.hours[-1] < 7.0, "at once, when they begin"


def test_a_round_that_a_full_disk_refuses_is_asked_for_again(tmp_path: Path) -> None:
    full = Home("full", "always", full=(Span(40 * MINUTE, 100 * MINUTE),))
    made = simulate(
        tmp_path / "run", [Home("a", "always"), Home("b", "always"), full], rounds=6, days=1.0
    )
    assert made.finished
    assert made.refusals.pop("disk_full") >= 1
    assert not made.refusals
    assert made.counted == 1.0
    assert "full" in [node.node for node in made.committed[-1].nodes]


@pytest.mark.parametrize("seed", range(4))
def test_homes_are_the_same_for_a_seed_and_their_absences_lie_apart(seed: int) -> None:
    made = homes(seed)
    assert made == homes(seed) != homes(seed + 1)
    for home in made:
        for before, after in zip(home.away, home.away[1:], strict=False):
            assert before.end + BOOT_SECONDS <= after.begin


def test_undisturbed_homes_have_the_same_machines_and_lines() -> None:
    made = homes(3)
    for home, calm in zip(made, undisturbed(made), strict=True):
        same = replace(home, pattern=calm.pattern, hours="", away=(), full=())
        assert calm == same
