"""``zk0bot setup`` with a real coordinator: from nothing to online, in a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.test_cli import BIN
from tests.services.lab import SLOW_POLL, lab, nginx
from tests.terminal import Terminal
from zk0d.config.machine import ServerSettings
from zk0d.demo.federation import _free_ports
from zk0d.machine.enrolment import Invite, Request, invite_of
from zk0d.machine.roster import approve
from zk0d.machine.setup import change_client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(nginx() is None, reason="nginx is not here"),
]


def test_a_conversation_ends_with_a_node_that_is_online(
    tmp_path: Path, recordings_folder: Path
) -> None:
    home = tmp_path / "home"
    (home / "lerobot/ann").mkdir(parents=True)
    (home / "lerobot/ann/arm").symlink_to(recordings_folder)
    folder = tmp_path / "node"
    env = {**os.environ, "HF_LEROBOT_HOME": str(home / "lerobot"), "HOME": str(home)}
    argv = [str(BIN / "zk0bot"), "setup", "--folder", str(folder)]
    with lab(tmp_path / "hub", recordings_folder) as hub:
        hub.start("superlink", "superlink", "--config", str(hub.server_toml))
        hub.start_gateway()
        hub.wait_for_status("superlink", "no node may join yet")
        ca = invite_of(ServerSettings.load(hub.server_toml)).ca
        invite = Invite(f"127.0.0.1:{hub.gateway}", ca)
        with Terminal([*argv, invite.to_line()], env, tmp_path) as screen:
            screen.expect("What is this node called?")
            screen.type("left")
            screen.expect("Which recordings does this node lend?")
            assert screen.give_up() == 130
        # Other tests' nodes have the usual ports.
        (port,) = _free_ports(1)
        quiet = {"metrics": {"enabled": False}, "supernode": {"port": port}, "fetch-models": []}
        lean = {"superexec": SLOW_POLL, "learner": {"cpu-threads": 1}}
        change_client(folder / "client.toml", quiet | lean)
        with Terminal(argv, env, tmp_path) as screen:
            screen.expect("This node is called left and belongs to")
            screen.expect("1  ann/arm: 6 episodes")
            screen.expect("Which recordings does this node lend?")
            screen.type("")
            screen.expect("has other names for cameras", 120)
            screen.type("")
            screen.expect("When may it train?")
            screen.type("")
            screen.expect("Rest while you use this computer?")
            screen.type("")
            screen.expect("How much may it upload a second?")
            screen.type("")
            screen.expect("The same for a telephone's camera")
            screen.expect("Tell the operator this fingerprint")
            screen.expect("this node is not enrolled", 150)
            approve(hub.root / "roster.d", Request.from_text(screen.text.partition("camera:")[0]))
            screen.expect("left is online. What next:", 150)
            screen.expect("The services run here until Ctrl-C")
            screen.interrupt()
            assert screen.end(90) == 0, screen.text
            assert "Traceback" not in screen.text
        with Terminal([*argv, "--yes", "--timeout", "5m"], env, tmp_path) as screen:
            screen.expect("The coordinator has approved this node.")
            screen.expect("left is online. What next:", 150)
