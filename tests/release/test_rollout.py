"""The command that starts a policy on an arm is one that LeRobot takes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.release.stand_in_checkpoint import CONFIG
from zk0d.release.rollout import lines

#: What ``lerobot-rollout`` does with its command line before it looks for an arm.
PARSE = """
import json
from lerobot.scripts import lerobot_rollout
from lerobot.configs import parser
from lerobot.rollout import RolloutConfig

@parser.wrap()
def parsed(cfg: RolloutConfig):
    cameras = {name: each.index_or_path for name, each in cfg.robot.cameras.items()}
    print(json.dumps([cfg.robot.type, cameras, cfg.policy.type, str(cfg.policy.pretrained_path),
                      cfg.task, cfg.duration]))

parsed()
"""


def words(command: list[str]) -> list[str]:
    """The words of the second line and those after it."""
    program, *rest = shlex.split(" ".join(line.rstrip("\\") for line in command[1:]))
    assert program == "lerobot-rollout"
    return rest


@pytest.mark.slow
def test_lerobot_takes_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    command = lines(tmp_path, ["so_follower"])
    assert command[0] == f"cd {tmp_path}"
    said = subprocess.run(
        [sys.executable, "-c", PARSE, *words(command)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    assert json.loads(said.stdout.splitlines()[-1]) == [
        "so100_follower",  # LeRobot has one class for both, which calls itself so
        {"front": 0},
        "act",
        ".",
        "pick up the cube",
        60.0,
    ]


def test_a_robot_and_cameras_that_are_not_told(tmp_path: Path) -> None:
    assert "--robot.type=so101_follower" in " ".join(lines(tmp_path, []))
    command = " ".join(lines(tmp_path, ["unknown", "koch_follower"]))
    assert "--robot.type=koch_follower" in command
    assert "--robot.cameras" not in command
