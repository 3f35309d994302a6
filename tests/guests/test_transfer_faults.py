"""What weights and updates survive on their way through nginx. Adds to the table of faults.

An update has six pieces, and one of the two nodes has a slow line, so a fault can hit its middle.
Each fault has a run of its own, and nginx's and the node's records say what moved for it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests.conftest import FAULTS
from tests.guests.lab import Guest, Lab
from tests.guests.test_federation import BOT, Fleet, kill_process, recordings_of
from zk0d.federation.carrier import PIECE_BYTES

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

#: ACT over a ResNet18: 11 million values, so 46 MB up, and 23 MB of weights down.
RUN = (
    "policy=act model-name=tiny num-server-rounds={rounds} local-steps=1 batch-size=4"
    " eval-frames=8 eval-frequency=0 min-fit-clients=2 keep-rounds=9"
    " uplink-codec=fp32 drift-correction=none"
)
#: Of the first node: a piece takes 21 s, so that a fault hits the middle on a busy machine, too.
SLOW_LINE = "\n[limits]\nupload-rate = 400000\ndownload-rate = 1000000\n"
#: More than a request's line and header; nginx counts without TLS.
HEAD_BYTES = 2000
TRANSFER = "/var/lib/zk0d/transfer"
_REQUEST = re.compile(r'(\S+) "(\S+) (\S+) [^"]*" (\d+) (\d+) ')


@dataclass(frozen=True)
class Request:
    """One line of nginx's record; ``size`` is what came of the request."""

    address: str
    method: str
    path: str
    status: int
    size: int


@dataclass(frozen=True)
class Moved:
    """What a node's line moved by its own count."""

    down: int
    up: int


class TransferFleet(Fleet):
    """The fleet, and what its parts say of transfers."""

    def requests(self, since: float, address: str = "") -> list[Request]:
        """What nginx took since then for the files, of this machine or of any."""
        said = self.hub.run(
            ["journalctl", "-t", "zk0d_gateway", f"--since=@{since:.0f}"]
            + ["-o", "cat", "-q", "--no-pager"]
        ).stdout
        found = (_REQUEST.match(line) for line in said.splitlines())
        all_ = [Request(m[1], m[2], m[3], int(m[4]), int(m[5])) for m in found if m]
        return [each for each in all_ if address in ("", each.address)]

    def moved(self, node: Guest) -> Moved:
        """By the file from which the node's metric comes."""
        path = "/var/lib/zk0d/client-superexec/line.json"
        said = node.run(["cat", path], check=False).stdout
        days = json.loads(said)["days"].values() if said else ()
        return Moved(sum(day["down"] for day in days), sum(day["up"] for day in days))

    def committed(self, run: str) -> list[dict[str, object]]:
        return [line for line in self.journal(run) if line["kind"] == "round.committed"]

    def left_over(self) -> str:
        return self.hub.run(f"find {TRANSFER} -type f ! -path '*/.incoming/*'").stdout


