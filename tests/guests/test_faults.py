"""What a fleet must survive. Prints a table: fault, seconds to recover, rounds lost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guests.conftest import FAULTS
from tests.guests.lab import Guest, Lab
from tests.guests.test_federation import BOT, Fleet, kill_process

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

LONG = (
    "model-name=tiny num-server-rounds=2000 local-steps=100 batch-size=8 eval-frames=40"
    " eval-frequency=0 min-fit-clients=1 keep-rounds=3"
)
RECOVERED_SECONDS = 240.0


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    recordings = tmp_path_factory.mktemp("faults") / "recordings"
    shutil.copytree(recordings_folder, recordings)
    for path in recordings.rglob("*"):
        path.chmod(path.stat().st_mode | 0o044)
    made = Fleet(lab, recordings)
    # The learner's own limit is 180 s; the test does not wait so long to see it work.
    made.nodes[0].write(
        "/etc/systemd/system/zk0d-learner.service.d/watchdog.conf", "[Service]\nWatchdogSec=20\n"
    )
    made.nodes[0].systemctl("daemon-reload")
    made.nodes[0].systemctl("restart", "zk0d-learner.service")
    made.wait_online()
    yield made
    made.close()


@pytest.fixture(scope="module")
def long_run(fleet: Fleet) -> str:
    """A run that goes on under all the contributors' faults."""
    return start(fleet)


def start(fleet: Fleet) -> str:
    """Start a long run and wait until both nodes have taken part in it."""
    run = fleet.hub.run([BOT, "run", "-c", LONG]).stdout.strip()
    wait_for_updates(fleet, run, {node.name for node in fleet.nodes}, time.time())
    return run


def committed(fleet: Fleet, run: str) -> list[dict[str, object]]:
    return [line for line in fleet.journal(run) if line["kind"] == "round.committed"]


def wait_for_updates(fleet: Fleet, run: str, nodes: set[str], since: float) -> None:
    """Wait for an update of each node in a round that began after ``since``."""

    def there() -> bool:
        began: dict[object, object] = {}
        seen = set()
        for line in fleet.journal(run):
            if line["kind"] == "round.started":
                began[line["round"]] = line["time"]
            elif line["kind"] == "update.accepted" and float(str(began[line["round"]])) > since:
                seen.add(str(line["node"]))
        return nodes <= seen

    fleet.hub.wait_until(there, RECOVERED_SECONDS, f"updates of {sorted(nodes)}")


def in_training(guest: Guest) -> None:
    guest.wait_until(
        lambda: "training step" in guest.unit_state("zk0d-learner").get("StatusText", ""),
        90,
        "a step of a round",
    )


def cut_for_three_minutes(guest: Guest) -> None:
    guest.cut()
    time.sleep(180)  # this is the fault itself, not a wait for something
    guest.heal()


#: What happens to the first node while a round is trained on it.
CONTRIBUTOR: dict[str, Callable[[Guest], object]] = {
    "learner killed mid-step": lambda g: kill_process(g, "zk0d learner"),
    "ClientApp killed": lambda g: kill_process(g, "zk0d.flower.apps clientapp"),
    "flower-supernode killed": lambda g: kill_process(g, "zk0d.flower.supernode"),
    "zk0d supernode killed": lambda g: kill_process(g, "zk0d supernode"),
    "contributor's SuperExec killed": lambda g: kill_process(g, "zk0d.flower.superexec"),
    "contributor's zk0d superexec killed": lambda g: kill_process(g, "zk0d superexec client"),
    "flower-supernode stopped (SIGSTOP)": lambda g: kill_process(
        g, "zk0d.flower.supernode", "STOP"
    ),
    "learner stopped (SIGSTOP)": lambda g: kill_process(g, "zk0d learner", "STOP"),
    "systemctl restart zk0d-client mid-fit": lambda g: g.systemctl("restart", "zk0d-client"),
    "contributor rebooted mid-round": lambda g: g.restart(),
    "contributor's power cut": lambda g: (g.kill(), g.start()),
    "contributor cut off for 3 minutes": cut_for_three_minutes,
}


