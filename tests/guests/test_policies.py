"""The release of a run comes home to two machines, by the project's own units."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.lab import Guest, Lab
from tests.guests.test_federation import BOT, RUN, Fleet, recordings_of
from tests.made import record

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

#: Half of them are held out for a comparison, which takes five or more.
EPISODES = 12
#: The rates with which a run of three rounds passes the gate.
LEARNS = " initial-lr=0.003 warmup-steps=1 checkpoint-interval=1 keep-checkpoints=5"
POLICIES = Path("/var/lib/zk0d/policies")
#: The owner of the arm, who is no user of zk0d's.
OWNER = "ann"


@pytest.fixture(scope="module")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("policies")
    made = Fleet(lab, recordings_of(record(folder / "made", EPISODES), folder))
    made.wait_online()
    yield made
    made.close()


@pytest.fixture(scope="module")
def run(fleet: Fleet) -> str:
    """A run whose last round passed the gate."""
    started = fleet.hub.run([BOT, "run", "-c", RUN.format(40) + LEARNS]).stdout.strip()
    fleet.wait_for_end(started)
    return started


def hash_of(guest: Guest, checkpoint: Path) -> str:
    return guest.run(["sha256sum", str(checkpoint / "model.safetensors")]).stdout.split()[0]


def test_a_release_is_pulled_by_one_and_brought_to_the_other(fleet: Fleet, run: str) -> None:
    asks, waits = fleet.nodes

    def latest_is_offered() -> bool:
        releases = json.loads(asks.run([BOT, "policy", "list", "--json"]).stdout)["releases"]
        return any("latest" in each["named"] for each in releases)

    asks.wait_until(latest_is_offered, 120, "the release")
    folder = Path(asks.run([BOT, "policy", "pull"], timeout=120).stdout.splitlines()[-1])
    assert folder.is_relative_to(POLICIES / run)
    shown = json.loads(asks.run([BOT, "policy", "show", "--json"]).stdout)
    assert (shown["state"], shown["folder"]) == ("whole", str(folder))

    waits.run("sed -i '1i policy-updates = true' /etc/zk0d/client.toml")
    assert waits.run("systemctl is-active zk0d-policy-updates.timer").stdout.strip() == "active"
    waits.systemctl("start", "zk0d-policy-updates")
    hub = Path("/var/lib/zk0d/releases") / folder.relative_to(POLICIES)
    assert hash_of(asks, folder) == hash_of(waits, folder) == hash_of(fleet.hub, hub)
    owner = waits.run(["stat", "-c", "%U %a", str(folder / "config.json")]).stdout.split()
    assert owner == ["zk0d-node", "444"]


def test_the_arms_owner_compares_and_tunes(fleet: Fleet, run: str) -> None:
    """By a user without rights, on recordings that this user may only read."""
    node = fleet.nodes[0]
    node.run([BOT, "policy", "pull", f"{run}/1"], timeout=120)
    node.run(["useradd", "-m", OWNER])
    mine = "--dataset /srv/recordings --hold-out 0.5 --json"
    verb = f"cd; {BOT} policy"
    compare = f"{verb} compare latest {run}/1 --rollouts 0 {mine}"
    compared = json.loads(node.run(compare, timeout=300, user=OWNER).stdout)
    for policy in compared["policies"]:
        assert len(policy["by_episode"]) == EPISODES // 2
    tune = f"{verb} tune latest --steps 20 --output tuned {mine}"
    tuned = node.run(tune, timeout=300, user=OWNER, check=False)
    assert tuned.returncode in (0, 1), tuned.stderr
    kept = node.run(["test", "-e", f"/home/{OWNER}/tuned/model.safetensors"], check=False)
    assert kept.returncode == tuned.returncode, "a tuned policy that is worse is not kept"


def test_a_file_that_was_altered_is_named(fleet: Fleet, run: str) -> None:
    node = fleet.nodes[1]
    (card,) = node.run(f"ls {POLICIES}/{run}/checkpoint_round_*/README.md").stdout.split()
    node.run(f"chmod 644 {card} && echo more >> {card}")
    said = node.run([BOT, "policy", "show"], check=False)
    assert said.returncode == 1
    assert "README.md is not as it was signed" in said.stdout