class Upload:
    """A node's update in a run's last round, from before the round began."""

    def __init__(self, fleet: TransferFleet, node: Guest, rounds: int = 1) -> None:
        self._fleet = fleet
        self.node = node
        self._before = fleet.moved(node)
        self.since = time.time()
        self.run = fleet.hub.run([BOT, "run", "-c", RUN.format(rounds=rounds)]).stdout.strip()
        if rounds > 1:
            fleet.hub.wait_until(
                lambda: len(fleet.committed(self.run)) == rounds, 400, "the rounds before the last"
            )
            self.since = time.time()

    def puts(self) -> list[Request]:
        requests = self._fleet.requests(self.since, self.node.address)
        return [each for each in requests if each.method == "PUT"]

    def taken(self) -> list[str]:
        """Names of the pieces that came, in their order."""
        return [each.path.rpartition("/")[2] for each in self.puts() if each.status == 201]

    def wait_for_half(self) -> int:
        """Wait until three of the six pieces are there; how many there are."""
        there = self.node.wait_until(
            lambda: len(found) if len(found := self.taken()) >= 3 else 0, 400, "half of an update"
        )
        assert isinstance(there, int)
        assert there < 6, "the fault would come too late"
        return there

    def wait_for_end(self) -> str:
        """Wait for the run's end, and check that one piece at most came again; how many did."""
        fleet = self._fleet
        fleet.wait_for_end(self.run, 400)
        rounds = fleet.committed(self.run)
        (mine,) = (n for n in rounds[-1]["nodes"] if n["node"] == self.node.name)  # type: ignore[attr-defined]
        size, names = mine["bytes_up"], self.taken()
        assert len(set(names)) == math.ceil(size / PIECE_BYTES) == 6, names
        assert len(set(names)) == len(names), "what was there was not sent again"
        puts = self.puts()
        again = sum(max(0, each.size - HEAD_BYTES) for each in puts) - size
        assert again <= PIECE_BYTES, again
        assert fleet.left_over() == "", "nothing stays after the run"
        return f"0; {max(0, again) / 1e6:.1f} of {size / 1e6:.0f} MB again"

    def counted(self) -> Moved:
        """What the node's line moved for this run, by its own count."""
        after = self._fleet.moved(self.node)
        return Moved(after.down - self._before.down, after.up - self._before.up)


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TransferFleet]:
    made = TransferFleet(
        lab, recordings_of(recordings_folder, tmp_path_factory.mktemp("transfers"))
    )
    slow = made.nodes[0]
    slow.write("/etc/zk0d/client.toml", slow.read("/etc/zk0d/client.toml") + SLOW_LINE)
    slow.systemctl("restart", "zk0d-client-superexec")
    made.wait_online()
    yield made
    made.close()


@pytest.fixture
def slow(fleet: TransferFleet) -> Guest:
    fleet.wait_online(180)
    return fleet.nodes[0]


def said_by(node: Guest, since: float) -> str:
    """What the node's ClientApps logged since then."""
    return node.run(
        ["journalctl", "-u", "zk0d-client-superexec", f"--since=@{since:.0f}"]
        + ["-o", "cat", "-q", "--no-pager"]
    ).stdout


def cut(fleet: TransferFleet, upload: Upload) -> None:
    """The node's network is gone until its ClientApp notices."""
    node, since = upload.node, time.time()
    node.cut()
    try:
        node.wait_until(lambda: " was cut (" in said_by(node, since), 120, "the transfer is cut")
    finally:
        node.heal()


def kill_gateway(fleet: TransferFleet, upload: Upload) -> None:
    fleet.hub.systemctl("kill", "--signal=KILL", "zk0d-gateway")


def reload_gateway(fleet: TransferFleet, upload: Upload) -> None:
    main = fleet.hub.unit_state("zk0d-gateway")["MainPID"]
    fleet.hub.systemctl("reload", "zk0d-gateway")
    assert fleet.hub.unit_state("zk0d-gateway")["MainPID"] == main


#: What happens at half of an update.
UPLOADS: dict[str, Callable[[TransferFleet, Upload], object]] = {
    "network cut at half of an update": cut,
    "ClientApp killed at half of an update": lambda f, u: kill_process(
        u.node, "zk0d.flower.apps clientapp"
    ),
    "SuperExec killed at half of an update": lambda f, u: kill_process(
        u.node, "zk0d.flower.superexec"
    ),
    "nginx killed at half of an update": kill_gateway,
    "nginx reloaded at half of an update": reload_gateway,
}


@pytest.mark.parametrize("fault", UPLOADS)
def test_a_resumed_upload_sends_the_missing_pieces(
    fleet: TransferFleet, slow: Guest, fault: str, pytestconfig: pytest.Config
) -> None:
    upload = Upload(fleet, slow)
    upload.wait_for_half()
    began = time.monotonic()
    UPLOADS[fault](fleet, upload)
    again = upload.wait_for_end()
    if "killed" not in fault or "nginx" in fault:  # a killed process forgets what it counted last
        size = 6 * PIECE_BYTES
        assert upload.counted().up <= size + PIECE_BYTES
    pytestconfig.stash[FAULTS].append((fault, time.monotonic() - began, again))


