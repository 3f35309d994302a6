"""What the federation is compared with, and how each policy's success is measured.

Every policy starts from the same weights, is trained by the same loop with the same schedule, and
drives the same simulated arms from the same held-out seeds. Plain averaging is done here, without
processes: it is what a federation does without drift correction and server momentum.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from zk0d.config.machine import CacheSettings
from zk0d.config.run import RunSettings
from zk0d.federation.aggregate import weighted_mean
from zk0d.learner.contributor import round_seed
from zk0d.learning.evaluate import roll_out
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import Adapter
from zk0d.learning.statistics import Statistics, merge
from zk0d.learning.train import Moments, StepPlan, train
from zk0d.simulators.task import Sector
from zk0d.simulators.tasks import TASKS

#: Held-out episodes begin from here: no recording and no evaluation during the run uses these.
SUCCESS_SEED = 20_000_000


@dataclass(frozen=True)
class Job:
    """One policy to measure: trained on ``recordings``, or read from ``weights``.

    Of several recordings, each trains a policy of its own for a round, and after every round all
    continue from the mean of their weights.
    """

    title: str
    settings: RunSettings
    recordings: tuple[Path, ...]  #: the first gives the policy's shape
    sectors: tuple[Sector, ...]
    episodes: int
    task: str = "soreach"
    steps: int = 0
    weights: Path | None = None
    statistics: Path | None = None

    @property
    def work(self) -> int:
        """Steps to train, of all together."""
        return 0 if self.weights is not None else self.steps * len(self.recordings)


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
    recordings = [open_recordings(f"local:{path}") for path in job.recordings]
    settings, summary = job.settings, recordings[0].summary
    spec = spec_for(
        settings.policy,
        settings.model_name,
        settings.seed,
        summary,
        models={},
        adapter=Adapter.of(settings),
    )
    policy = load_policy(spec, device="cpu")
    if job.weights is not None and job.statistics is not None:
        policy.load_weights(safetensors.numpy.load_file(job.weights))
        statistics = Statistics.model_validate_json(job.statistics.read_text(encoding="utf-8"))
    else:
        augments = settings.training.image_augmentation
        data = [
            PreparedRecordings(each, policy, CacheSettings(), augments=augments)
            for each in recordings
        ]
        of_each = [each.statistics() for each in data]
        statistics = merge(of_each) if of_each[1:] else of_each[0]
        _train(job, policy, data, statistics)
    seeds = list(range(SUCCESS_SEED, SUCCESS_SEED + job.episodes))
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


def _train(
    job: Job, policy: LoadedPolicy, data: list[PreparedRecordings], statistics: Statistics
) -> None:
    """Train ``policy`` in place: in one go, or in rounds with an average after each."""
    settings, schedule = job.settings, job.settings.schedule
    alone = len(data) == 1
    rounds = 1 if alone else settings.rounds.num_server_rounds
    steps = job.steps // rounds
    plan = StepPlan(
        training=settings.training.model_copy(update={"local_steps": steps}),
        first_step=0,
        schedule=CosineSchedule(
            peak=schedule.initial_lr,
            end=schedule.initial_lr * schedule.final_lr_fraction,
            warmup_steps=schedule.warmup_steps,
            total_steps=job.steps,
        ),
        seed=settings.seed,
    )
    batches = [each.batches(statistics) for each in data]
    moments = [Moments(policy) for _ in data]
    alike = np.ones(len(data), np.float32)
    for number in range(1, rounds + 1):
        begun, made = policy.weights(), []
        for node, part in enumerate(data):
            policy.load_weights(begun)
            seed = settings.seed if alone else round_seed(settings.seed, number, str(node))
            optimizer = moments[node].begin(
                job.title,
                number,
                settings.training.weight_decay,
                backbone_lr_factor=settings.training.backbone_lr_factor,
            )
            now = replace(plan, first_step=(number - 1) * steps, seed=seed)
            train(policy, batches[node], part.usable, optimizer, now)
            made.append(policy.weights())
        mean = {
            name: weighted_mean(np.stack([each[name].ravel() for each in made]), alike)
            for name in begun
        }
        policy.load_weights({name: mean[name].reshape(begun[name].shape) for name in begun})
