"""The time of day is set under a run: on a contributor, on the coordinator, on all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.clock import FakeClock
from tests.guests.lab import Guest, Lab
from tests.guests.test_faults import LONG, committed
from tests.guests.test_federation import BOT, Fleet, recordings_of

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

HOUR = 3600
SECONDS = 300.0
STEPS = [pytest.param(HOUR, id="an hour ahead"), pytest.param(-HOUR, id="an hour behind")]


class ClockFleet(Fleet):
    """Guests with a time of day of their own."""

    def __init__(self, lab: Lab, recordings: Path, clock: FakeClock) -> None:
        self._clock = clock
        super().__init__(lab, recordings)

    def _machine(self, name: str, role: str) -> Guest:
        self._mounts |= self._clock.mounts
        guest = super()._machine(name, role)
        FakeClock.begin(guest)
        return guest

    @property
    def machines(self) -> list[Guest]:
        return [self.hub, *self.nodes]


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ClockFleet]:
    recordings = recordings_of(recordings_folder, tmp_path_factory.mktemp("clock"))
    made = ClockFleet(lab, recordings, FakeClock(tmp_path_factory.mktemp("library")))
    made.wait_online()
    yield made
    made.close()


@pytest.fixture(scope="module")
def run(fleet: ClockFleet) -> str:
    """One run goes on under all the steps."""
    run = fleet.hub.run([BOT, "run", "-c", LONG]).stdout.strip()
    wait_for_both(fleet, run)
    return run


@pytest.fixture(autouse=True)
def _nothing_is_lost(fleet: ClockFleet, run: str) -> Iterator[None]:
    before = committed(fleet, run)
    yield
    lines = committed(fleet, run)
    assert lines[: len(before)] == before, "what is committed stays"
    assert [line["round"] for line in lines] == list(range(len(lines))), "each round once"
    assert "run.failed" not in fleet.kinds(run)


def wait_for_both(fleet: Fleet, run: str) -> None:
    """Wait for two more rounds with an update of each node; one may have begun before."""
    before = len(committed(fleet, run))

    def whole() -> bool:
        newest = committed(fleet, run)[before:]
        return sum(len(line["nodes"]) == len(fleet.nodes) for line in newest) > 1  # type: ignore[arg-type]

    fleet.hub.wait_until(whole, SECONDS, "two rounds of both nodes")


def test_each_process_of_the_services_has_the_fake_clock(fleet: ClockFleet) -> None:
    for guest in fleet.machines:
        assert FakeClock.without(guest) == []


@pytest.mark.parametrize("step", STEPS)
def test_a_contributor_with_a_wrong_clock_says_so_and_is_back_when_it_is_right(
    fleet: ClockFleet, run: str, step: int
) -> None:
    node = fleet.nodes[0]
    FakeClock.step(node, step)
    fleet.wait_for(node, "zk0d-client", "clock", SECONDS)
    FakeClock.step(node, 0)
    wait_for_both(fleet, run)


@pytest.mark.parametrize("step", STEPS)
def test_a_coordinator_whose_clock_was_wrong_for_a_while(
    fleet: ClockFleet, run: str, step: int
) -> None:
    FakeClock.step(fleet.hub, step)
    for node in fleet.nodes:
        fleet.wait_for(node, "zk0d-client", "clock", SECONDS)
    FakeClock.step(fleet.hub, 0)
    wait_for_both(fleet, run)


def test_all_clocks_are_set_for_good_ahead_then_behind(fleet: ClockFleet, run: str) -> None:
    for step in (HOUR, 0, -HOUR, 0):
        for guest in fleet.machines:
            FakeClock.step(guest, step)
        wait_for_both(fleet, run)
