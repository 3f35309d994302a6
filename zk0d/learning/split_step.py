"""One optimizer step on several GPUs of one machine.

Each takes its share of a batch's rows, with a copy of the weights. The gradients are summed on the
first one, which then takes the step, and the others get its weights. The gradient of a mean is the
mean of the shares' gradients, so the step is one GPU's but for the order of sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch

from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.step import (
    AHEAD,
    Constants,
    Inputs,
    Known,
    Outcome,
    PlainStep,
    Promised,
    Recorded,
    make_recordable,
)


class SplitStep:
    """A step over a policy's replicas, recorded on each GPU where that is possible.

    The same noise is drawn as on one GPU, for a family that can be recorded. Another family draws
    on each GPU for itself.
    """

    def __init__(self, plain: PlainStep) -> None:
        self._plain = plain
        self._recorded = plain.is_recordable
        self.ahead = AHEAD if self._recorded else 0
        self._parts = [
            _Part(loaded, recorded=self._recorded)
            for loaded in (plain.loaded, *plain.loaded.replicas)
        ]
        self._outcome = torch.zeros(2, device=plain.loaded.device)
        self._total = torch.zeros((), device=plain.loaded.device)
        if self._recorded:
            self._rate, self._skip = make_recordable(plain)
            self._update = Recorded(self._step, plain.loaded.device)
        for part in self._parts[1:]:
            part.copy_weights(self._parts[0])
            part.forget()

    def __call__(self, batch: dict[str, Any], rate: float) -> Outcome:
        rows = next(each.shape[0] for each in batch.values() if torch.is_tensor(each))
        drawn = self._plain.loaded.drawn(rows)
        shares = _shares(rows, len(self._parts))
        # More GPUs than rows: the last ones have nothing to do.
        begun = self._parts[: len(shares)]
        cut = [_cut(batch, share) for share in shares]
        weights = torch.stack([self._plain.loaded.weight(each) for each in cut])
        weights /= weights.sum().clamp_min(1)
        for part, share, own, weight in zip(begun, shares, cut, weights, strict=True):
            part.take(own, _cut(drawn, share), weight)
        # All have their rows by now: a copy from the first GPU would wait for its work.
        for part in begun:
            part.work()
        first, *others = begun
        self._total.copy_(first.loss)
        for part in others:
            part.add_to(first, self._total)
        outcome = self._replayed(rate) if self._recorded else self._plainly(rate)
        for part in self._parts[1:]:
            part.copy_weights(first)
        return outcome

    def _replayed(self, rate: float) -> Outcome:
        self._rate.fill_(rate)
        self._update()
        return Promised(self._outcome)

    def _plainly(self, rate: float) -> Outcome:
        value = self._total.item()
        if not torch.isfinite(self._total):
            return Known(value, float("nan"))
        self._plain.use_rate(rate)
        norm = self._plain.adjust()
        self._plain.optimizer.step()
        return Known(value, float(norm))

    def _step(self) -> None:
        norm = self._plain.adjust()
        self._skip.copy_(~(torch.isfinite(self._total) & torch.isfinite(norm)))
        self._plain.use_rate(self._rate)
        self._plain.optimizer.step()
        self._outcome[0] = torch.where(self._skip.bool(), torch.nan, self._total)
        self._outcome[1] = norm


class _Part:
    """What one device does of a step: the gradients of its rows, weighed by their number."""

    def __init__(self, loaded: LoadedPolicy, *, recorded: bool) -> None:
        self._loaded = loaded
        self._parameters = list(loaded.trainable().values())
        self.loss = torch.zeros((), device=loaded.device)
        self._share = torch.zeros((), device=loaded.device)
        self._inputs = Inputs()
        self._constants = Constants() if recorded else contextlib.nullcontext()
        self._recorded = recorded
        #: Begins on the rows that it has.
        self.work = Recorded(self._run, loaded.device) if recorded else self._run

    def take(
        self, batch: Mapping[str, Any], drawn: Mapping[str, torch.Tensor], share: torch.Tensor
    ) -> None:
        """Get these rows, whose loss is ``share`` of the batch's."""
        self._share.copy_(share, non_blocking=True)
        if self._recorded:
            self._now = self._inputs.take(batch, drawn, device=self._loaded.device)
        else:
            self._now = [_moved(batch, self._loaded.device), _moved(drawn, self._loaded.device)]

    def _run(self) -> None:
        # In place: the sum, and a recorded update, read them where they are.
        there = [each.grad for each in self._parameters if each.grad is not None]
        if there:
            torch._foreach_zero_(there)
        with self._constants, self._loaded.autocast():
            batch, drawn = self._now
            loss = self._loaded.policy.forward(dict(batch), **drawn)[0] * self._share
            loss.backward()
        self.loss.copy_(loss.detach())

    @torch.no_grad()
    def add_to(self, first: _Part, total: torch.Tensor) -> None:
        """Add gradients to another device's, and the loss to ``total``."""
        for own, theirs in zip(self._parameters, first._parameters, strict=True):
            if own.grad is not None and theirs.grad is not None:
                theirs.grad.add_(own.grad.to(theirs.device, non_blocking=True))
        total.add_(self.loss.to(total.device, non_blocking=True))

    def forget(self) -> None:
        """Free the gradients of the round before."""
        for own in self._parameters:
            own.grad = None

    @torch.no_grad()
    def copy_weights(self, first: _Part) -> None:
        """Have the weights of another device."""
        for own, theirs in zip(self._parameters, first._parameters, strict=True):
            own.copy_(theirs, non_blocking=True)


def _shares(rows: int, parts: int) -> list[slice]:
    """As even as can be; fewer than ``parts`` where there are fewer rows."""
    parts = min(rows, parts)
    ends = [rows * number // parts for number in range(parts + 1)]
    return [slice(begin, end) for begin, end in pairwise(ends)]


def _cut(values: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """The rows of a batch; what has none stays."""
    return {
        name: value[rows] if torch.is_tensor(value) or isinstance(value, list) else value
        for name, value in values.items()
    }


def _moved(values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device) if torch.is_tensor(value) else value
        for name, value in values.items()
    }
