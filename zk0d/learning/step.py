"""One optimizer step: forward, backward, FedProx's pull, clip, drift correction, AdamW.

On a CPU kernel after kernel. On a GPU a step of SmolVLA is thousands of small kernels, and starting
them takes longer than running them: there the step is recorded once as a CUDA graph and replayed,
and the loop reads a loss only when the next steps are under way.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode

from zk0d.learning.policies.base import LoadedPolicy

log = logging.getLogger(__name__)

#: Steps that run kernel by kernel first: libraries set themselves up in them, and AdamW its state.
WARM_UP = 3
#: Steps that a GPU has been given and has not finished.
AHEAD = 2


class Proximal:
    """FedProx's pull towards the weights the round began with.

    The term (mu/2) * ||w - w_global||^2 (Li et al. 2020, MLSys) is added as its gradient,
    mu * (w - w_global), after backward and before clipping: no graph, a few fused kernels.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], mu: float) -> None:
        self._parameters = parameters
        self._mu = mu
        self._anchor = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the pull to the gradients that are there."""
        pulled = [
            (parameter.grad, parameter.detach(), anchor)
            for parameter, anchor in zip(self._parameters, self._anchor, strict=True)
            if parameter.grad is not None
        ]
        grads, weights, anchors = (list(part) for part in zip(*pulled, strict=True))
        torch._foreach_add_(grads, torch._foreach_sub(weights, anchors), alpha=self._mu)

    @torch.no_grad()
    def value(self) -> torch.Tensor:
        """The term itself, for the log; a scalar on the weights' device."""
        weights = [parameter.detach() for parameter in self._parameters]
        norms = torch._foreach_norm(torch._foreach_sub(weights, self._anchor))
        return 0.5 * self._mu * torch.stack(norms).square().sum()


class Correction:
    """Control variates: what a node adds to its gradients so that it drifts less.

    SCAFFOLD's option II (Karimireddy et al. 2020, ICML), before Adam: a step is taken on
    g + c - c_i, and the node's next variate c_i is the mean of g, the clipped gradient, over the
    round. On a GPU a step whose loss is no number is left out, but not of the mean, which then is
    no number either.

    Parameters
    ----------
    offset
        c - c_i by tensor; without, nothing is corrected in this round.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        offset: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._offset = [offset[name] for name in self._names] if offset else None

    @torch.no_grad()
    def apply(self) -> None:
        """Take note of the gradients that are there, and correct them."""
        there, grads = [], []
        for number, parameter in enumerate(self._parameters):
            if parameter.grad is not None:
                there.append(number)
                grads.append(parameter.grad)
        torch._foreach_add_([self._sums[number] for number in there], grads)
        if self._offset is not None:
            torch._foreach_add_(grads, [self._offset[number] for number in there])

    def kept(self) -> dict[str, torch.Tensor]:
        """Sums of the gradients so far, by tensor, for :meth:`restore`; they change as it goes."""
        return dict(zip(self._names, self._sums, strict=True))

    def restore(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Be as another was when it gave :meth:`kept`."""
        for name, own in zip(self._names, self._sums, strict=True):
            own.copy_(sums[name])

    def mean(self, steps: int) -> dict[str, torch.Tensor]:
        """Mean of the gradients over the round's steps, by tensor, on the weights' device."""
        return dict(zip(self._names, torch._foreach_div(self._sums, steps), strict=True))


class Outcome(Protocol):
    """What came of a step that may still be under way."""

    def read(self) -> tuple[float, float]:
        """Loss and norm of the gradient, waiting for them.

        If the loss is not finite the step changed nothing.
        """


class Step(Protocol):
    """Takes one step in place on the weights."""

    ahead: int  #: How many steps may be under way when the next is begun.

    def __call__(self, batch: dict[str, Any], rate: float) -> Outcome:
        """Begin a step on ``batch`` with the learning rate ``rate``."""


def choose_step(
    loaded: LoadedPolicy,
    optimizer: torch.optim.Optimizer,
    proximal: Proximal | None,
    clip: float,
    correction: Correction | None = None,
) -> Step:
    """A replayed step where one is possible, else a plain one; over all of the policy's devices."""
    plain = PlainStep(loaded, optimizer, proximal, clip, correction)
    if loaded.replicas:
        from zk0d.learning.split_step import SplitStep  # which is made of what is here

        return SplitStep(plain)
    if plain.is_recordable:
        return ReplayedStep(plain)
    return plain


class Known:
    """The outcome of a step that is over."""

    def __init__(self, loss: float, norm: float) -> None:
        self._values = loss, norm

    def read(self) -> tuple[float, float]:
        return self._values


