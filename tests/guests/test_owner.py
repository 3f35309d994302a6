"""A contributor whose owner comes first, in the project's units and with a real logind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.lab import Guest, Lab
from tests.guests.test_faults import committed, in_training, wait_for_updates
from tests.guests.test_federation import BOT, Fleet, recordings_of

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

RUN = (
    "model-name=tiny num-server-rounds=2000 local-steps=100 batch-size=8 eval-frames=40"
    " eval-frequency=0 min-fit-clients=1 keep-rounds=3"
)
GAME = "/usr/local/bin/a-game-of-the-test"


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    made = Fleet(lab, recordings_of(recordings_folder, tmp_path_factory.mktemp("owner")))
    made.wait_online()
    yield made
    made.close()


@pytest.fixture(scope="module")
def run(fleet: Fleet) -> str:
    """A run that goes on meanwhile."""
    number = fleet.hub.run([BOT, "run", "-c", RUN]).stdout.strip()
    wait_for_updates(fleet, number, {node.name for node in fleet.nodes}, time.time())
    return number


@pytest.fixture
def home(fleet: Fleet) -> Iterator[Guest]:
    """The first node; its settings are as before afterwards."""
    node = fleet.nodes[0]
    before = node.read("/etc/zk0d/client.toml")
    yield node
    node.write("/etc/zk0d/client.toml", before)
    node.systemctl("restart", "zk0d-client.target", timeout=240)


def lend(node: Guest, limits: str) -> None:
    before = node.read("/etc/zk0d/client.toml")
    node.write("/etc/zk0d/client.toml", f"{before}\n[limits]\n{limits}")
    node.systemctl("restart", "zk0d-client.target", timeout=240)


def rests(fleet: Fleet, node: Guest) -> bool:
    """By the coordinator's word."""
    said = fleet.hub.run([BOT, "status", "--json"], check=False).stdout
    return any(each["name"] == node.name and each["rests"] for each in json.loads(said)["nodes"])


def test_a_program_that_comes_first_ends_a_round_under_way(
    fleet: Fleet, run: str, home: Guest
) -> None:
    home.run(["cp", "/bin/sleep", GAME])
    lend(home, f"priority = ['{Path(GAME).name}']\n")
    fleet.wait_for(home, "zk0d-owner", "the owner does not need this machine")
    fleet.wait_for(home, "zk0d-client", "online;", 180)
    in_training(home)
    learner = home.unit_state("zk0d-learner")["MainPID"]
    home.run(["systemd-run", "--quiet", "--uid=nobody", "--unit=a-game", GAME, "600"])
    said = f"resting while {Path(GAME).name} runs (limits.priority); it comes back by itself"
    fleet.wait_for(home, "zk0d-client", said, 120)
    home.wait_until(
        lambda: home.unit_state("zk0d-learner")["MainPID"] not in ("0", learner),
        120,
        "a learner that holds nothing",
    )
    fleet.wait_for(home, "zk0d-learner", said, 120)
    fleet.hub.wait_until(lambda: rests(fleet, home), 120, "the coordinator's word")
    assert ", 1 resting" in fleet.status(fleet.hub, "zk0d-server")
    before = len(committed(fleet, run))
    fleet.hub.wait_until(lambda: len(committed(fleet, run)) > before, 120, "a round without it")
    assert GAME.rpartition("/")[2] not in str(fleet.journal(run)), "it is the owner's business"
    moment = time.time()
    home.systemctl("stop", "a-game")
    wait_for_updates(fleet, run, {home.name}, moment)
    assert not rests(fleet, home)
    assert "run.failed" not in fleet.kinds(run)


def test_hours_begin_and_end_inside_a_run(fleet: Fleet, run: str, home: Guest) -> None:
    now = int(home.run(["date", "+%s"]).stdout)
    begin, end = (
        home.run(["date", "-d", f"@{now + seconds}", "+%H:%M"]).stdout.strip()
        for seconds in (150, 270)
    )
    lend(home, f"hours = '{begin}-{end}'\n")
    fleet.wait_for(home, "zk0d-client", f"resting until {begin} (limits.hours)", 120)
    wait_for_updates(fleet, run, {home.name}, time.time())
    # It begins again tomorrow.
    fleet.wait_for(home, "zk0d-client", f" {begin} (limits.hours)", 300)
    fleet.hub.wait_until(lambda: rests(fleet, home), 120, "the coordinator's word")
    lines = committed(fleet, run)
    assert not [line for line in lines if home.name in line["lost"]][3:], "it left in order"  # type: ignore[operator]


def test_logind_says_whether_a_machine_is_idle(fleet: Fleet, run: str, home: Guest) -> None:
    """A machine that has no session is idle; one whose logind is away is not known to be."""
    home.run("systemctl unmask systemd-logind && systemctl start systemd-logind")
    lend(home, "only-when-idle = true\n")
    fleet.wait_for(home, "zk0d-owner", "the owner does not need this machine", 120)
    wait_for_updates(fleet, run, {home.name}, time.time())
    home.systemctl("mask", "--now", "systemd-logind")
    said = "resting while logind does not say whether it is idle (limits.only-when-idle)"
    fleet.wait_for(home, "zk0d-client", said, 120)
