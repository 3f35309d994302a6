"""What the federation is compared with, and how each policy's success is measured.

Every policy starts from the same weights, is trained by the same loop with the same schedule, and
drives the same simulated arms from the same held-out seeds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.numpy
import torch

from zk0d.config.machine import CacheSettings
from zk0d.config.run import RunSettings
from zk0d.learning.evaluate import roll_out
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.statistics import Statistics
from zk0d.learning.train import Moments, StepPlan, train
from zk0d.simulators.task import Sector
from zk0d.simulators.tasks import TASKS

#: Held-out episodes begin from here: no recording and no evaluation during the run uses these.
SUCCESS_SEED = 20_000_000


@dataclass(frozen=True)
class Job:
    """One policy to measure: trained on ``recordings``, or read from ``weights``."""

    title: str
    settings: RunSettings
    recordings: Path  #: gives the policy's shape; trained on unless ``weights`` is given
    sectors: tuple[Sector, ...]
    episodes: int
    task: str = "soreach"
    steps: int = 0
    weights: Path | None = None
    statistics: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """Success in each sector, over ``episodes`` episodes each."""

    title: str
    steps: int
    success: tuple[float, ...]
    seconds: float


def measure(job: Job) -> Outcome:
    """Train (or read) a policy and let it drive; runs in a worker process."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    settings, schedule = job.settings, job.settings.schedule
    recordings = open_recordings(f"local:{job.recordings}")
    spec = spec_for(
        settings.policy, settings.model_name, settings.seed, recordings.summary, models={}
    )
    policy = load_policy(spec, device="cpu")
    if job.weights is not None and job.statistics is not None:
        policy.load_weights(safetensors.numpy.load_file(job.weights))
        statistics = Statistics.model_validate_json(job.statistics.read_text(encoding="utf-8"))
    else:
        data = PreparedRecordings(recordings, policy, CacheSettings())
        statistics = data.statistics()
        train(
            policy,
            data.batches(statistics),
            data.usable,
            Moments(policy).begin(
                job.title,
                1,
                settings.training.weight_decay,
                backbone_lr_factor=settings.training.backbone_lr_factor,
            ),
            StepPlan(
                training=settings.training.model_copy(update={"local_steps": job.steps}),
                first_step=0,
                schedule=CosineSchedule(
                    peak=schedule.initial_lr,
                    end=schedule.initial_lr * schedule.final_lr_fraction,
                    warmup_steps=schedule.warmup_steps,
                    total_steps=job.steps,
                ),
                seed=settings.seed,
            ),
        )
    seeds = list(range(SUCCESS_SEED, SUCCESS_SEED + job.episodes))
    summary = recordings.summary
    make = partial(
        TASKS[job.task].make,
        cameras=tuple(policy.spec.cameras),
        size=next(iter(summary.cameras.values()))[-1],
        goal_in_state=TASKS[job.task].knows_goal(summary.state_width),
    )
    success = tuple(
        roll_out(policy, statistics, partial(make, sector), seeds).success for sector in job.sectors
    )
    return Outcome(job.title, job.steps, success, time.perf_counter() - began)
