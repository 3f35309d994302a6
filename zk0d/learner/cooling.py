"""Keeps a GPU below the heat that its owner allows: the learner rests between steps."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from zk0d.learner.tasks import TaskControl
from zk0d.learning.progress import Cooling

#: Seconds between two looks: a card warms up more slowly.
LOOK_SECONDS = 5.0
#: So many degrees below the limit training goes on, or it would stop and go all the time.
BELOW = 5
REST_SECONDS = 2.0


class HeatLimit:
    """Called before each step; rests while the GPU is hotter than it may be.

    Parameters
    ----------
    most
        Degrees Celsius; 0 for any.
    celsius, clock
        Replaced in tests.
    """

    def __init__(
        self,
        control: TaskControl,
        most: int,
        device: torch.device,
        *,
        celsius: Callable[[torch.device], int] = torch.cuda.temperature,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._control = control
        self._most = most if device.type == "cuda" else 0
        self._device = device
        self._celsius = celsius
        self._clock = clock
        self._looked = float("-inf")

    def __call__(self) -> None:
        if not self._most or self._clock() - self._looked < LOOK_SECONDS:
            return
        heat, limit = self._celsius(self._device), self._most
        while heat > limit:
            limit = self._most - BELOW
            self._control.tell(Cooling(heat, limit))
            self._control.rest(REST_SECONDS)
            self._control.check()
            heat = self._celsius(self._device)
        self._looked = self._clock()
