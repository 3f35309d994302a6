"""How many steps a node takes in a round, and where each is in the run's schedule. No torch.

A round moves the schedule by ``local-steps``, however many steps a node takes in it. So all nodes
have the same learning rate at the same share of a round, be they fast or slow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from zk0d.config.run import StepBounds

#: A round's first steps take longer: libraries set themselves up, a GPU records its graph.
SETTLED = 4
#: Steps after these whose mean time says how many more there is time for.
MEASURED = 5


@dataclass(frozen=True)
class Paced:
    """How far a :class:`TimedPace` is, so that another process can go on from there."""

    passed: float  #: seconds since the first step was begun
    settled: float
    share: float
    steps: int
    known: float | None
    measured: float | None


class Pace(Protocol):
    """Asked before each step, told after each."""

    @property
    def steps(self) -> int:
        """The round's steps in all, as far as can be said now; more than ``most`` never."""

    @property
    def measured(self) -> float | None:
        """Seconds of a step in this round; ``None`` if nobody measured, or too few."""

    def place(self, begun: int) -> float:
        """Where the next step is in the schedule: in steps of it since the round's begin.

        Parameters
        ----------
        begun
            Steps that were begun before. Called once for each.
        """

    def took(self, step: int) -> None:
        """Step number ``step`` (from 1) is over."""

    def kept(self) -> Paced | None:
        """How far it is, for :meth:`restore`; ``None`` if there is nothing to keep."""

    def restore(self, paced: Paced) -> None:
        """Be as another was when it gave :meth:`kept`; the time between the two does not count."""


@dataclass(frozen=True)
class SetPace:
    """A number of steps that is known before; ``asked`` is the schedule's."""

    asked: int
    steps: int

    @property
    def measured(self) -> None:
        return None

    def place(self, begun: int) -> float:
        # All of them in whole numbers, where a node takes as many as the schedule has.
        return begun if self.steps == self.asked else self.asked * begun / self.steps

    def took(self, step: int) -> None:
        del step

    def kept(self) -> None:
        return None

    def restore(self, paced: Paced) -> None:
        del paced


class TimedPace:
    """As many steps as there is time for, within bounds.

    Parameters
    ----------
    seconds
        From the first step on. They may pass while ``bounds.fewest`` steps are not yet taken.
    asked
        Steps of the schedule that a round is.
    known
        Seconds of a step in an earlier round; without, it is measured first.
    """

    def __init__(
        self,
        seconds: float,
        asked: int,
        bounds: StepBounds,
        known: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._asked = asked
        self._bounds = bounds
        self._clock = clock
        self._began: float | None = None
        self._settled = 0.0
        self._share = 0.0
        self.measured: float | None = None
        self._known = known
        self.steps = self._within(seconds / max(known, 1e-9) if known is not None else asked)

    def place(self, begun: int) -> float:
        if self._began is None:
            self._began = self._clock()
        here = self._share
        # The rest of the round in equal parts: a new estimate never goes back.
        self._share += (1.0 - here) / max(1, self.steps - begun)
        return self._asked * here

    def took(self, step: int) -> None:
        assert self._began is not None
        passed = self._clock() - self._began
        left = self._seconds - passed
        if step == SETTLED:
            self._settled = passed
        if step >= SETTLED + MEASURED:
            self.measured = (passed - self._settled) / (step - SETTLED)
        each = self.measured
        if each is None and (self._known is not None or step >= min(self.steps, SETTLED)):
            # The first steps take longer, so that a machine that has become faster shows.
            each = min(passed / step, self._known if self._known is not None else math.inf)
        if left <= 0.0:
            self.steps = self._within(step)
        elif each is not None:
            self.steps = self._within(step + left / max(each, 1e-9))

    def kept(self) -> Paced | None:
        if self._began is None:
            return None
        passed = self._clock() - self._began
        return Paced(passed, self._settled, self._share, self.steps, self._known, self.measured)

    def restore(self, paced: Paced) -> None:
        self._began = self._clock() - paced.passed
        self._settled, self._share, self.steps = paced.settled, paced.share, paced.steps
        self._known, self.measured = paced.known, paced.measured

    def _within(self, steps: float) -> int:
        return int(min(max(steps, self._bounds.fewest), self._bounds.most))
