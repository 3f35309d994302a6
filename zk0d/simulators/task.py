"""What a simulated task offers to recordings and to evaluation, whichever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sector:
    """Slice ``index`` of the table when it is cut into ``of`` equal slices, right to left."""

    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.of:
            raise ValueError(f"there is no sector {self.index} of {self.of}")

    def part(self, low: float, high: float) -> tuple[float, float]:
        """The bounds of this slice of ``low`` to ``high``, where low is to the right of the arm."""
        width = (high - low) / self.of
        return (low + self.index * width, low + (self.index + 1) * width)


class Arm(Protocol):
    """One simulated arm in one episode; :meth:`reset` begins another."""

    cameras: tuple[str, ...]
    frame: int  #: frames since the episode began

    def reset(self, seed: int) -> dict[str, Any]:
        """Begin the episode that ``seed`` determines; returns the first observation."""

    @property
    def task(self) -> str:
        """The instruction, as it stands in a recording."""

    def observe(self) -> dict[str, Any]:
        """State and camera images (uint8, height x width x 3) under LeRobot's names."""

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[bool, bool]:
        """Do what is commanded for one frame.

        Returns
        -------
        Whether the task is done now, and whether the episode is over.
        """


class MakeArm(Protocol):
    """Makes an arm, whose objects lie in one slice of the table."""

    def __call__(
        self, sector: Sector, cameras: tuple[str, ...], size: int, goal_in_state: bool
    ) -> Arm: ...


#: As in ``EvaluationDataset.simulator``.
TaskName = Literal["soreach", "so101"]

#: Frames (observation, ``action``, ``task``) of the expert's episode, and whether it succeeded.
Demonstration = tuple[list[dict[str, Any]], bool]


@dataclass(frozen=True)
class Task:
    """A task that can be recorded, and whose success can be measured.

    Attributes
    ----------
    name
        How settings call it.
    cameras
        What recordings show.
    state, goal, action
        Names of the numbers in a recording; the goal's are part of the state where it tells them.
    demonstrate
        Records the scripted expert's episode of a seed.
    """

    name: TaskName
    title: str
    fps: int
    cameras: tuple[str, ...]
    state: tuple[str, ...]
    goal: tuple[str, ...]
    action: tuple[str, ...]
    make: MakeArm
    demonstrate: Callable[[Any, int], Demonstration]

    def features(
        self, cameras: tuple[str, ...], size: int = 96, goal_in_state: bool = True
    ) -> dict[str, dict[str, Any]]:
        """LeRobot's description of a recording with images of ``size`` pixels per side."""
        state = [*self.state, *self.goal] if goal_in_state else list(self.state)
        return {
            "observation.state": {"dtype": "float32", "shape": (len(state),), "names": state},
            "action": {
                "dtype": "float32",
                "shape": (len(self.action),),
                "names": list(self.action),
            },
            **{
                f"observation.images.{camera}": {
                    "dtype": "video",
                    "shape": (size, size, 3),
                    "names": ["height", "width", "channels"],
                }
                for camera in cameras
            },
        }

    def knows_goal(self, state_width: int) -> bool:
        """Whether a state of so many numbers tells the goal."""
        return state_width > len(self.state)
