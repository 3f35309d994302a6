"""The simulated tasks there are, by name."""

from __future__ import annotations

from collections.abc import Sequence

from zk0d.simulators.so101 import SO101_TASK
from zk0d.simulators.soreach import SOREACH_TASK
from zk0d.simulators.task import Task

TASKS: dict[str, Task] = {SOREACH_TASK.name: SOREACH_TASK, SO101_TASK.name: SO101_TASK}


def recorded_task(state_names: Sequence[str]) -> Task | None:
    """The task whose recordings name their state so, goal included; ``None`` if it is none's.

    Without the goal an arm's joints are those of any robot: nothing says whose they are.
    """
    for task in TASKS.values():
        if list(state_names) == [*task.state, *task.goal]:
            return task
    return None
