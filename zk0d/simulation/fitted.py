"""Training on one owner's recordings in one go: a release's finish, or a policy of one's own.

It is a node's round (``learning.train``), with a schedule over all of its steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zk0d.config.run import RunSettings, TrainingSettings
from zk0d.errors import ConfigError
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, release_gpu_memory, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.progress import Progress, Training
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.statistics import Statistics
from zk0d.learning.train import Moments, StepPlan, train
from zk0d.learning.trained import TrainedPolicy
from zk0d.release.checkpoint import settings_of
from zk0d.simulation.owned import OwnRecordings, statistics_for
from zk0d.simulation.versus import Options, no_tell

#: A short training warms up in this share of its steps.
WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Course:
    """What to do: a node's work, at which rates, and how strongly it is pulled to its start."""

    training: TrainingSettings
    schedule: CosineSchedule
    seed: int
    pull: float = 0.0

    @classmethod
    def of(
        cls,
        run: RunSettings,
        steps: int,
        seed: int,
        *,
        peak: float | None = None,
        batch_size: int | None = None,
        pull: float = 0.0,
    ) -> Course:
        """As a run's nodes train, in so many steps; rate and batch unless others are given."""
        highest = run.schedule.initial_lr if peak is None else peak
        training = run.training.model_copy(
            update={
                "local_steps": steps,
                "round_minutes": 0.0,
                "batch_size": batch_size or run.training.batch_size,
            }
        )
        schedule = CosineSchedule(
            peak=highest,
            end=highest * run.schedule.final_lr_fraction,
            warmup_steps=min(run.schedule.warmup_steps, int(WARM_UP_SHARE * steps)),
            total_steps=steps,
        )
        return cls(training, schedule, seed, pull)


def fit(
    loaded: LoadedPolicy,
    prepared: PreparedRecordings,
    statistics: Statistics,
    course: Course,
    tell: Callable[[Progress], None],
) -> None:
    """Train the policy in place.

    Raises
    ------
    DataError
        If too many batches give no number.
    """
    training = course.training
    optimizer = Moments(loaded).begin(
        "own", 1, training.weight_decay, backbone_lr_factor=training.backbone_lr_factor
    )
    began = time.monotonic()
    train(
        loaded,
        prepared.batches(statistics),
        prepared.usable,
        optimizer,
        StepPlan(
            training=training,
            first_step=0,
            schedule=course.schedule,
            seed=course.seed,
            proximal_mu=course.pull,
        ),
        on_step=lambda step, loss: tell(
            Training(step, training.local_steps, time.monotonic() - began, loss)
        ),
        draws=prepared.draws(),
    )


def trained_alone(
    release: TrainedPolicy,
    own: OwnRecordings,
    steps: int,
    options: Options,
    folder: Path,
    tell: Callable[[Progress], None] = no_tell,
) -> TrainedPolicy:
    """A policy that begins as the release's run did, and trains on these recordings alone.

    It has the release's statistics, so that a loss of both means the same, and never sees the
    held-out episodes.

    Raises
    ------
    ConfigError
        If the release does not say how its run was trained.
    DataError, UnavailableError
        If the recordings do not fit it, or what it began with is not here.
    """
    run = settings_of(release.folder)
    if run is None:
        raise ConfigError(
            f"--alone: {release.title} does not say how it was trained; train one with zk0bot train"
            " and name its checkpoint."
        )
    recordings = own.open(release)
    held = own.held_out(recordings, options.hold_out)
    statistics, _ = statistics_for(release, own, recordings)
    packages = own.reading.policy_packages
    spec = spec_for(
        run.policy, run.model_name, run.seed, recordings.summary, own.models, packages=packages
    )
    loaded = load_policy(spec, models=own.models, device=options.device, packages=packages)
    prepared = PreparedRecordings(
        recordings,
        loaded,
        own.reading.cache,
        own.reading.max_bad_frames,
        held,
        augments=run.training.image_augmentation,
        tell=tell,
    )
    fit(loaded, prepared, statistics, Course.of(run, steps, options.seed), tell)
    write_checkpoint(loaded, statistics, folder)
    del loaded, prepared
    release_gpu_memory()
    return TrainedPolicy.read(folder, f"a policy trained alone for {steps} steps")
