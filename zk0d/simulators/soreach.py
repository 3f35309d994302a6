"""SoReach: a kinematic SO-101-shaped arm that touches a block on a table.

Six joints with LeRobot's SO-100/SO-101 motor names, link lengths of that arm's size, no physics: a
joint moves towards its command at a limited speed. The gripper tip has to reach the block and close
there. A scripted expert (closed-form inverse kinematics) demonstrates it, so recordings cost
nothing and success of a policy can be measured instead of guessed from its loss.

The table is a fan in front of the arm. A :class:`~zk0d.simulators.task.Sector` is an equal slice of
it, one for each contributor: each sees only its own part of the task.

Needs numpy and Pillow only; importing it does not import torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from zk0d.simulators.task import Sector, Task

FPS = 30
CAMERAS = ("top", "side")
JOINTS = (
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
)
GOAL = ("goal.x", "goal.y", "goal.z")

UPPER_ARM, FOREARM, HAND, SHOULDER_HEIGHT = 0.1126, 0.1349, 0.10, 0.11  # metres
HOME = np.array([0.0, -60.0, 60.0, 60.0, 0.0, 80.0])  # degrees; gripper in percent open
HOME_SPREAD = np.array([4.0, 3.0, 3.0, 3.0, 2.0, 3.0])  # standard deviation of the start pose
SPEED_LIMIT = np.array([6.0, 6.0, 6.0, 6.0, 6.0, 12.0])  # change per frame at 30 fps

# The fan of block positions. The scripted expert reaches all of it; further out it does not.
NEAR, FAR = 0.15, 0.25  # metres from the shoulder axis
HALF_ANGLE = np.deg2rad(50.0)
BLOCK_HEIGHT = 0.02

REACHED = 0.025  # metres from tip to block that count as touching it
CLOSED = 30.0  # percent open below which the gripper counts as closed
HOLD_FRAMES = 3
MAX_FRAMES = 70

COLOURS = {"red": (220, 40, 40), "blue": (40, 70, 220), "green": (30, 160, 60)}

Floats = NDArray[np.float64]


def joint_positions(joints: NDArray[Any]) -> Floats:
    """Forward kinematics.

    Parameters
    ----------
    joints
        Shape ``(..., 6)``, degrees. Zero lift is upright.

    Returns
    -------
    Base, shoulder, elbow, wrist and tip in metres, shape ``(..., 5, 3)``.
    """
    joints = np.asarray(joints, dtype=np.float64)
    pan, lift, elbow, wrist = (np.deg2rad(joints[..., i]) for i in range(4))
    upper = np.pi / 2 - lift
    fore = upper - elbow
    hand = fore - wrist
    zero = np.zeros_like(pan)
    reach = np.cumsum(
        [zero, zero, UPPER_ARM * np.cos(upper), FOREARM * np.cos(fore), HAND * np.cos(hand)], axis=0
    )
    height = np.cumsum(
        [
            zero,
            np.full_like(pan, SHOULDER_HEIGHT),
            UPPER_ARM * np.sin(upper),
            FOREARM * np.sin(fore),
            HAND * np.sin(hand),
        ],
        axis=0,
    )
    reach, height = np.moveaxis(reach, 0, -1), np.moveaxis(height, 0, -1)
    return np.stack([reach * np.cos(pan)[..., None], reach * np.sin(pan)[..., None], height], -1)


def reach_pose(tip: Floats, pitch: float = -80.0) -> Floats:
    """Closed-form inverse kinematics: joints that bring the tip to ``tip`` (metres, shape 3).

    ``pitch`` is the hand's angle above the horizontal in degrees. A point out of reach gives the
    pose that stretches towards it. The wrist rolls against the pan, so that no joint is constant.
    """
    x, y, z = tip
    pan = np.degrees(np.arctan2(y, x))
    tilt = np.deg2rad(pitch)
    out = np.hypot(x, y) - HAND * np.cos(tilt)
    up = z - HAND * np.sin(tilt) - SHOULDER_HEIGHT
    cosine = (out**2 + up**2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    bend = np.arccos(np.clip(cosine, -1.0, 1.0))
    upper = np.arctan2(up, out) + np.arctan2(
        FOREARM * np.sin(bend), UPPER_ARM + FOREARM * np.cos(bend)
    )
    elbow = np.degrees(bend)
    return np.array(
        [pan, 90.0 - np.degrees(upper), elbow, np.degrees(upper) - elbow - pitch, -0.5 * pan, 80.0]
    )


class SoReach:
    """One arm, one table, one block.

    Parameters
    ----------
    sector
        Where blocks may lie.
    cameras
        Which of :data:`CAMERAS` an observation shows.
    size
        Pixels per side of a camera image.
    goal_in_state
        Whether the state tells where the block is. If not, only images do, which is much harder.
    """

    def __init__(
        self,
        sector: Sector = Sector(),
        cameras: tuple[str, ...] = ("top",),
        size: int = 96,
        goal_in_state: bool = True,
    ) -> None:
        unknown = set(cameras) - set(CAMERAS)
        if unknown:
            raise ValueError(f"SoReach has no camera {sorted(unknown)}; it has {list(CAMERAS)}")
        self.sector = sector
        self.cameras = cameras
        self.size = size
        self.goal_in_state = goal_in_state

    def reset(self, seed: int) -> dict[str, Any]:
        """Begin the episode that ``seed`` determines; returns the first observation."""
        self._random = np.random.default_rng(seed)
        radius = self._random.uniform(NEAR, FAR)
        bearing = self._random.uniform(*self.sector.part(-HALF_ANGLE, HALF_ANGLE))
        self.goal = np.array([radius * np.cos(bearing), radius * np.sin(bearing), BLOCK_HEIGHT])
        self.colour = str(self._random.choice(list(COLOURS)))
        self.joints = HOME + self._random.normal(0.0, HOME_SPREAD)
        self.joints[5] = np.clip(self.joints[5], 0.0, 100.0)
        self.frame = 0
        self._held = 0
        return self.observe()

    @property
    def task(self) -> str:
        """The instruction, as it stands in a recording."""
        return f"touch the {self.colour} block"

    @property
    def tip(self) -> Floats:
        """The gripper tip in metres, shape ``(3,)``."""
        tip: Floats = joint_positions(self.joints)[4]
        return tip

    def step(self, action: NDArray[Any]) -> tuple[bool, bool]:
        """Move towards the commanded joints (shape 6, degrees) for one frame.

        Returns
        -------
        Whether the block is held now, and whether the episode is over.
        """
        change = np.clip(
            np.asarray(action, dtype=np.float64) - self.joints, -SPEED_LIMIT, SPEED_LIMIT
        )
        self.joints = self.joints + change
        self.joints[5] = np.clip(self.joints[5], 0.0, 100.0)
        self.frame += 1
        touching = np.linalg.norm(self.tip - self.goal) < REACHED and self.joints[5] < CLOSED
        self._held = self._held + 1 if touching else 0
        success = self._held >= HOLD_FRAMES
        return success, success or self.frame >= MAX_FRAMES

    def expert_action(self) -> Floats:
        """What a leader arm would command now: over the block, down, close."""
        tip = self.tip
        away = np.hypot(*(tip - self.goal)[:2])
        if away > 0.02 and tip[2] > 0.05:
            target = reach_pose(self.goal + [0.0, 0.0, 0.06])
        else:
            target = reach_pose(self.goal + [0.0, 0.0, 0.01])
        if np.linalg.norm(tip - self.goal) < 0.018:
            target[5] = 5.0
        return self.joints + np.clip(target - self.joints, -SPEED_LIMIT, SPEED_LIMIT)

    def state(self) -> NDArray[np.float32]:
        """Joints (degrees, gripper in percent), shape ``(6,)``; with the goal (m), ``(9,)``."""
        known = [self.joints, self.goal] if self.goal_in_state else [self.joints]
        state: NDArray[np.float32] = np.concatenate(known).astype(np.float32)
        return state

    def observe(self) -> dict[str, Any]:
        """State and camera images (uint8, height x width x 3) under LeRobot's names."""
        return {
            "observation.state": self.state(),
            **{f"observation.images.{camera}": self.render(camera) for camera in self.cameras},
        }

    def render(self, camera: str) -> NDArray[np.uint8]:
        """A drawing of arm and block from above (``top``) or from the right (``side``)."""
        size = self.size
        image = Image.new("RGB", (size, size), (205, 200, 190))
        draw = ImageDraw.Draw(image)

        def pixel(point: Floats) -> tuple[float, float]:
            across, along = (
                (-point[1], point[0]) if camera == "top" else (point[0] - 0.14, point[2])
            )
            return size * (0.5 + across / 0.44), size * (0.875 - along / 0.40)

        u, v = pixel(self.goal)
        half = 0.014 / 0.44 * size
        draw.rectangle([u - half, v - half, u + half, v + half], fill=COLOURS[self.colour])
        points = [pixel(point) for point in joint_positions(self.joints)]
        draw.line(points, fill=(60, 60, 60), width=max(1, round(size / 32)))
        for u, v in points:
            draw.ellipse(
                [u - size / 48, v - size / 48, u + size / 48, v + size / 48], (250, 150, 30)
            )
        u, v = points[-1]
        opening = (1.0 + 2.5 * self.joints[5] / 100.0) * size / 96.0
        draw.ellipse([u - opening, v - opening, u + opening, v + opening], outline=(20, 20, 20))
        return np.asarray(image)


