"""Small policies that were trained for a moment, as checkpoints' folders."""

from __future__ import annotations

from pathlib import Path

import torch
from filelock import FileLock

from zk0d.config.machine import CacheSettings
from zk0d.config.run import TrainingSettings
from zk0d.demo.recordings import make_recordings
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.statistics import Statistics, merge
from zk0d.learning.train import Moments, StepPlan, train
from zk0d.simulators.task import Sector

EPISODES = 12
#: Of these episodes the tests hold out half.
HALF = 0.5


def halves(shared: Path) -> tuple[Path, Path]:
    """Recordings of the table's right half and of its left; do not change them."""
    folders = shared / "right-half", shared / "left-half"
    with FileLock(f"{folders[0]}.lock"):
        for index, folder in enumerate(folders):
            if not folder.exists():
                make_recordings(folder, Sector(index, 2), EPISODES, first_seed=300 + 100 * index)
    return folders


def of_both(shared: Path) -> Statistics:
    """What a federation of both halves' owners normalizes with."""
    opened = [open_recordings(f"local:{folder}") for folder in halves(shared)]
    return merge([each.statistics() for each in opened])


def trained(
    folder: Path, recordings: Path, steps: int, statistics: Statistics | None = None
) -> Path:
    """A tiny policy after so many steps on the first half of these recordings; its folder.

    Parameters
    ----------
    statistics
        What it normalizes with; by default those of these recordings.
    """
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return folder
        torch.set_num_threads(1)
        opened = open_recordings(f"local:{recordings}")
        loaded = load_policy(spec_for("smolvla", "tiny", 0, opened.summary, {}), device="cpu")
        prepared = PreparedRecordings(opened, loaded, CacheSettings(), 0, EPISODES // 2)
        used = statistics or opened.statistics()
        train(
            loaded,
            prepared.batches(used),
            prepared.usable,
            Moments(loaded).begin("test", 1, 0.01),
            StepPlan(
                training=TrainingSettings(local_steps=steps, batch_size=32),
                first_step=0,
                schedule=CosineSchedule(peak=2e-3, end=1e-4, warmup_steps=3, total_steps=steps),
                seed=0,
            ),
        )
        return write_checkpoint(loaded, used, folder)
