"""From the invite to the policy on the arm: real services and nginx, ``zk0bot policy``, LeRobot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_until
from tests.release.test_portable import evaluator_at, released
from tests.services.lab import Lab, lab, nginx, zk0bot
from zk0d.config.machine import ClientSettings
from zk0d.machine import release_key
from zk0d.machine.enrolment import Invite
from zk0d.release.checkpoint import name_of
from zk0d.release.pulled import policy_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(nginx() is None, reason="nginx is not here"),
    pytest.mark.xdist_group("policy-verbs"),
]

#: What LeRobot does with the folder, without zk0d.
LOAD = """
import json, sys
from pathlib import Path
sys.modules["zk0d"] = None
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
kind = json.loads((Path(sys.argv[1]) / "config.json").read_text())["type"]
policy = get_policy_class(kind).from_pretrained(sys.argv[1])
make_pre_post_processors(policy.config, pretrained_path=sys.argv[1])
print(type(policy).__name__)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, recordings_folder: Path) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("hub"), recordings_folder) as made:
        made.start("superlink", "superlink", "--config", str(made.server_toml))
        made.start_gateway()
        made.wait_for_status("superlink", "no node may join yet")
        yield made


def joined(hub: Lab, folder: Path, name: str) -> Path:
    """A node that joined by an invite with a token."""
    made = zk0bot("server", "invite", "--for", "2h", "--folder", str(hub.root))
    assert made.returncode == 0, made.stderr
    line = Invite.from_line(made.stdout)
    own = release_key.public_half(hub.root / "superlink" / release_key.FILE)
    assert line.release_key == own
    invite = replace(line, address=f"127.0.0.1:{hub.gateway}").to_line()
    said = zk0bot("client", "join", invite, f"--name={name}", "--folder", str(folder))
    assert said.returncode == 0, said.stderr
    assert "the coordinator has approved this node" in said.stderr
    assert (folder / "tls/release.pub").read_text().strip() == own
    return folder


def asked(folder: Path, *words: str) -> dict[str, Any]:
    said = zk0bot("policy", *words, "--json", "--folder", str(folder))
    assert said.returncode == 0, said.stderr
    return dict(json.loads(said.stdout))


def test_the_policy_comes_home(hub: Lab, tmp_path: Path, recordings_folder: Path) -> None:
    arm = joined(hub, tmp_path / "arm", "arm")
    on_arm = ("--folder", str(arm))
    nothing = zk0bot("policy", "pull", *on_arm)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (69, 1)
    assert "the coordinator has no release yet" in nothing.stderr
    checkpoint = released(evaluator_at(hub.root / "server", recordings_folder), "act", "tiny")

    def offered() -> list[dict[str, Any]]:
        return list(asked(arm, "list")["releases"])

    wait_until(lambda: bool(offered()), "the release", 60.0, [hub.services["superlink"].child])
    (row,) = offered()
    assert row["name"] == name_of(checkpoint)
    assert row["folder"] is None
    pulled = zk0bot("policy", "pull", row["name"], *on_arm)
    assert pulled.returncode == 0, pulled.stderr
    folder = Path(pulled.stdout.splitlines()[-1])
    settings = ClientSettings.load(arm / "client.toml")
    assert (
        folder
        == policy_folder(row["name"].split("/")[0], settings)
        == policy_folder(str(folder), settings)
    )
    (row,) = offered()
    assert row["folder"] == str(folder)
    assert "here" in zk0bot("policy", "list", *on_arm).stdout
    shown = asked(arm, "show", row["name"])
    assert (shown["state"], shown["license"]) == ("whole", "apache-2.0")
    assert shown["data_licenses"] == {"held-out": "not said"}
    assert shown["robot_types"] == ["so101_follower"]
    text = zk0bot("policy", "show", row["name"], *on_arm).stdout
    assert "every file is as it was signed" in text
    assert f"cd {folder}" in text
    assert "lerobot-rollout --strategy.type=base --policy.path=." in text
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=False
    )
    assert loaded.stdout.split()[-1:] == ["ACTPolicy"], loaded.stderr
    again = zk0bot("policy", "pull", row["name"], *on_arm)
    assert "is here already" in again.stdout
    (folder / "README.md").chmod(0o644)
    (folder / "README.md").write_text("another card")
    changed = zk0bot("policy", "show", row["name"], *on_arm)
    assert changed.returncode == 1
    assert "README.md is not as it was signed" in changed.stdout
    away = hub.services["superlink"]
    away.child.stop(20)
    alone = zk0bot("policy", "list", *on_arm)
    assert (alone.returncode, alone.stderr.count("\n")) == (75, 1)
    here = zk0bot("policy", "list", "--here", *on_arm)
    assert (here.returncode, row["name"] in here.stdout) == (0, True)


def test_a_node_that_was_never_let_in(hub: Lab, tmp_path: Path) -> None:
    config = hub.add_node("stranger", enrolled=False)
    for verb in ("list", "pull"):
        said = zk0bot("policy", verb, "--folder", str(config.parent))
        assert said.returncode in (69, 75)
        assert said.stderr.count("\n") == 1
    shown = zk0bot("policy", "show", "--folder", str(config.parent))
    assert (shown.returncode, "zk0bot policy pull" in shown.stderr) == (69, True)
