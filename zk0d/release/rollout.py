"""How LeRobot starts a policy on an arm, as lines for a terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from zk0d.config.names import CONFIG_FILE, IMAGES

#: What LeRobot calls the arm in a command, by what recordings call it.
_FOLLOWERS = {
    "so100": "so100_follower",
    "so101": "so101_follower",
    "so_follower": "so101_follower",
}
#: In place of what only the owner knows.
PORT, TASK = "/dev/ttyACM0", "pick up the cube"


def lines(folder: Path, robot_types: Sequence[str]) -> list[str]:
    """The command, a part in each line.

    Parameters
    ----------
    robot_types
        Those that the policy was trained on.
    """
    known = [kind for kind in robot_types if kind != "unknown"]
    robot = _FOLLOWERS.get(known[0], known[0]) if known else "so101_follower"
    cameras = ", ".join(
        f"{name}: {{type: opencv, index_or_path: {number}, width: 640, height: 480, fps: 30}}"
        for number, name in enumerate(_cameras(folder))
    )
    return [
        # LeRobot looks below the current folder for what a policy carries of another model.
        f"cd {shlex.quote(str(folder))}",
        "lerobot-rollout --strategy.type=base --policy.path=. --device=cuda \\",
        f"  --robot.type={robot} --robot.port={PORT} --robot.id=my_arm \\",
        *([f'  --robot.cameras="{{{cameras}}}" \\'] if cameras else []),
        f'  --task="{TASK}" --duration=60',
    ]


def _cameras(folder: Path) -> list[str]:
    """What the policy calls its cameras."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        return [
            name.removeprefix(IMAGES)
            for name in content["input_features"]
            if name.startswith(IMAGES)
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
