"""Trainings to be compared: each one simulation, in a worker process, with one result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zk0d.config.run import RunSettings
from zk0d.daemon.workers import worker_pool
from zk0d.learning.statistics import Statistics, merge
from zk0d.record.events import (
    Evaluation,
    Event,
    ModelReady,
    NodeJoined,
    RoundCommitted,
    RoundFailed,
    UpdateRefused,
)
from zk0d.record.journal import read_journal
from zk0d.simulation.engine import Simulation, simulate
from zk0d.simulation.plan import VirtualNode
from zk0d.simulation.sources import open_at_command


@dataclass(frozen=True)
class Arm:
    """One training: what it is called, its seed, and the simulation that does it."""

    title: str
    seed: int
    simulation: Simulation


@dataclass(frozen=True)
class Outcome:
    """What came out. ``steps`` are optimizer steps of the policy, ``losses`` those by round."""

    title: str
    seed: int
    steps: int
    loss: float
    success: float | None
    rollouts: int
    losses: tuple[tuple[int, float], ...]
    bytes_up: int
    refused: int
    failed_rounds: int
    seconds: float
    notices: tuple[str, ...] = ()


def run_arm(arm: Arm) -> Outcome:
    """Train and evaluate one; in a worker process."""
    run = simulate(arm.simulation)
    events = list(read_journal(run))
    committed = [event for event in events if isinstance(event, RoundCommitted)]
    evaluated = [(e.round, e.evaluation) for e in committed if e.evaluation is not None]
    last = evaluated[-1][1]
    return Outcome(
        title=arm.title,
        seed=arm.seed,
        steps=committed[-1].round * arm.simulation.settings.training.local_steps,
        loss=_measured(last),
        success=last.success,
        rollouts=sum(dataset.rollouts for dataset in last.datasets),
        losses=tuple((number, _measured(evaluation)) for number, evaluation in evaluated),
        bytes_up=sum(event.bytes_up for event in committed),
        refused=sum(isinstance(event, UpdateRefused) for event in events),
        failed_rounds=sum(isinstance(event, RoundFailed) for event in events),
        seconds=events[-1].time - events[0].time,
        notices=tuple(noticed(events)),
    )


def noticed(events: Iterable[Event]) -> Iterator[str]:
    """What a person should know of the model and the recordings."""
    for event in events:
        if isinstance(event, ModelReady) and event.spec.notice:
            yield event.spec.notice
        elif isinstance(event, NodeJoined):
            yield from event.notices


def _measured(evaluation: Evaluation) -> float:
    assert evaluation.loss is not None, [each.error for each in evaluation.datasets]
    return evaluation.loss


def run_arms(
    arms: Sequence[Arm], log: Path, done: Callable[[Outcome], None], workers: int = 0
) -> list[Outcome]:
    """All of them, a process for each core; in the order of ``arms``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    workers = workers or min(len(arms), os.cpu_count() or 1)
    pool = worker_pool(workers, log)
    try:
        # The longest begin first, so that the cores end together.
        order = sorted(arms, key=lambda arm: -len(arm.simulation.plan.nodes))
        futures = {pool.submit(run_arm, arm): arm for arm in order}
        for future in as_completed(futures):
            done(future.result())
        by_arm = {id(arm): future.result() for future, arm in futures.items()}
        return [by_arm[id(arm)] for arm in arms]
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def merged_statistics(nodes: Sequence[VirtualNode]) -> Statistics:
    """What a federation of these contributors is normalized with."""
    parts = []
    for node in nodes:
        recordings = open_at_command(node.dataset_uri, node.cameras)
        rows = ~recordings.not_finite()
        if node.episodes:
            rows &= torch.isin(recordings.columns["episode_index"], torch.tensor(node.episodes))
        parts.append(recordings.statistics(rows))
    return merge(parts)


def with_settings(simulation: Simulation, folder: Path, **values: Any) -> Simulation:
    """The same in another folder, with other run settings."""
    flat = simulation.settings.to_flat() | {k.replace("_", "-"): v for k, v in values.items()}
    plan = simulation.plan.model_copy(update={"state": folder / "contributors"})
    settings = RunSettings.parse(flat, where="comparison")
    return replace(simulation, folder=folder, plan=plan, settings=settings)


def with_plan(simulation: Simulation, **changes: Any) -> Simulation:
    """The same with another plan."""
    return replace(simulation, plan=simulation.plan.model_copy(update=changes))


#: Of the normal distribution, two-sided 95 %.
_Z95 = 1.96


@dataclass(frozen=True)
class Difference:
    """Mean of a paired difference over seeds, and half the width of its 95 % interval."""

    mean: float
    half_width: float

    @property
    def is_noise(self) -> bool:
        """Whether the interval holds zero."""
        return abs(self.mean) <= self.half_width

    def sentence(self) -> str:
        """The interval and what it means."""
        said = "noise" if self.is_noise else "a difference"
        return f"{self.mean:+.3f} ± {self.half_width:.3f}: {said}"


def difference(first: Sequence[float], second: Sequence[float], rollouts: int = 0) -> Difference:
    """``first`` minus ``second``, paired by seed.

    The interval is Student's t over the seeds' differences. For success rates of ``rollouts``
    episodes each it is at least the binomial one (normal approximation): seeds that happen to
    agree say nothing of the episodes that were not tried. One seed gives no interval for a loss:
    whatever it is, it may be noise.
    """
    pairs = np.array(first) - np.array(second)
    count = len(pairs)
    width = 0.0
    if count > 1:
        from scipy.stats import (
            t,  # half a second, which a command that compares nothing need not wait
        )

        width = float(t.ppf(0.975, count - 1) * pairs.std(ddof=1)) / count**0.5
    if rollouts:
        rates = np.array([first, second])
        # Agresti and Coull's two added successes and failures: no rate is certain.
        p = (rates.mean(1) * rollouts * count + 2) / (rollouts * count + 4)
        width = max(width, _Z95 * float(np.sqrt((p * (1 - p)).sum() / (rollouts * count + 4))))
    elif count == 1:
        width = float("inf")
    return Difference(float(pairs.mean()), width)
