"""Differences, mirrors and metered connections, with the real nginx and NetworkManager."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.environment import REPOSITORY
from tests.guests.lab import CommandError, Guest, Lab
from tests.guests.test_federation import BOT, recordings_of
from tests.guests.test_transfer_faults import RUN, TransferFleet, said_by

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1200)]

GOOD, BAD = "http://mirror:8080", "http://mirror:8081"
#: Passes on what the good mirror sends, with a byte of its middle changed.
LIAR = """
import http.server, urllib.request
class Liar(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        asked = {k: v for k, v in self.headers.items() if k.lower() in ("authorization", "range")}
        asked = urllib.request.Request("http://127.0.0.1:8080" + self.path, headers=asked)
        with urllib.request.urlopen(asked) as answer:
            size, at = int(answer.headers["content-length"]), 0
            self.send_response(answer.status)
            self.send_header("content-length", str(size))
            self.end_headers()
            while part := bytearray(answer.read(65536)):
                if 0 <= size // 2 - at < len(part):
                    part[size // 2 - at] ^= 1
                self.wfile.write(part)
                at += len(part)
http.server.ThreadingHTTPServer(("0.0.0.0", 8081), Liar).serve_forever()
"""


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TransferFleet]:
    made = TransferFleet(lab, recordings_of(recordings_folder, tmp_path_factory.mktemp("ways")))
    made.wait_online()
    yield made
    made.close()


def figures(fleet: TransferFleet, run: str, node: Guest) -> list[dict[str, object]]:
    """A node's part in each committed round that it was in."""
    return [
        {"round": line["round"], **part}
        for line in fleet.committed(run)[1:]
        for part in line["nodes"]  # type: ignore[attr-defined]
        if part["node"] == node.name
    ]


def metric(guest: Guest, port: int, sample: str) -> float:
    """A sample's value, as Prometheus reads it."""
    text = guest.run(["curl", "-fsS", f"http://127.0.0.1:{port}/metrics"]).stdout
    values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(sample)]
    return float(values[0]) if values else 0.0


def test_a_node_that_missed_a_round_gets_all_and_the_others_the_difference(
    fleet: TransferFleet,
) -> None:
    stays, goes = fleet.nodes
    began = {node: fleet.moved(node) for node in fleet.nodes}
    settings = RUN.format(rounds=500).replace("min-fit-clients=2", "min-fit-clients=1")
    run = fleet.hub.run([BOT, "run", "-c", f"{settings} downlink-codec=int8-delta"]).stdout.strip()

    def reach(condition: object, what: str) -> None:
        fleet.hub.wait_until(condition, 300, what)  # type: ignore[arg-type]

    reach(lambda: len(figures(fleet, run, goes)) >= 2, "two rounds of both")
    goes.run([BOT, "client", "pause"], timeout=90)
    missed = len(fleet.committed(run)) + 1
    reach(lambda: len(fleet.committed(run)) > missed, "rounds of one node")
    assert figures(fleet, run, goes)[-1]["round"] != fleet.committed(run)[-1]["round"]
    goes.run([BOT, "client", "resume"])
    alone = len(figures(fleet, run, goes))
    reach(lambda: len(figures(fleet, run, goes)) >= alone + 2, "two more rounds of both")
    fleet.hub.run([BOT, "stop", run])
    fleet.wait_for(fleet.hub, "zk0d-server", f"run {run} was stopped at round", 90)

    came = figures(fleet, run, stays)
    assert [part["weights"] for part in came[:3]] == ["whole", "difference", "difference"]
    assert {part["weights"] for part in came[1:]} == {"difference"}
    back = figures(fleet, run, goes)
    assert [part["weights"] for part in back[alone : alone + 2]] == ["whole", "difference"]
    whole, difference = (int(str(part["bytes_down"])) for part in came[:2])
    assert 1.9 < whole / difference < 2.1, "bfloat16 and int8"
    for node in fleet.nodes:
        own = figures(fleet, run, node)
        counted = sum(int(str(part["bytes_down"])) for part in own)
        sample = f'zk0d_node_bytes_total{{direction="down",node="{node.name}"}}'
        assert metric(fleet.hub, 9470, sample) == counted
        # The round that the stop has ended is in no journal; the node has fetched it, or half.
        moved = fleet.moved(node).down - began[node].down
        assert counted <= moved <= counted + whole
        assert metric(node, 9473, 'zk0d_line_today_bytes{direction="down"}') > 0


@pytest.fixture(scope="module")
def mirror(fleet: TransferFleet, lab: Lab) -> Iterator[Guest]:
    """A machine of nobody's, with the nginx of docs/coordinator.md and a liar."""
    guest = lab.guest("mirror", environment=False)
    (text,) = re.findall(
        r"```nginx\n(.*?)```", (REPOSITORY / "docs/coordinator.md").read_text(), re.S
    )
    assert "hub.example" in text
    guest.write("/etc/nginx/conf.d/mirror.conf", text.replace("hub.example", "hub"))
    guest.write("/etc/nginx/zk0d-ca.crt", fleet.nodes[0].read("/etc/zk0d/tls/ca.crt"))
    guest.run("rm -f /etc/nginx/sites-enabled/default")
    guest.systemctl("start", "nginx")
    guest.write("/srv/liar.py", LIAR)
    guest.run("systemd-run --quiet --unit=liar python3 /srv/liar.py")
    guest.wait_until("curl -s http://127.0.0.1:8081/ -o /dev/null || test $? = 52", 30)
    yield guest
    lab.remove(guest)


def use_mirror(fleet: TransferFleet, url: str) -> None:
    path = "/etc/zk0d/server.toml"
    text = re.sub(r"mirrors = .*\n", "", fleet.hub.read(path))
    fleet.hub.write(path, text.replace("[transfer]\n", f'[transfer]\nmirrors = ["{url}"]\n'))
    fleet.hub.systemctl("restart", "zk0d-server-superexec")
    fleet.wait_online(180)


def downloads(fleet: TransferFleet, since: float, address: str) -> list[int]:
    return [r.status for r in fleet.requests(since, address) if "/down/" in r.path]


def test_a_round_by_a_mirror(fleet: TransferFleet, mirror: Guest) -> None:
    """The coordinator sends the weights once, in slices, to the mirror alone."""
    use_mirror(fleet, GOOD)
    since = time.time()
    run = fleet.hub.run([BOT, "run", "-c", RUN.format(rounds=1)]).stdout.strip()
    fleet.wait_for_end(run)
    (line,) = fleet.committed(run)[1:]
    down = {int(node["bytes_down"]) for node in line["nodes"]}  # type: ignore[attr-defined]
    assert len(down) == 1
    slices = -(-down.pop() // (4 * 2**20))
    assert downloads(fleet, since, mirror.address) == [206] * slices
    for node in fleet.nodes:
        assert downloads(fleet, since, node.address) == []
        assert "is left for this round" not in said_by(node, since)


def test_a_round_by_a_mirror_that_lies(fleet: TransferFleet, mirror: Guest) -> None:
    """What is right of it counts; the rest comes from the coordinator, and the log says why."""
    use_mirror(fleet, BAD)
    since = time.time()
    run = fleet.hub.run([BOT, "run", "-c", RUN.format(rounds=1)]).stdout.strip()
    fleet.wait_for_end(run)
    (line,) = fleet.committed(run)[1:]
    assert len(line["nodes"]) == 2  # type: ignore[arg-type]
    words = f"mirror {BAD} is left for this round (it sends other bytes than the round names)."
    for node in fleet.nodes:
        assert words in said_by(node, since)
        assert downloads(fleet, since, node.address) == [206], "the rest, in one request"


@pytest.fixture
def network_manager(fleet: TransferFleet) -> Guest:
    """A node whose network is NetworkManager's, by a profile with the address that it had."""
    node = fleet.nodes[0]
    install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends network-manager"
    try:
        node.run(f"export DEBIAN_FRONTEND=noninteractive; {install}", timeout=300)
    except CommandError as error:
        pytest.skip(f"apt cannot install NetworkManager: {error}")
    node.systemctl("start", "NetworkManager")
    route = node.run("ip -4 route show default").stdout.split()[2]
    address = node.run("ip -4 -o address show eth0").stdout.split()[3]
    node.run(
        "nmcli connection add type ethernet ifname eth0 con-name uplink ipv4.method manual"
        f" ipv4.addresses {address} ipv4.gateway {route} ipv6.method disabled"
        " connection.metered yes && nmcli connection up uplink"
    )
    return node


def test_a_metered_connection_rests_by_networkmanagers_word(
    fleet: TransferFleet, network_manager: Guest
) -> None:
    node = network_manager
    node.wait_until("nmcli -f general.metered device show eth0 | grep -qw yes", 30)
    fleet.wait_online(180)
    fleet.wait_for(node, "zk0d-client-superexec", "the line rests", 90)
    assert metric(node, 9473, "zk0d_line_rests") == 1
    before = fleet.moved(node)
    run = fleet.hub.run([BOT, "run", "-c", RUN.format(rounds=1)]).stdout.strip()
    fleet.wait_for(fleet.hub, "zk0d-server", "left cannot train (line_rests)", 180)
    assert fleet.moved(node) == before
    assert fleet.committed(run) == []

    node.run("nmcli connection modify uplink connection.metered no && nmcli connection up uplink")
    fleet.wait_for_end(run, 400)
    (mine,) = figures(fleet, run, node)
    after = fleet.moved(node)
    assert after.up - before.up == mine["bytes_up"]
    assert metric(node, 9473, "zk0d_line_rests") == 0
    assert not any(line["kind"] == "node.sits_out" for line in fleet.journal(run)), "no strike"
