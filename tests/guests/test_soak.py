"""A run under hours of faults, one after the other, seeded. Prints what happened and when.

``ZK0D_SOAK_SECONDS`` and ``ZK0D_SOAK_SEED`` change how long and which.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.guests.clock import FakeClock
from tests.guests.lab import Guest, Lab
from tests.guests.test_clock import HOUR, ClockFleet
from tests.guests.test_faults import committed
from tests.guests.test_federation import BOT, Fleet, kill_process, recordings_of

SECONDS = float(os.environ.get("ZK0D_SOAK_SECONDS", "7200"))
SEED = int(os.environ.get("ZK0D_SOAK_SEED", "0"))
#: Between two faults, and how long one lasts that is not over at once.
PAUSE, LASTS = (30.0, 120.0), (15.0, 90.0)
RECOVERED_SECONDS = 400.0
#: For a boot on a machine that others use, too.
BOOT_SECONDS = 180.0
RUNS = "/var/lib/zk0d/server/runs"
#: Rounds that are kept reach back to the newest checkpoint, even if one could not be written.
RUN = (
    "model-name=tiny num-server-rounds=100000 local-steps=100 batch-size=8 eval-frames=40"
    " eval-frequency=0 min-fit-clients=1 quorum=0.5 round-deadline=300"
    " keep-rounds=70 checkpoint-interval=20"
)
#: What lies on the coordinator's disk: which rounds, whether whole, and whether a checkpoint has
#: its round's values.
LOOK = """
import json, sys
from pathlib import Path
from safetensors.numpy import load_file
from zk0d.record.journal import WEIGHTS, is_whole
rounds, number, checkpoint = Path(sys.argv[1]) / "rounds", int(sys.argv[2]), Path(sys.argv[3])
weights = load_file(rounds / f"{number:05d}" / WEIGHTS)
values = load_file(checkpoint / "model.safetensors")
print(json.dumps({
    "newest": max(int(each.name) for each in rounds.iterdir()),
    "torn": [each.name for each in rounds.iterdir() if not is_whole(each)],
    "other": [name for name, each in weights.items() if (values[name] != each).any()],
}))
"""

pytestmark = [pytest.mark.guest, pytest.mark.timeout(SECONDS + 1800)]


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    recordings = recordings_of(recordings_folder, tmp_path_factory.mktemp("soak"))
    made = ClockFleet(lab, recordings, FakeClock(tmp_path_factory.mktemp("library")))
    made.wait_online()
    yield made
    made.close()


def nothing(guest: Guest) -> None:
    """The fault mends itself."""


@dataclass(frozen=True)
class Fault:
    """What happens to a guest, and what ends it."""

    begin: Callable[[Guest], object]
    end: Callable[[Guest], object] = nothing


def killed(words: str) -> Fault:
    return Fault(lambda guest: kill_process(guest, words))


def stopped(words: str) -> Fault:
    return Fault(
        lambda guest: kill_process(guest, words, "STOP"),
        # By then its watchdog may have ended it.
        lambda guest: guest.run(f"pkill -CONT -f -- '[{words[0]}]{words[1:]}'", check=False),
    )


def clock(ahead: int) -> Fault:
    """A wrong time of day, until it is set right."""
    return Fault(lambda guest: FakeClock.step(guest, ahead), lambda guest: FakeClock.step(guest, 0))


CLOCKS = {
    "clock an hour ahead": clock(HOUR),
    "clock an hour behind": clock(-HOUR),
    "clock two minutes ahead": clock(120),
}
SERVER_UNITS = ("zk0d-server.target", "zk0d-publish.timer", "zk0d-publish.service")


def fill(guest: Guest) -> None:
    # A file that is being replaced is gone when du comes to it.
    used = int(guest.run(f"du -sm {RUNS}", check=False).stdout.split()[0])
    # A file that is open would go on below the small disk.
    guest.systemctl("stop", *SERVER_UNITS)
    guest.limit_disk(RUNS, f"{used + 64}M")
    guest.systemctl("start", *SERVER_UNITS[:2])
    guest.fill_disk(RUNS)


def free(guest: Guest) -> None:
    """Room again, on the disk that lasts."""
    guest.free_disk(RUNS)
    guest.systemctl("stop", *SERVER_UNITS)
    guest.run(f"rm -rf /var/tmp/saved; cp -a {RUNS} /var/tmp/saved")
    # A process that ends may hold it for a moment.
    guest.wait_until(
        lambda: guest.run(f"umount {RUNS}", check=False).returncode == 0, 60, "the end of its uses"
    )
    guest.run(f"rm -rf {RUNS}/*; cp -a /var/tmp/saved/. {RUNS}; rm -rf /var/tmp/saved")
    guest.systemctl("start", *SERVER_UNITS[:2])


NODES: dict[str, Fault] = {
    "learner killed": killed("zk0d learner"),
    "ClientApp killed": killed("zk0d.flower.apps clientapp"),
    "SuperNode killed": killed("zk0d.flower.supernode"),
    "zk0d supernode killed": killed("zk0d supernode"),
    "SuperExec killed": killed("zk0d.flower.superexec"),
    "SuperNode stopped": stopped("zk0d.flower.supernode"),
    "learner stopped": stopped("zk0d learner"),
    "rebooted": Fault(lambda guest: guest.restart(BOOT_SECONDS)),
    "power cut": Fault(lambda guest: guest.kill(), lambda guest: guest.start(BOOT_SECONDS)),
    "network cut": Fault(lambda guest: guest.cut(), lambda guest: guest.heal()),
    "services restarted": Fault(lambda g: g.systemctl("restart", "zk0d-client.target")),
    **CLOCKS,
}
COORDINATOR: dict[str, Fault] = {
    "SuperLink killed": killed("zk0d.flower.superlink"),
    "zk0d superlink killed": killed("zk0d superlink"),
    "SuperExec killed": killed("zk0d.flower.superexec"),
    "ServerApp killed": killed("zk0d.flower.apps serverapp"),
    "evaluator killed": killed("zk0d evaluator"),
    "nginx killed": Fault(lambda g: g.systemctl("kill", "--signal=KILL", "zk0d-gateway")),
    "ServerApp stopped": stopped("zk0d.flower.apps serverapp"),
    "rebooted": Fault(lambda guest: guest.restart(BOOT_SECONDS)),
    "power cut": Fault(lambda guest: guest.kill(), lambda guest: guest.start(BOOT_SECONDS)),
    "network cut": Fault(lambda guest: guest.cut(), lambda guest: guest.heal()),
    "disk full under the runs": Fault(fill, free),
    **CLOCKS,
}


@dataclass
class Chaos:
    """Faults as one seed gives them, each at a time of its own; several last side by side."""

    fleet: Fleet
    seed: int
    done: list[str] = field(default_factory=list)
    #: What has begun: when it ends, by guest and name.
    _lasting: dict[tuple[str, str], tuple[float, Fault]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._began = self._next = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def look(self) -> None:
        """Begin and end what is due."""
        now = time.monotonic()
        for place, (end, _) in list(self._lasting.items()):
            if now >= end:
                self._end(place)
        if now < self._next:
            return
        self._next = now + self._random.uniform(*PAUSE)
        # A third of them hits the coordinator, of which there is one.
        guest = self._random.choice([self.fleet.hub, *self.fleet.nodes])
        table = COORDINATOR if guest is self.fleet.hub else NODES
        name = self._random.choice(sorted(table))
        lasts = self._random.uniform(*LASTS)
        # A machine has one fault at a time.
        if not any(of == guest.name for of, _ in self._lasting):
            self._say(f"{guest.name}: {name}")
            self._lasting[guest.name, name] = (now + lasts, table[name])
            try:
                table[name].begin(guest)
            except TimeoutError as error:  # the process to kill was not there just then
                self._say(f"{guest.name}: {name} hit nothing ({error})"[:120])

    def end(self) -> None:
        """No fault lasts on."""
        for place in list(self._lasting):
            self._end(place)

    def _end(self, place: tuple[str, str]) -> None:
        _, fault = self._lasting.pop(place)
        machines = {guest.name: guest for guest in (self.fleet.hub, *self.fleet.nodes)}
        fault.end(machines[place[0]])

    def _say(self, what: str) -> None:
        self.done.append(what)
        print(f"{self.seconds:7.0f} s  {what}", flush=True)


def test_a_run_outlives_hours_of_faults(fleet: Fleet) -> None:
    run = fleet.hub.run([BOT, "run", "-c", RUN]).stdout.strip()
    fleet.hub.wait_until(lambda: len(committed(fleet, run)) > 1, RECOVERED_SECONDS, "two rounds")
    chaos, before = Chaos(fleet, SEED), committed(fleet, run)
    while chaos.seconds < SECONDS:
        chaos.look()
        time.sleep(1.0)  # the faults' own time
        # A coordinator that is down says nothing.
        lines = committed(fleet, run) if fleet.hub.is_running() else []
        if lines:
            assert lines[: len(before)] == before, "a committed round is never lost"
            before = lines
    chaos.end()
    fleet.wait_online(RECOVERED_SECONDS)

    def both_again() -> bool:
        newest = committed(fleet, run)[len(before) :]
        return any(len(line["nodes"]) == len(fleet.nodes) for line in newest)  # type: ignore[arg-type]

    fleet.hub.wait_until(both_again, RECOVERED_SECONDS, "a round of both nodes")
    fleet.hub.run([BOT, "stop", run])
    fleet.wait_for(fleet.hub, "zk0d-server", f"run {run} was stopped at round", 120)
    lines, kinds = committed(fleet, run), Counter(fleet.kinds(run))
    numbers = [line["round"] for line in lines]
    assert numbers == list(range(len(numbers))), "each round is committed once, none is missing"
    assert lines[: len(before)] == before
    assert not kinds["run.failed"]
    checkpoint = [x for x in fleet.journal(run) if x["kind"] == "checkpoint.written"][-1]
    # The journal names it without its folder, which the evaluator chose.
    found = f"find /var/lib/zk0d -path '*/{run}/{checkpoint['folder']}'"
    folder = fleet.hub.run(found).stdout.strip()
    look = [LOOK, f"{RUNS}/{run}", str(checkpoint["round"]), folder]
    said = fleet.hub.run(["/opt/zk0d/current/bin/python", "-c", *look]).stdout
    assert json.loads(said) == {"newest": numbers[-1], "torn": [], "other": []}
    print(
        f"{chaos.seconds / 60:.0f} minutes, {len(chaos.done)} faults: {len(lines) - 1} rounds"
        f" committed, {kinds['run.resumed']} times resumed, {kinds['run.waiting']} times waiting,"
        f" {kinds['round.failed']} rounds failed; none lost"
    )