class PlainStep:
    """A step that runs kernel by kernel and is over when it returns."""

    ahead = 0

    def __init__(
        self,
        loaded: LoadedPolicy,
        optimizer: torch.optim.Optimizer,
        proximal: Proximal | None,
        clip: float,
        correction: Correction | None = None,
    ) -> None:
        self.loaded = loaded
        self.optimizer = optimizer
        self._parameters = list(loaded.trainable().values())
        self._proximal = proximal
        self._clip = clip
        self._correction = correction

    @property
    def is_recordable(self) -> bool:
        """Whether it can be recorded as a CUDA graph."""
        return self.loaded.device.type == "cuda" and self.loaded.recordable

    def __call__(self, batch: dict[str, Any], rate: float) -> Outcome:
        self.use_rate(rate)
        loss = self.forward(batch)
        value = loss.item()
        if not torch.isfinite(loss):
            return Known(value, float("nan"))
        norm = self.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Known(value, float(norm))

    def use_rate(self, rate: float | torch.Tensor) -> None:
        for group in self.optimizer.param_groups:
            factor = group.get("lr_factor", 1.0)
            # A rate that a CUDA graph holds is a tensor: its multiple is computed in the graph.
            group["lr"] = rate if factor == 1.0 else rate * factor

    def forward(self, batch: dict[str, Any], **given: Any) -> torch.Tensor:
        with self.loaded.autocast():
            loss: torch.Tensor = self.loaded.policy.forward(batch, **given)[0]
        return loss

    def backward(self, loss: torch.Tensor) -> torch.Tensor:
        """Gradients, pulled, clipped and corrected; their norm before clipping."""
        loss.backward()  # type: ignore[no-untyped-call]
        return self.adjust()

    def adjust(self) -> torch.Tensor:
        """Pull, clip and correct the gradients that are there; their norm before clipping."""
        if self._proximal:
            self._proximal.add_gradient()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        if self._correction:
            self._correction.apply()
        return norm


class Promised:
    """The outcome of a step that a GPU works on."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._values.copy_(values, non_blocking=True)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()

    def read(self) -> tuple[float, float]:
        self._done.synchronize()
        loss, norm = self._values.tolist()
        return loss, norm


class Recorded:
    """Work for a GPU that is recorded once as a CUDA graph, and replayed.

    The graph holds the addresses of everything that the work reads and writes.
    """

    def __init__(self, work: Callable[[], None], device: torch.device) -> None:
        self._work = work
        self._device = device
        self._begun = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        self._begun += 1
        with torch.cuda.device(self._device):
            if self._begun <= WARM_UP:
                self._run_beside()
                return
            if self._graph is None:
                self._graph = torch.cuda.CUDAGraph()
                # torch's own stream for it is the first GPU's.
                with torch.cuda.graph(self._graph, stream=_beside(self._device)):
                    self._work()
                log.debug("the step is recorded as a CUDA graph")
            self._graph.replay()

    def _run_beside(self) -> None:
        """On another stream, as a warm-up before a recording has to be."""
        beside = _beside(self._device)
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            self._work()
        torch.cuda.current_stream().wait_stream(beside)


class Inputs:
    """Tensors by name that stay where they are, with each step's values.

    All steps' have the shapes of the first.
    """

    def __init__(self) -> None:
        self._kept: list[dict[str, torch.Tensor]] = []

    def take(
        self, *given: Mapping[str, torch.Tensor], device: torch.device
    ) -> list[dict[str, torch.Tensor]]:
        """Take in a step's values, to ``device``; where they are from now on."""
        if not self._kept:
            self._kept = [
                {name: value.to(device, copy=True) for name, value in part.items()}
                for part in given
            ]
            return self._kept
        for kept, part in zip(self._kept, given, strict=True):
            for name, value in part.items():
                kept[name].copy_(value, non_blocking=True)
        return self._kept


class ReplayedStep:
    """A step that is recorded once as a CUDA graph, and replayed.

    Batches must all have the shapes of the first. The graph holds the addresses of weights, moments
    and FedProx's anchor, and lives for one round.
    """

    ahead = AHEAD

    def __init__(self, plain: PlainStep) -> None:
        self._plain = plain
        device = plain.loaded.device
        self._outcome = torch.zeros(2, device=device)
        self._inputs = Inputs()
        self._constants = Constants()
        self._work = Recorded(self._run, device)
        self._rate, self._skip = make_recordable(plain)

    def __call__(self, batch: dict[str, Any], rate: float) -> Outcome:
        self._rate.fill_(rate)
        loaded = self._plain.loaded
        # Drawn as the policy itself would, in that order, but outside the graph.
        drawn = loaded.drawn(rows=next(iter(batch.values())).shape[0])
        self._now = self._inputs.take(batch, drawn, device=loaded.device)
        self._work()
        return Promised(self._outcome)

    def _run(self) -> None:
        with self._constants:
            batch, drawn = self._now
            loss = self._plain.forward(dict(batch), **drawn)
            norm = self._plain.backward(loss)
            self._skip.copy_(~(torch.isfinite(loss) & torch.isfinite(norm)))
            self._plain.use_rate(self._rate)
            self._plain.optimizer.step()
            self._plain.optimizer.zero_grad()
            # A step that is left out for its norm is as bad as one for its loss.
            self._outcome[0] = torch.where(self._skip.bool(), torch.nan, loss.detach())
            self._outcome[1] = norm


def make_recordable(plain: PlainStep) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a recorded step reads its rate, and whether it is to be left out."""
    device = plain.loaded.device
    rate, skip = torch.zeros((), device=device), torch.zeros((), device=device)
    # With these, as torch's GradScaler uses them, fused AdamW leaves a step out by itself.
    plain.optimizer.grad_scale = None  # type: ignore[attr-defined]
    plain.optimizer.found_inf = skip  # type: ignore[attr-defined]
    return rate, skip


@functools.cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The same one in all rounds: cuBLAS keeps tens of megabytes for each that it was used on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Constants(TorchFunctionMode):
    """Within it, a policy's forward can be recorded.

    SmolVLA's makes small tensors of numbers, which would wait for a copy to the GPU: each is made
    once and kept. It reads back means of its losses for a log that nobody keeps: they are not read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, torch.Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.item:
            return float("nan")
        if func is torch.tensor:
            key = repr((args, sorted(kwargs.items())))
            if key not in self._made:
                self._made[key] = func(*args, **kwargs)
            return self._made[key]
        return func(*args, **kwargs)