@pytest.mark.parametrize("fault", CONTRIBUTOR)
def test_a_contributor_comes_back_into_the_same_run(
    fleet: Fleet, long_run: str, fault: str, pytestconfig: pytest.Config
) -> None:
    node = fleet.nodes[0]
    in_training(node)
    before = len(committed(fleet, long_run))
    began, wall = time.monotonic(), time.time()
    CONTRIBUTOR[fault](node)
    wait_for_updates(fleet, long_run, {node.name}, wall)
    seconds = time.monotonic() - began
    lines = committed(fleet, long_run)
    numbers = [line["round"] for line in lines]
    assert numbers == list(range(len(numbers))), "each round is committed once, none is missing"
    meanwhile = lines[before:]
    without = [line for line in meanwhile if len(line["nodes"]) < len(fleet.nodes)]  # type: ignore[arg-type]
    failed = fleet.kinds(long_run).count("round.failed")
    assert failed == 0
    pytestconfig.stash[FAULTS].append((fault, seconds, f"0 ({len(without)} without this node)"))


def test_a_late_contributor_joins_at_the_next_round(
    fleet: Fleet, long_run: str, pytestconfig: pytest.Config
) -> None:
    began, wall = time.monotonic(), time.time()
    late = fleet._contributor("late")
    late.run([BOT, "client", "start"])
    wait_for_updates(fleet, long_run, {"late"}, wall)
    row = ("a third contributor joins, boot included", time.monotonic() - began, "0")
    pytestconfig.stash[FAULTS].append(row)
    late.run([BOT, "client", "stop"])
    fleet._lab.remove(late)
    fleet.hub.run("rm /etc/zk0d/roster.d/late.pub")


def test_no_fault_of_a_contributor_ended_the_run(fleet: Fleet, long_run: str) -> None:
    assert "run.failed" not in fleet.kinds(long_run)
    before = len(committed(fleet, long_run))
    fleet.hub.wait_until(lambda: len(committed(fleet, long_run)) > before, 60, "another round")
    fleet.hub.run([BOT, "stop", long_run])
    fleet.wait_for(fleet.hub, "zk0d-server", f"run {long_run} was stopped at round", 60)


def full_disk(hub: Guest) -> None:
    hub.limit_disk("/var/lib/zk0d/server/runs", "64M")
    hub.fill_disk("/var/lib/zk0d/server/runs")
    hub.wait_until(
        "journalctl -u zk0d-server-superexec --since=-60s | grep -q 'No space left'", 120
    )
    hub.free_disk("/var/lib/zk0d/server/runs")


#: What happens on the coordinator while a run goes on.
COORDINATOR: dict[str, Callable[[Guest], object]] = {
    "flower-superlink killed": lambda g: kill_process(g, "zk0d.flower.superlink"),
    "zk0d superlink killed": lambda g: kill_process(g, "zk0d superlink"),
    "coordinator's SuperExec killed": lambda g: kill_process(g, "zk0d.flower.superexec"),
    "ServerApp killed": lambda g: kill_process(g, "zk0d.flower.apps serverapp"),
    "coordinator rebooted": lambda g: g.restart(),
    # The last: what it makes small is gone after a reboot.
    "disk full under the runs": full_disk,
}


@pytest.mark.parametrize("fault", COORDINATOR)
def test_the_coordinator_comes_back_and_the_run_resumes(
    fleet: Fleet, fault: str, pytestconfig: pytest.Config
) -> None:
    fleet.wait_online(180)
    run = start(fleet)
    before = committed(fleet, run)
    began = time.monotonic()
    COORDINATOR[fault](fleet.hub)
    wait_for_updates(fleet, run, {node.name for node in fleet.nodes}, time.time())
    seconds = time.monotonic() - began
    lines = fleet.journal(run)
    assert committed(fleet, run)[: len(before)] == before, "what is committed stays"
    rounds = [line["round"] for line in committed(fleet, run)]
    assert rounds == list(range(len(rounds))), "each round is committed once, none is missing"
    resumed = len([line for line in lines if line["kind"] == "run.resumed"])
    lost = "0; the round under way is repeated" if resumed else "0"
    pytestconfig.stash[FAULTS].append((fault, seconds, lost))
    fleet.hub.run([BOT, "stop", run])
    fleet.wait_for(fleet.hub, "zk0d-server", "was stopped at round", 90)