def demonstrate(
    arm: SoReach, seed: int, wobble: float = 1.0, linger: int = 4
) -> tuple[list[dict[str, Any]], bool]:
    """Record the scripted expert.

    Parameters
    ----------
    wobble
        Standard deviation in degrees of noise on the executed (not the recorded) command, so that
        recordings show how to correct an error.
    linger
        Frames recorded after success.

    Returns
    -------
    The frames (observation, ``action`` as float32 of shape 6, ``task``), and whether it succeeded.
    """
    observation = arm.reset(seed)
    noise = np.random.default_rng([seed, 1])
    frames: list[dict[str, Any]] = []
    succeeded = False
    while True:
        action = arm.expert_action()
        frames.append({**observation, "action": action.astype(np.float32), "task": arm.task})
        success, _ = arm.step(action + noise.normal(0.0, wobble, 6))
        succeeded = succeeded or success
        linger -= succeeded
        if arm.frame >= MAX_FRAMES or linger < 0:
            return frames, succeeded
        observation = arm.observe()


SOREACH_TASK = Task(
    name="soreach",
    title="SoReach",
    fps=FPS,
    cameras=("top",),
    state=JOINTS,
    goal=GOAL,
    action=JOINTS,
    make=SoReach,
    demonstrate=demonstrate,
)
