"""The training loop: one round of local steps, readable in one sitting.

The loop of LeRobot's trainer (forward, backward, clip, AdamW) with three differences: the learning
rate is a function of the run's clock, Adam's moments outlive the round, and gradients can be
corrected: by control variates, or by FedProx's pull towards the global weights.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zk0d.config.families import family_of
from zk0d.config.run import TrainingSettings
from zk0d.errors import DataError
from zk0d.learning.augmentation import augmentation
from zk0d.learning.batches import PolicyBatches
from zk0d.learning.pace import Pace, SetPace
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.reached import Course, Keeper, Reached
from zk0d.learning.schedule import Schedule
from zk0d.learning.step import Correction, Outcome, Proximal, choose_step

ADAM_EPS = 1e-8  # of every family's preset in LeRobot


@dataclass(frozen=True)
class StepPlan:
    """What to do in one round.

    ``first_step`` is the global step before the round; ``boost`` multiplies the schedule's rate;
    ``seed`` fixes sampling and noise.
    ``max_bad_batches`` is how many batches may give a loss that is not a number. ``pace`` says how
    many steps; without, they are ``training.local_steps``.
    """

    training: TrainingSettings
    first_step: int
    schedule: Schedule
    seed: int
    boost: float = 1.0
    proximal_mu: float = 0.0
    max_bad_batches: int = 5
    pace: Pace | None = None


@dataclass(frozen=True)
class TrainResult:
    """Means over the round's steps. ``samples`` is what the update weighs."""

    steps: int
    samples: int
    loss: float
    policy_loss: float
    proximal_loss: float
    grad_norm: float
    learning_rate: float
    bad_batches: int
    seconds: float


