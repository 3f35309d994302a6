"""How LeRobot starts a policy on an arm, as lines for a terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zk0d.config.names import CONFIG_FILE, GROUPS_FOLDER, IMAGES

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


def command(
    folder: Path,
    robot: Mapping[str, Any],
    *,
    group: str,
    renamed: Mapping[str, str],
    task: str,
    fps: float,
    seconds: float,
    device: str,
    chunks_ahead: bool,
) -> list[str]:
    """The command for a robot whose LeRobot configuration is known, a part in each line.

    Parameters
    ----------
    group
        Whose processors the policy needs, as ``statistics/GROUP`` in a copy of it; empty if none.
    renamed
        LeRobot's ``rename_map``.
    """
    place = shlex.quote(str(folder))
    begin = [f"cd {place}"]
    if group:
        own = shlex.quote(f"{GROUPS_FOLDER}/{group}")
        begin = [
            f"cp -rL --no-preserve=mode {place} my-policy && cd my-policy",
            f"cp {own}/* .",
        ]
    options = [
        *(f"--robot.{key}={_value(value)}" for key, value in robot.items() if value is not None),
        *([f"--rename_map={_value(dict(renamed))}"] if renamed else []),
        *(["--inference.type=rtc"] if chunks_ahead else []),
        f"--task={_value(task)} --fps={fps:g} --duration={seconds:g}",
    ]
    return [
        *begin,
        f"lerobot-rollout --strategy.type=base --policy.path=. --device={device} \\",
        *(f"  {option} \\" for option in options[:-1]),
        f"  {options[-1]}",
    ]


def _value(value: Any) -> str:
    """A value as LeRobot's command line takes it: a text, or JSON."""
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


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
