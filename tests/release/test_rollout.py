"""The command that starts a policy on an arm is one that LeRobot takes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.release.stand_in_checkpoint import CONFIG
from zk0d.release.rollout import command, lines

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


def words(printed: list[str]) -> list[str]:
    """The words of the second line and those after it."""
    program, *rest = shlex.split(" ".join(line.rstrip("\\") for line in printed[1:]))
    assert program == "lerobot-rollout"
    return rest


def parsed(folder: Path, printed: list[str], more: str = "") -> list[Any]:
    """What LeRobot makes of a command in that folder, with ``more`` of its settings."""
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            PARSE.replace("cfg.duration", f"cfg.duration{more}"),
            *words(printed),
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    return list(json.loads(said.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_lerobot_takes_the_command(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shown = lines(tmp_path, ["so_follower"])
    assert shown[0] == f"cd {tmp_path}"
    assert parsed(tmp_path, shown) == [
        "so100_follower",  # LeRobot has one class for both, which calls itself so
        {"front": 0},
        "act",
        ".",
        "pick up the cube",
        60.0,
    ]


@pytest.mark.slow
def test_lerobot_takes_the_command_of_a_robots_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    robot = {
        "type": "so101_follower",
        "port": "/dev/my arm",
        "id": None,
        "max_relative_target": {"gripper": 5.0},
        "use_degrees": False,
        "cameras": {
            "top": {"type": "opencv", "index_or_path": 2, "width": 64, "height": 48, "fps": 30}
        },
    }
    printed = command(
        tmp_path,
        robot,
        group="",
        renamed={"observation.images.top": "observation.images.front"},
        task="put the 'cube' away",
        fps=20.0,
        seconds=12.5,
        device="cpu",
        chunks_ahead=True,
    )
    more = (
        ", cfg.fps, cfg.rename_map, cfg.inference.type, cfg.robot.port,"
        " cfg.robot.max_relative_target, cfg.robot.use_degrees"
    )
    assert parsed(tmp_path, printed, more) == [
        "so100_follower",
        {"top": 2},
        "act",
        ".",
        "put the 'cube' away",
        12.5,
        20.0,
        {"observation.images.top": "observation.images.front"},
        "rtc",
        "/dev/my arm",
        {"gripper": 5.0},
        False,
    ]


def test_a_robot_and_cameras_that_are_not_told(tmp_path: Path) -> None:
    assert "--robot.type=so101_follower" in " ".join(lines(tmp_path, []))
    told = " ".join(lines(tmp_path, ["unknown", "koch_follower"]))
    assert "--robot.type=koch_follower" in told
    assert "--robot.cameras" not in told
