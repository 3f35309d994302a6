"""The learning rate, as a function of the run's clock. No torch.

The clock counts ``local-steps`` a round. A node that takes another number of steps in a round goes
through the same part of the schedule in them, so its steps lie between whole numbers. The server
sends the schedule and the clock with every round: no round restarts it, and a late joiner is in
step with the others.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from zk0d.config.base import Settings


class CosineSchedule(Settings):
    """Linear warm-up to ``peak``, then one cosine to ``end`` over the rest of the run."""

    kind: Literal["cosine"] = "cosine"
    peak: PositiveFloat
    end: NonNegativeFloat
    warmup_steps: NonNegativeInt
    total_steps: PositiveInt

    def rate(self, step: float) -> float:
        """The learning rate at step ``step`` of the clock (the first is 0)."""
        if step < self.warmup_steps:
            return min(self.peak, self.peak * (step + 1) / self.warmup_steps)
        span = max(1, self.total_steps - 1 - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


class ConstantSchedule(Settings):
    """One rate for the round, after a linear warm-up over the run's first steps."""

    kind: Literal["constant"] = "constant"
    value: PositiveFloat
    warmup_steps: NonNegativeInt

    def rate(self, step: float) -> float:
        """The learning rate at step ``step`` of the clock (the first is 0)."""
        if step < self.warmup_steps:
            return min(self.value, self.value * (step + 1) / self.warmup_steps)
        return self.value


#: What a round's message carries.
Schedule = Annotated[CosineSchedule | ConstantSchedule, Field(discriminator="kind")]
