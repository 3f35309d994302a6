"""A contributor whose owner comes first, in the project's units and with a real logind."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guests.lab import Guest, Lab, install_units
from tests.guests.test_faults import committed, in_training, wait_for_updates
from tests.guests.test_federation import BOT, START_SECONDS, Fleet, recordings_of

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

RUN = (
    "model-name=tiny num-server-rounds=2000 local-steps=100 batch-size=8 eval-frames=40"
    " eval-frequency=0 min-fit-clients=1 keep-rounds=3"
)
FAKE_NVML = Path(__file__).with_name("fake_nvml.py")
POWER = "zk0d-gpu-power"
CARD, BEFORE = "/run/fake-gpu/card.json", "/var/lib/zk0d/gpu-power/before.json"
GAME = "/usr/local/bin/a-game-of-the-test"
BATTERY = "/srv/fake-power-supply/BAT0"


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


def test_a_laptop_on_its_battery_rests(fleet: Fleet, run: str, home: Guest) -> None:
    """A fake battery, since guests have none: the kernel's files, where the service looks."""
    home.write(f"{BATTERY}/type", "Battery\n")
    home.write(f"{BATTERY}/status", "Discharging\n")
    home.write(
        "/etc/systemd/system/zk0d-owner.service.d/fake-battery.conf",
        f"[Service]\nBindReadOnlyPaths={Path(BATTERY).parent}:/sys/class/power_supply\n",
    )
    home.run("systemctl daemon-reload && systemctl restart zk0d-owner")
    said = "resting while this machine runs on its battery (limits.on-battery)"
    fleet.wait_for(home, "zk0d-client", said, 120)
    fleet.hub.wait_until(lambda: rests(fleet, home), 120, "the coordinator's word")
    moment = time.time()
    home.write(f"{BATTERY}/status", "Charging\n")
    wait_for_updates(fleet, run, {home.name}, moment)
    home.run("rm -r /etc/systemd/system/zk0d-owner.service.d && systemctl daemon-reload")


def card(node: Guest) -> tuple[int, int]:
    """The watts that the card may draw now, and whether its driver keeps them while it rests."""
    facts: dict[str, int] = json.loads(node.read(CARD))
    return facts["limit"] // 1000, facts["kept"]


def allow(node: Guest, most: int) -> None:
    before, _, _ = node.read("/etc/zk0d/client.toml").partition("[limits]")
    node.write("/etc/zk0d/client.toml", f"{before}[limits]\ngpu-power-watts = {most}\n")


def test_the_gpus_power_limit_is_the_owners_again_whatever_ends(
    guests: Callable[..., Guest], recordings_folder: Path, tmp_path: Path
) -> None:
    """The card is a fake, which asks for root's capability; systemd and its sandbox are real."""
    recordings = recordings_of(recordings_folder, tmp_path)
    node = guests("card", mounts={recordings: "/srv/recordings", FAKE_NVML: "/srv/fake_nvml.py"})
    install_units(node)
    node.write(
        f"/etc/systemd/system/{POWER}.service.d/fake.conf",
        "[Service]\nBindReadOnlyPaths=/srv/fake_nvml.py:/opt/zk0d/packages/pynvml.py\n"
        "ReadWritePaths=/run/fake-gpu\n",
    )
    node.write("/etc/tmpfiles.d/fake.conf", "d /run/fake-gpu 0755 root root -\n")
    node.write("/srv/fake-usual", "450000")
    node.run(["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/fake.conf"])
    node.systemctl("daemon-reload")
    node.run([BOT, "server", "init", "--host", "hub", "--folder", "/root/hub"])
    init = [BOT, "client", "init", "--name", "card", "--coordinator", "hub:9443"]
    node.run([*init, "--ca", "/root/hub/tls/ca.crt", "--dataset", "local:/srv/recordings"])

    allow(node, 250)
    node.run([BOT, "client", "start"], timeout=START_SECONDS)
    assert card(node) == (250, 1)
    said = json.loads(node.run([BOT, "status", "--json"], check=False).stdout)
    (unit,) = [each for each in said["services"] if each["name"] == POWER]
    assert (unit["state"], unit["todo"]) == ("active (exited)", "")
    assert unit["status"].startswith("GPU 0 (Fake) may draw 250 W")
    assert node.unit_state(POWER)["MainPID"] == "0", "no process of it stays"

    node.wait_until(lambda: node.unit_state("zk0d-learner")["ActiveState"] == "active", 240)
    node.systemctl("kill", "--signal=KILL", "zk0d-learner.service")
    node.wait_until(lambda: node.unit_state("zk0d-learner")["NRestarts"] != "0", 60)
    assert (node.unit_state(POWER)["ActiveState"], card(node)) == ("active", (250, 1))
    allow(node, 300)
    node.systemctl("reload", POWER)
    assert card(node) == (300, 1)
    allow(node, 50)
    assert node.systemctl("reload", POWER, check=False).returncode != 0
    assert card(node) == (300, 1), "a reload that is refused changes nothing"

    node.systemctl("restart", POWER, check=False)
    state = node.unit_state(POWER)
    assert (state["ActiveState"], state["ExecMainStatus"]) == ("failed", "78")
    assert card(node) == (450, 0)
    assert (
        "limits.gpu-power-watts is 50, and GPU 0 (Fake) takes 100 to 480 W" in state["StatusText"]
    )
    told = node.run([BOT, "status"], check=False).stdout
    assert f"what to do: {POWER}: journalctl -u {POWER} says why it ended" in told
    assert node.unit_state("zk0d-learner")["ActiveState"] in ("active", "activating")

    allow(node, 250)
    node.run(["touch", "/run/fake-gpu/hold"])
    node.systemctl("start", "--no-block", POWER)
    node.wait_until("test -e /run/fake-gpu/waits", 60)
    assert json.loads(node.read(BEFORE))["gpus"][0]["limit"] == 450_000, (
        "before the card is changed"
    )
    node.systemctl("kill", "--signal=KILL", POWER)
    node.wait_until(f"! test -e {BEFORE}", 60)
    assert card(node) == (450, 0)
    node.run(["rm", "/run/fake-gpu/hold"])
    node.wait_until(lambda: card(node) == (250, 1), 120, "systemd's next start of it")

    node.systemctl("stop", "zk0d-client.target")
    node.wait_until(lambda: card(node) == (450, 0), 60, "the end of the target")
    assert node.run(["test", "-e", BEFORE], check=False).returncode
    node.systemctl("start", POWER)
    node.write("/srv/fake-usual", "440000")
    node.kill()
    assert node.start(120)
    node.wait_until(lambda: node.unit_state(POWER)["ActiveState"] == "active", 120)
    assert card(node) == (250, 1)
    node.run([BOT, "client", "stop"])
    assert card(node) == (440, 0), "as this boot had it, and not the one whose power was cut"
