"""Two machines with one key, and restarts that look like it: real SuperNodes and SuperLink."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import wait_until
from tests.services.lab import Lab, Running, lab, nginx
from zk0d.machine import audit
from zk0d.services.coordinator import KEY_SHARED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not nginx(), reason="needs nginx (package nginx-light) as the gateway"),
]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Lab]:
    with tempfile.TemporaryDirectory(prefix="zk0d-") as root, lab(Path(root), tmp_path) as made:
        made.start("superlink", "superlink", "--config", str(made.server_toml))
        made.start_gateway()
        made.start("first", "supernode", "--config", str(made.add_node("left")))
        made.wait_for_status("first", "online;", 90)
        yield made


def start_copy(running: Lab) -> Running:
    """A second machine with the first one's disk."""
    config = running.add_node("copy", enrolled=False)
    for name in ("node.key", "node.pub"):
        shutil.copy(running.root / "left" / name, running.root / "copy" / name)
    return running.start("copy", "supernode", "--config", str(config))


def status(folder: Path, role: str) -> dict[str, Any]:
    said = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "zk0bot"), role, "status", "--json"),
            *("--folder", str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 1, said.stderr
    content: dict[str, Any] = json.loads(said.stdout)
    return content


def noted(running: Lab) -> list[tuple[str, str]]:
    """Nodes in the audit log, with what became of them."""
    return [(line["kind"], line["node"]) for line in audit.read(running.root / "superlink")]


def with_children(service: Running) -> list[psutil.Process]:
    own = psutil.Process(service.child.pid)
    return [own, *own.children(recursive=True)]


@pytest.mark.long
def test_the_copy_of_a_machine_is_named_on_both_sides(running: Lab) -> None:
    copy = start_copy(running)
    running.wait_for_status("copy", KEY_SHARED, 500)
    assert not any("STATUS=online" in line for line in copy.told.sent), "it never was"
    assert "this one is not let in" in copy.told.status
    running.wait_for_status("first", f"{KEY_SHARED}; this one is online", 150)
    running.wait_for_status("superlink", "two machines use the key of left", 150)

    for folder, online in (("copy", False), ("left", True)):
        node = status(running.root / folder, "client")
        assert node["node"]["online"] is online
        assert any(KEY_SHARED in line for line in node["todo"])
    server = status(running.root, "server")
    assert [(node["name"], node["key_shared"]) for node in server["nodes"]] == [("left", True)]
    assert any("two machines use the key of node left" in line for line in server["todo"])
    assert noted(running).count(("key.shared", "left")) == 1

    copy.child.stop()
    first = running.services["first"].told
    wait_until(lambda: first.status.startswith("online;"), "the end of it", 500)
    assert not any("two machines" in line for line in status(running.root, "server")["todo"])


@pytest.mark.long
def test_two_admitted_machines_with_one_key_are_named_on_both_sides(running: Lab) -> None:
    """The first was away for longer than its session; then Flower takes the heartbeats of both."""
    away = with_children(running.services["first"])
    for process in away:
        process.suspend()
    start_copy(running)
    running.wait_for_status("copy", "online;", 200)
    for process in away:
        process.resume()
    running.wait_for_status("first", KEY_SHARED, 500)
    running.wait_for_status("copy", KEY_SHARED)
    assert ("key.shared", "left") in noted(running)


@pytest.mark.long
def test_a_node_that_lost_power_is_not_a_second_machine(running: Lab) -> None:
    """Its old session counts as online for a minute, in which it is refused."""
    for old, attempt in (("first", "second"), ("second", "third")):
        before = running.services.pop(old)
        for process in with_children(before):
            process.kill()
        before.told.close()
        config = str(running.root / "left" / "client.toml")
        after = running.start(attempt, "supernode", "--config", config)
        running.wait_for_status(attempt, "the coordinator still holds this node's old session")
        running.wait_for_status(attempt, "online;", 200)
        told = after.told.sent
        refused = next(n for n, line in enumerate(told) if "old session" in line)
        assert not any("STATUS=online" in line for line in told[:refused])
        assert not any(KEY_SHARED in line for line in told)
    wait_until(lambda: noted(running).count(("node.online", "left")) >= 2, "the audit log", 150)
    assert "key.shared" not in {kind for kind, _ in noted(running)}