def test_a_killed_nginx_costs_no_byte_of_the_weights_again(
    fleet: TransferFleet, slow: Guest, pytestconfig: pytest.Config
) -> None:
    """The slow node asks for parts of four seconds; no byte of them comes twice."""
    upload = Upload(fleet, slow)

    def began() -> bool:
        requests = fleet.requests(upload.since, slow.address)
        return any("/down/" in each.path and each.status == 206 for each in requests)

    slow.wait_until(began, 300, "the first part of the weights")
    moment = time.monotonic()
    kill_gateway(fleet, upload)
    assert not upload.puts(), "the fault came too late"
    upload.wait_for_end()
    seconds = time.monotonic() - moment
    (line,) = fleet.committed(upload.run)[1:]
    (mine,) = (node for node in line["nodes"] if node["node"] == slow.name)  # type: ignore[attr-defined]
    assert upload.counted().down == mine["bytes_down"]
    row = ("nginx killed while weights come", seconds, "0; no byte again")
    pytestconfig.stash[FAULTS].append(row)


def test_a_coordinator_that_reboots_takes_the_missing_pieces(
    fleet: TransferFleet, slow: Guest, pytestconfig: pytest.Config
) -> None:
    """In the second of two rounds; the first one stays as it was."""
    upload = Upload(fleet, slow, rounds=2)
    upload.wait_for_half()
    before, began = fleet.committed(upload.run), time.monotonic()
    assert [line["round"] for line in before] == [0, 1]
    fleet.hub.restart(180)
    again = upload.wait_for_end()
    lines = fleet.committed(upload.run)
    assert lines[:2] == before
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert "run.resumed" in fleet.kinds(upload.run)
    row = ("coordinator rebooted at half of an update", time.monotonic() - began, again)
    pytestconfig.stash[FAULTS].append(row)


@pytest.fixture(scope="module")
def small_disk(fleet: TransferFleet) -> Iterator[Guest]:
    """The coordinator, whose transfers lie on a disk of 320 MB."""
    hub, units = fleet.hub, ("zk0d-gateway", "zk0d-server", "zk0d-server-superexec")
    hub.limit_disk(TRANSFER, "320M")
    hub.systemctl("restart", *units)  # they see the file systems of their start
    fleet.wait_online(180)
    yield hub
    hub.systemctl("stop", *units)
    hub.run(["umount", TRANSFER])
    hub.systemctl("start", *units)
    fleet.wait_online(180)


def fill(hub: Guest, upload: Upload) -> None:
    """Leave no room for transfers, and see that the node is told so."""
    since = time.time()
    hub.fill_disk(TRANSFER)
    words = "(507): the coordinator's disk is full."
    try:
        upload.node.wait_until(lambda: words in said_by(upload.node, since), 90, "507 and why")
    except TimeoutError:
        hub.free_disk(TRANSFER)  # the next test has its own fault
        raise


def test_a_disk_that_is_full_for_a_while(
    fleet: TransferFleet, small_disk: Guest, slow: Guest, pytestconfig: pytest.Config
) -> None:
    upload = Upload(fleet, slow)
    upload.wait_for_half()
    began = time.monotonic()
    fill(small_disk, upload)
    assert any(each.status == 507 for each in upload.puts())
    small_disk.free_disk(TRANSFER)
    again = upload.wait_for_end()
    assert "round.failed" not in fleet.kinds(upload.run)
    row = ("transfers' disk full for a while", time.monotonic() - began, again)
    pytestconfig.stash[FAULTS].append(row)


def test_a_disk_that_stays_full(
    fleet: TransferFleet, small_disk: Guest, slow: Guest, pytestconfig: pytest.Config
) -> None:
    """The node gives up, the run waits and says why, and goes on when there is room."""
    upload = Upload(fleet, slow)
    upload.wait_for_half()
    fill(small_disk, upload)

    def waits() -> bool:
        said = fleet.status(small_disk, "zk0d-server")
        return "waits at round" in said and "it continues when there is room" in said

    # After two rounds, in each of which the node is patient for two minutes.
    small_disk.wait_until(waits, 500, "a run that waits for the disk")
    began = time.monotonic()
    small_disk.free_disk(TRANSFER)
    fleet.wait_for_end(upload.run, 400)
    lines = fleet.journal(upload.run)
    assert [line["round"] for line in fleet.committed(upload.run)] == [0, 1]
    assert "disk_full" in {line.get("reason") for line in lines if line["kind"] == "run.waiting"}
    assert fleet.left_over() == ""
    row = ("transfers' disk stays full, then has room", time.monotonic() - began, "0; all again")
    pytestconfig.stash[FAULTS].append(row)
