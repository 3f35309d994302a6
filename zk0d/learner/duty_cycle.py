"""Lends a part of a device's time, and so of its power: the learner rests between steps."""

from __future__ import annotations

import time

import torch

from zk0d.learner.tasks import TaskControl


class DutyCycle:
    """Called before each step; rests so long that computing is ``share`` of the time.

    Parameters
    ----------
    share
        Above 0, at most 1; with 1 it never rests.
    device
        Its queued work is waited for, so that it rests as well.
    """

    def __init__(self, control: TaskControl, share: float, device: torch.device) -> None:
        self._control = control
        self._share = share
        self._device = device
        self._since = time.perf_counter()

    def __call__(self) -> None:
        self._control.check()
        if self._share == 1.0:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        worked = time.perf_counter() - self._since
        self._control.rest(worked * (1.0 / self._share - 1.0))
        self._control.check()
        self._since = time.perf_counter()
