"""Tiny policies for arms, as folders in LeRobot's layout."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from tests.mocks.mock_robot import SO101
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import FeatureStatistics, Statistics

JOINTS = tuple(f"{joint}.pos" for joint in SO101)
#: What the recordings' actions go from and to: degrees, and percent of the gripper.
LOW, HIGH = (-60.0, -80.0, -20.0, -45.0, -120.0, 0.0), (60.0, 10.0, 80.0, 45.0, 45.0, 100.0)


def statistics(
    low: tuple[float, ...] = LOW, high: tuple[float, ...] = HIGH, std: float | None = None
) -> Statistics:
    """Of recordings with these ranges."""
    pairs = list(zip(low, high, strict=True))
    feature = FeatureStatistics(
        count=100,
        mean=tuple((a + b) / 2 for a, b in pairs),
        std=tuple((b - a) / 4 if std is None else std for a, b in pairs),
        min=low,
        max=high,
    )
    return Statistics(features={STATE: feature, ACTION: feature})


@functools.cache
def _tiny(family: str, width: int, cameras: tuple[str, ...]) -> LoadedPolicy:
    torch.set_num_threads(1)
    spec = PolicySpec(
        policy=family,
        model_name="tiny",
        seed=0,
        fps=30,
        state_width=width,
        action_width=width,
        cameras=dict.fromkeys(cameras, (3, 96, 96)),
    )
    return load_policy(spec, device="cpu")


def write_policy(
    folder: Path,
    told: Statistics | None = None,
    *,
    family: str = "act",
    cameras: tuple[str, ...] = ("front",),
    groups: Mapping[str, Statistics] = {},
    robot_types: tuple[str, ...] = ("mock_robot",),
    names: tuple[str, ...] = JOINTS,
    fps: float | None = 30.0,
    lerobot: str = "",
    change: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """A policy that was not trained, and says of itself what a release says.

    Parameters
    ----------
    change
        Spoils the folder.
    """
    made = told or statistics()
    width = len(made.features[ACTION].mean)
    loaded = _tiny(family, width, cameras)

    def more(draft: Path) -> None:
        origin = {
            "versions": {"lerobot": lerobot or version("lerobot")},
            "robot_types": list(robot_types),
            "joints": {"state": list(names), "action": list(names)},
            "fps": fps,
        }
        (draft / "provenance.json").write_text(json.dumps(origin))

    write_checkpoint(loaded, made, folder, more, groups=groups)
    change(folder)
    return folder
