"""The step that a round has reached, with all that its next steps depend on.

Another process can go on from it, and takes the same steps as this one would have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from zk0d.learning.pace import Pace, Paced
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.step import Correction


@dataclass
class Counts:
    """What a round's steps come to so far: how many, and sums over them."""

    step: int = 0
    bad: int = 0  #: batches without a finite loss
    loss: float = 0.0
    norm: float = 0.0
    rate: float = 0.0  #: of the newest step
    seconds: float = 0.0  #: in processes that ended


@dataclass(frozen=True)
class Reached:
    """A step, as :meth:`Course.reached` gives it.

    Parameters
    ----------
    sampler
        The state of numpy's generator, as JSON.
    tensors
        Weights, moments, sums and PyTorch's generators, by name. They change with the next step.
    """

    counts: Counts
    sampler: str
    pace: Paced | None
    tensors: Mapping[str, torch.Tensor]


class Keeper(Protocol):
    """Keeps the step that a round has reached, now and then."""

    @property
    def is_due(self) -> bool:
        """Whether to keep the next one."""

    def keep(self, reached: Reached) -> None:
        """Keep a step; it never fails a round."""


class Course:
    """All that the steps of a round change.

    Parameters
    ----------
    optimizer
        Over the policy's trainable weights.
    sampler
        Chooses the frames.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        optimizer: torch.optim.Optimizer,
        sampler: np.random.Generator,
        pace: Pace,
        correction: Correction | None,
    ) -> None:
        self.counts = Counts()
        self.proximal: list[torch.Tensor] = []  #: values of FedProx's term
        self._device = loaded.device
        self._weights = loaded.trainable()
        self._optimizer = optimizer
        self._sampler = sampler
        self._pace = pace
        self._correction = correction

    def reached(self, seconds: float) -> Reached:
        """The step that is reached, while none is under way.

        Parameters
        ----------
        seconds
            What this process took for its steps.
        """
        counts = Counts(**vars(self.counts))
        counts.seconds += seconds
        return Reached(
            counts,
            json.dumps(self._sampler.bit_generator.state),
            self._pace.kept(),
            dict(self._tensors()),
        )

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in self._weights.items():
            yield f"weights/{name}", weight.detach()
            for kind, value in self._optimizer.state.get(weight, {}).items():
                yield f"moments/{kind}/{name}", value
        if self._correction is not None:
            for name, total in self._correction.kept().items():
                yield f"sums/{name}", total
        if self.proximal:
            yield "proximal", torch.stack(self.proximal)
        yield "generator/cpu", torch.get_rng_state()
        if self._device.type == "cuda":
            yield "generator/cuda", torch.cuda.get_rng_state(self._device)

    def go_on_from(self, reached: Reached) -> None:
        """Be where another was when it gave :meth:`reached`; weights stay where they lie."""
        tensors = reached.tensors
        self.counts = Counts(**vars(reached.counts))
        self._sampler.bit_generator.state = json.loads(reached.sampler)
        if reached.pace is not None:
            self._pace.restore(reached.pace)
        self._optimizer.state.clear()
        for key, value in tensors.items():
            what, _, rest = key.partition("/")
            if what == "weights":
                with torch.no_grad():
                    self._weights[rest].copy_(value)
            elif what == "moments":
                kind, _, name = rest.partition("/")
                weight = self._weights[name]
                self._optimizer.state[weight][kind] = value.to(weight.device, copy=True)
        if self._correction is not None:
            sums = {name: tensors[f"sums/{name}"] for name in self._weights}
            self._correction.restore(sums)
        if "proximal" in tensors:
            self.proximal = list(tensors["proximal"].to(self._device, copy=True).unbind())
        torch.set_rng_state(tensors["generator/cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["generator/cuda"], self._device)
