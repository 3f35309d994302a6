from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from zk0d.cli.demo import Task as DemoTask
from zk0d.config.families import BUILT
from zk0d.config.machine import EvaluationDataset
from zk0d.demo.budget import run_values
from zk0d.simulators.task import TaskName
from zk0d.simulators.tasks import TASKS, recorded_task


def test_settings_and_the_command_name_the_tasks_there_are() -> None:
    simulator = EvaluationDataset.model_fields["simulator"].annotation
    assert set(get_args(simulator)) == {"", *TASKS}
    assert set(get_args(TaskName)) == set(TASKS) == {task.value for task in DemoTask}
    for name, task in TASKS.items():
        assert task.name == name
        assert run_values(name)["model-name"] in BUILT


@pytest.mark.parametrize("name", list(TASKS))
def test_recordings_are_recognized_by_their_state(name: str) -> None:
    task = TASKS[name]
    features = task.features(task.cameras)
    assert recorded_task(features["observation.state"]["names"]) is task
    # Joints alone may be anybody's.
    without = task.features(task.cameras, goal_in_state=False)["observation.state"]
    assert recorded_task(without["names"]) is None
    assert task.knows_goal(features["observation.state"]["shape"][0])
    assert not task.knows_goal(without["shape"][0])


def test_other_recordings_are_not_taken_for_the_simulators() -> None:
    assert recorded_task(()) is None
    assert recorded_task(["a", "b"]) is None


def test_naming_the_tasks_loads_neither_torch_nor_mujoco() -> None:
    code = (
        "import sys, zk0d.simulators.tasks;"
        "sys.exit(bool({'torch', 'mujoco', 'lerobot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
