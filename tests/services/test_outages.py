"""Nodes and their coordinator without learners: who comes and goes, what is killed and cut off."""

from __future__ import annotations

import os
import signal
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.flower.test_schema import set_revision
from tests.services.lab import Lab, lab, nginx, zk0bot
from zk0d.flower.schema import is_of_newer_flower
from zk0d.machine.keys import fingerprint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("outages"),
    pytest.mark.skipif(not nginx(), reason="needs nginx (package nginx-light) as the gateway"),
]

NAMES = ("left", "right")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    # A socket's path has at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), tmp_path_factory.getbasetemp()) as made,
    ):
        made.start("superlink", "superlink", "--config", str(made.server_toml))
        made.start_gateway()
        for name in NAMES:
            config = str(made.add_node(name))
            made.start(f"{name}-node", "supernode", "--config", config)
        made.start(
            "left-exec", "superexec", "client", "--config", str(made.root / "left/client.toml")
        )
        for name in NAMES:
            made.wait_for_status(f"{name}-node", "online", 90)
        yield made


def test_the_gateway_shows_the_fleet_and_the_presence_page_only(running: Lab) -> None:
    trust = ssl.create_default_context(cafile=str(running.certificates.ca))
    with httpx.Client(base_url=f"https://127.0.0.1:{running.gateway}", verify=trust) as client:
        for path in (
            "/v1/control/list-nodes",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/v1/fleet/../control/list-nodes",
            "/v1/fleet/%2e%2e/control/list-nodes",
            "/health",
            "/docs",
            "/zk0d/v1/",
        ):
            assert client.post(path).status_code == 403, path
        key = fingerprint(running.root / "left" / "node.pub")
        known = client.get(f"/zk0d/v1/nodes/{key}").json()
        assert known["enrolled"]
        assert known["online"]
        assert known["since"]
        unknown = client.get(f"/zk0d/v1/nodes/{'0' * 64}").json()
        assert unknown == {"version": 1, "enrolled": False, "online": False}
        assert client.get("/zk0d/v1/nodes/").status_code == 404, "there is no list"
        assert client.post(f"/zk0d/v1/nodes/{key}").status_code == 403, "it is read only"


def test_a_pause_ends_after_its_time(running: Lab) -> None:
    right = str(running.root / "right")
    assert zk0bot("client", "pause", "--for", "5s", "--folder", right).returncode == 0
    running.wait_for_status("right-node", "paused until", 10)
    running.wait_for_status("right-node", "online;", 90)
    assert not (running.root / "right" / "supernode" / "hold.json").exists()


def test_a_node_that_is_not_enrolled_says_so_and_comes_in_once_it_is(running: Lab) -> None:
    config = running.add_node("late", enrolled=False)
    running.start("late-node", "supernode", "--config", str(config))
    key = fingerprint(running.root / "late" / "node.pub")
    running.wait_for_status("late-node", f"not enrolled (fingerprint {key[:16]}")
    assert running.services["late-node"].told.ready, "waiting is no failed start"
    (running.root / "roster.d" / "late.pub").write_bytes(
        (running.root / "late" / "node.pub").read_bytes()
    )
    running.wait_for_status("late-node", "online", 120)
    # Taken from the roster, it is out again.
    (running.root / "roster.d" / "late.pub").unlink()
    running.wait_for_status("late-node", "not enrolled")
    running.services["late-node"].child.stop()
    running.services.pop("late-node").told.close()


def test_a_killed_superlink_comes_back_with_its_nodes(running: Lab) -> None:
    before = running.child_of("superlink", "zk0d.flower.superlink")
    before.send_signal(signal.SIGKILL)
    running.wait_for_status("superlink", "ended (signal 9)")
    running.wait_for_status("superlink", "nodes online")
    after = running.child_of("superlink", "zk0d.flower.superlink")
    assert after.pid != before.pid
    for name in NAMES:
        running.wait_for_status(f"{name}-node", "online", 120)


def test_a_killed_superexec_comes_back(running: Lab) -> None:
    running.child_of("left-exec", "zk0d.flower.superexec").send_signal(signal.SIGKILL)
    running.wait_for_status("left-exec", "ended (signal 9)")
    running.wait_for_status("left-exec", "ready for work")


def test_a_stopped_supernode_is_seen_by_the_coordinator_and_restarted(running: Lab) -> None:
    """Alive, but without a heartbeat: Flower's own health check would call it well."""
    before = running.child_of("right-node", "zk0d.flower.supernode")
    before.send_signal(signal.SIGSTOP)
    running.wait_for_status("right-node", "was not online: restarted", 150)
    running.wait_for_status("right-node", "online;", 150)
    assert running.child_of("right-node", "zk0d.flower.supernode").pid != before.pid


def test_an_unreachable_coordinator_is_waited_for(running: Lab) -> None:
    gateway = running.others[0]
    gateway.stop()
    node = running.child_of("left-node", "zk0d.flower.supernode").pid
    running.wait_for_status("left-node", "waiting for the coordinator 127.0.0.1")
    assert (
        "(connection refused); it will connect by itself"
        in running.services["left-node"].told.status
    )
    running.others.clear()
    running.start_gateway()
    running.wait_for_status("left-node", "online", 120)
    assert running.child_of("left-node", "zk0d.flower.supernode").pid == node, "no restart"


def test_a_database_that_is_too_large_is_rebuilt_from_the_roster(running: Lab) -> None:
    database = running.root / "superlink" / "superlink.db"
    with database.open("rb") as before:  # as long as it is open, no other file gets its number
        running.restart_superlink(("[superlink]\n", "[superlink]\ndatabase-limit-mib = 0.001\n"))
        running.wait_for_status("superlink", "the database was too large")
        running.wait_for_status("superlink", "2 of 2 nodes online", 120)
        assert not os.path.samestat(database.stat(), os.fstat(before.fileno()))
    for name in NAMES:
        running.wait_for_status(f"{name}-node", "online;", 120)


@pytest.mark.long
def test_a_newer_flowers_database_is_rebuilt_from_the_roster(running: Lab) -> None:
    """As after ``zk0d-release rollback``: Flower has no way back to an older schema."""
    database = running.root / "superlink" / "superlink.db"
    running.restart_superlink(meanwhile=lambda: set_revision(database, "0123456789ab"))
    running.wait_for_status("superlink", "2 of 2 nodes online", 120)
    assert not is_of_newer_flower(database)
    for name in NAMES:
        running.wait_for_status(f"{name}-node", "online;", 120)