class Moments:
    """Adam's moments, kept between rounds, with the state the newest round began from.

    A round that is repeated (the coordinator came back) starts from the same moments as the first
    time; moments of another run are dropped.
    """

    def __init__(self, loaded: LoadedPolicy) -> None:
        on_gpu = loaded.device.type == "cuda"
        self._names: dict[torch.Tensor, str] = {
            parameter: name for name, parameter in loaded.trainable().items()
        }
        # LeRobot's trainer has a group of its own for a vision backbone, too.
        prefix = loaded.backbone_prefix
        groups: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
        for name, parameter in loaded.trainable().items():
            is_backbone = prefix is not None and name.startswith(prefix)
            groups.setdefault((is_backbone, loaded.rate_factor(name)), []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": each, "lr_factor": own, "own_factor": own, "is_backbone": is_backbone}
                for (is_backbone, own), each in sorted(groups.items(), key=lambda item: item[0])
            ],
            lr=0.0,
            betas=family_of(loaded.spec.policy).usual.betas,
            eps=ADAM_EPS,
            # One kernel, which a CUDA graph can hold and which can leave a step out.
            fused=on_gpu or None,
            capturable=on_gpu,
        )
        self._run: str | None = None
        self._round = 0
        self._before: dict[torch.Tensor, dict[str, Any]] = {}

    def kept(self) -> tuple[str, int, dict[str, torch.Tensor]]:
        """Run, round and every tensor by a name, for :meth:`restore`; in main memory."""
        tensors = {}
        for when, state in (("before", self._before), ("after", _copied(self._optimizer.state))):
            for parameter, values in state.items():
                for kind, value in values.items():
                    tensors[f"{when}/{kind}/{self._names[parameter]}"] = value
        return self._run or "", self._round, tensors

    def now(self) -> dict[str, torch.Tensor]:
        """Every tensor as it is, by a name that :meth:`restore` takes after ``after/``."""
        return {
            f"{kind}/{self._names[parameter]}": value
            for parameter, values in self._optimizer.state.items()
            for kind, value in values.items()
        }

    def restore(self, run: str, round_: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Be as another was when it gave :meth:`kept`; without tensors, as new."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        states: dict[str, dict[torch.Tensor, dict[str, Any]]] = {"before": {}, "after": {}}
        for key, value in tensors.items():
            when, kind, name = key.split("/", 2)
            states[when].setdefault(parameters[name], {})[kind] = value
        self._run, self._round, self._before = run or None, round_, states["before"]
        self._optimizer.state.clear()
        self._optimizer.state.update(_copied(states["after"], to_its_device=True))

    def begin(
        self,
        run: str,
        round_: int,
        weight_decay: float,
        *,
        backbone_lr_factor: float = 1.0,
        fresh: bool = False,
    ) -> torch.optim.Optimizer:
        """The optimizer, with the moments with which ``round_`` of ``run`` begins.

        Parameters
        ----------
        backbone_lr_factor
            The rate of the policy's vision backbone, as a multiple of the others'.
        fresh
            Begin with none.
        """
        if fresh or run != self._run or round_ < self._round:
            self._optimizer.state.clear()
        elif round_ == self._round:
            self._optimizer.state.clear()
            self._optimizer.state.update(_copied(self._before, to_its_device=True))
        self._run, self._round = run, round_
        self._before = _copied(self._optimizer.state)
        for group in self._optimizer.param_groups:
            group["weight_decay"] = weight_decay
            asked = backbone_lr_factor if group["is_backbone"] else 1.0
            group["lr_factor"] = group["own_factor"] * asked
        return self._optimizer


def _copied(
    state: Mapping[torch.Tensor, dict[str, Any]], *, to_its_device: bool = False
) -> dict[torch.Tensor, dict[str, Any]]:
    """A copy in main memory, where it takes no room from training; or one beside the weights."""
    return {
        parameter: {
            name: value.to(parameter.device if to_its_device else "cpu", copy=True)
            for name, value in values.items()
        }
        for parameter, values in state.items()
    }


def _drawn(
    count: int, draws: torch.Tensor | None
) -> Callable[[np.random.Generator, int], torch.Tensor]:
    """Draws so many of ``count`` rows with replacement, each by its share of ``draws``."""
    if draws is None:
        return lambda sampler, size: torch.from_numpy(sampler.integers(count, size=size))
    upto = draws.numpy().cumsum()

    def drawn(sampler: np.random.Generator, size: int) -> torch.Tensor:
        places = np.searchsorted(upto, sampler.random(size) * upto[-1], side="right")
        return torch.from_numpy(places.clip(max=count - 1))  # by rounding it may be the end

    return drawn


def train(
    loaded: LoadedPolicy,
    batches: PolicyBatches,
    usable: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    plan: StepPlan,
    *,
    correction: Correction | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    check: Callable[[], None] = lambda: None,
    reached: Reached | None = None,
    keeper: Keeper | None = None,
    draws: torch.Tensor | None = None,
) -> TrainResult:
    """Take a round's optimizer steps on the policy's trainable weights, in place.

    Parameters
    ----------
    optimizer
        AdamW over the trainable weights, from :meth:`Moments.begin`.
    usable
        Rows to sample from, int64, shape ``(n,)``.
    draws
        How often each is drawn against the others, float64, shape ``(n,)``; all alike without it.
    correction
        Of the gradients; holds their mean afterwards.
    on_step
        Called after each step with its number (from 1) and loss.
    check
        Called before each step; raises to end the training.
    reached
        The step to go on from. The result is that of all of the round's steps.
    keeper
        Keeps the steps to go on from.

    Raises
    ------
    DataError
        If more than ``plan.max_bad_batches`` batches give a loss that is not finite.
    """
    training = plan.training
    pace = plan.pace or SetPace(training.local_steps, training.local_steps)
    proximal = None
    if plan.proximal_mu:
        proximal = Proximal(list(loaded.trainable().values()), plan.proximal_mu)
    sampler, drawn = np.random.default_rng(plan.seed), _drawn(len(usable), draws)
    torch.manual_seed(plan.seed)
    augment = augmentation() if training.image_augmentation else None
    images = contextlib.ExitStack()
    for each in (loaded, *loaded.replicas):
        images.enter_context(each.embedded_images() if batches.features else each.whole_images())
        each.policy.train()
    optimizer.zero_grad()
    take = choose_step(loaded, optimizer, proximal, training.grad_clip_norm, correction)
    under_way: deque[Outcome] = deque()
    course = Course(loaded, optimizer, sampler, pace, correction)
    if reached is not None:
        course.go_on_from(reached)
        del reached  # it is as large as all of this
    counts, proximal_values = course.counts, course.proximal
    started = time.perf_counter()
    with images:
        while True:
            # Nothing may be under way when a step is kept.
            is_due = keeper is not None and keeper.is_due
            ahead = 0 if is_due else take.ahead
            while under_way and len(under_way) > min(ahead, pace.steps - counts.step - 1):
                value, norm = under_way.popleft().read()
                if not np.isfinite(value):
                    counts.bad += 1
                    if counts.bad > plan.max_bad_batches:
                        raise DataError(
                            f"{batches.recorded.recordings.uri}: {counts.bad} batches gave a loss"
                            " that is not a number; the recordings hold wild values or the learning"
                            " rate is too high."
                        )
                    continue
                counts.step += 1
                counts.loss += value
                counts.norm += norm
                pace.took(counts.step)
                on_step(counts.step, value)
            if counts.step >= pace.steps:
                break
            check()
            if is_due and keeper is not None:
                keeper.keep(course.reached(time.perf_counter() - started))
            chosen = usable[drawn(sampler, training.batch_size)]
            place = plan.first_step + pace.place(counts.step + len(under_way))
            counts.rate = plan.boost * plan.schedule.rate(place)
            under_way.append(take(batches.batch(chosen, augment), counts.rate))
            taken = counts.step + len(under_way)
            if proximal and (taken % 10 == 0 or taken == pace.steps):
                proximal_values.append(proximal.value())
    if proximal and not proximal_values:
        proximal_values.append(proximal.value())
    optimizer.zero_grad()
    proximal_loss = float(sum(proximal_values)) / max(1, len(proximal_values))
    step = counts.step
    return TrainResult(
        steps=step,
        samples=step * training.batch_size,
        loss=counts.loss / step + proximal_loss,
        policy_loss=counts.loss / step,
        proximal_loss=proximal_loss,
        grad_norm=counts.norm / step,
        learning_rate=counts.rate,
        bad_batches=counts.bad,
        seconds=counts.seconds + time.perf_counter() - started,
    )
