"""A simulated arm that is calibrated otherwise: the same pose reads as other numbers.

Where an arm's zeros lie is decided when its owner calibrates it. Two arms that do the same then
record joints that differ by a constant, while their cameras show the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.simulators.task import Arm, Sector, Task

#: What each joint reads more, in its unit.
Calibration = tuple[float, ...]

STATE, ACTION = "observation.state", "action"


def calibrated(arm: Arm, offsets: Sequence[float]) -> Arm:
    """``arm`` with joints that read ``offsets`` more, in their units; none: as it is."""
    return _Calibrated(arm, offsets) if offsets else arm


def calibrations(task: Task, count: int, deviations: float, seed: int) -> list[Calibration]:
    """So many calibrations: each joint's offset is about so many of its standard deviations.

    Its size is within a quarter of that, up or down by chance.
    """
    arm = task.make(Sector(), (), 96, False)
    frames = [frame for n in range(20) for frame in task.demonstrate(arm, seed + n)[0]]
    spread = np.std([frame[STATE][: len(task.state)] for frame in frames], axis=0)
    dice = np.random.default_rng(seed)
    shape = (count, len(spread))
    factors = dice.choice([-1.0, 1.0], shape) * dice.uniform(0.75, 1.25, shape)
    offsets: list[list[float]] = (deviations * factors * spread).tolist()
    return [tuple(each) for each in offsets]


def recalibrate(frame: dict[str, Any], offsets: Sequence[float]) -> dict[str, Any]:
    """An observation or a recorded frame as an arm whose joints read ``offsets`` more has it.

    The first numbers of a state are the joints; what follows them (a goal) is no joint's.
    """
    added = np.asarray(offsets, dtype=np.float32)
    joints = {}
    for name in {STATE, ACTION} & frame.keys():
        joints[name] = np.array(frame[name])
        joints[name][: len(added)] += added
    return {**frame, **joints}


class _Calibrated:
    """Reads and takes joints in its own numbers."""

    def __init__(self, arm: Arm, offsets: Sequence[float]) -> None:
        self._arm = arm
        self._offsets = offsets
        self.cameras = arm.cameras
        self.frame = 0

    @property
    def task(self) -> str:
        return self._arm.task

    def reset(self, seed: int) -> dict[str, Any]:
        self.frame = 0
        return recalibrate(self._arm.reset(seed), self._offsets)

    def observe(self) -> dict[str, Any]:
        return recalibrate(self._arm.observe(), self._offsets)

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[bool, bool]:
        done = self._arm.step(action - np.asarray(self._offsets))
        self.frame = self._arm.frame
        return done
