"""A node changes its key while a real SuperLink, gateway and SuperNode run."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.processes import wait_until
from tests.services.lab import Lab, lab, nginx, zk0bot
from zk0d.machine import audit
from zk0d.machine.keys import fingerprint, private_fingerprint
from zk0d.machine.roster import read_roster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(nginx() is None, reason="nginx is not here"),
    pytest.mark.xdist_group("renewal"),  # each test goes on where the one before it ended
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, recordings_folder: Path) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("hub"), recordings_folder) as made:
        made.add_node("left")
        made.start(
            *("superlink", "superlink", "--config", str(made.server_toml)),
            constants={"zk0d.services.members.OVERLAP_SECONDS": 5.0},
        )
        made.start_gateway()
        made.start("left", "supernode", "--config", str(made.root / "left/client.toml"))
        made.wait_for_status("left", "online; no run is under way")
        yield made


def renew(home: Path, timeout: str = "2m") -> tuple[int, str]:
    done = zk0bot("node", "renew", "--folder", str(home), "--timeout", timeout)
    return done.returncode, done.stdout + done.stderr


def test_a_running_node_gets_its_new_key_and_the_old_one_ends(hub: Lab) -> None:
    home, folder = hub.root / "left", hub.root / "roster.d"
    old, process = fingerprint(home / "node.pub"), hub.child_of("left", "zk0d.flower.supernode").pid
    code, said = renew(home)
    assert code == 0, said
    new = fingerprint(home / "node.pub")
    assert new != old
    assert private_fingerprint(home / "node.key") == new
    assert f"this node has its new key: fingerprint {new}" in said
    assert sorted(p.name for p in home.glob("node*")) == ["node.key", "node.pub"]
    assert hub.child_of("left", "zk0d.flower.supernode").pid != process
    trust = ssl.create_default_context(cafile=str(hub.certificates.ca))
    page = f"https://127.0.0.1:{hub.gateway}/zk0d/v1/nodes"

    def tells(key: str, what: str) -> bool:
        return bool(httpx.get(f"{page}/{key}", verify=trust).json()[what])

    assert tells(new, "online")
    wait_until(
        lambda: not tells(old, "enrolled"),
        "the old key's end",
        180.0,
        [running.child for running in hub.services.values()],
        interval=1.0,
    )
    assert set(read_roster(folder)) == {new}
    assert tells(new, "online"), "its new key is not touched"
    lines = [each for each in audit.read(hub.root / "superlink") if each.get("renewal")]
    assert [(each["kind"], each["node"], each["key"]) for each in lines] == [
        ("key.approved", "left", new),
        ("key.rotated", "left", new),
    ]


def test_a_refusal_leaves_the_old_key(hub: Lab) -> None:
    hub.add_node("stranger", enrolled=False)
    home = hub.root / "stranger"
    before = (home / "node.key").read_bytes()
    code, said = renew(home)
    assert code != 0
    assert "refuses the new key (the coordinator does not know the key" in said
    assert "the old key stays in use" in said
    assert (home / "node.key").read_bytes() == before


def test_a_coordinator_that_is_away_leaves_the_old_key(hub: Lab, tmp_path: Path) -> None:
    home = hub.root / "right"
    hub.add_node("right")
    settings = home / "client.toml"
    settings.write_text(settings.read_text().replace(f"127.0.0.1:{hub.gateway}", "127.0.0.1:1"))
    before = (home / "node.key").read_bytes()
    code, said = renew(home)
    assert code == 75
    assert "127.0.0.1:1 cannot be reached (connection refused); the old key stays in use" in said
    assert (home / "node.key").read_bytes() == before
    asked_with = (home / "node.next.key").read_bytes()
    renew(home)
    assert (home / "node.next.key").read_bytes() == asked_with, "a repeat asks for the same key"


def test_a_node_that_does_not_run_changes_its_key_too(hub: Lab) -> None:
    home = hub.root / "right"
    settings = home / "client.toml"
    settings.write_text(settings.read_text().replace('127.0.0.1:1"', f'127.0.0.1:{hub.gateway}"'))
    asked_with = fingerprint(home / "node.next.pub")
    code, said = renew(home)
    assert code == 0, said
    assert fingerprint(home / "node.pub") == asked_with
    both = {key for key, path in read_roster(hub.root / "roster.d").items() if "right" in path.name}
    assert len(both) == 2, "the old key ends when the new one is in use"
