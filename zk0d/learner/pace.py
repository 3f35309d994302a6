"""How long a step takes on this machine, from one round of a run to the next."""

from __future__ import annotations

from zk0d.federation.messages import Train
from zk0d.learning.pace import Pace, SetPace, TimedPace


class StepTime:
    """What a step took in the newest round; it counts for the same run and frames per step.

    It lives as long as the policy is loaded, and in what a restarted learner goes on from.
    """

    def __init__(self) -> None:
        self._of: tuple[str, int] | None = None
        self._seconds: float | None = None

    def kept(self) -> tuple[tuple[str, int] | None, float | None]:
        """Run and frames per step that it counts for, and the seconds, for :meth:`restore`."""
        return self._of, self._seconds

    def restore(self, of: tuple[str, int] | None, seconds: float | None) -> None:
        """Be as another was when it gave :meth:`kept`."""
        self._of, self._seconds = of, seconds

    def pace(self, task: Train, most: int) -> Pace:
        """What a round asks for, within the ``most`` steps of this machine's owner."""
        training = task.training
        if not training.round_minutes:
            return SetPace(training.local_steps, training.local_steps)
        same = self._of == (task.run, training.batch_size)
        bounds = training.step_bounds.at_most(most)
        known = self._seconds if same else None
        return TimedPace(60.0 * training.round_minutes, training.local_steps, bounds, known)

    def keep(self, task: Train, pace: Pace) -> None:
        """Take note of what a round's steps took, if they were enough to say."""
        if pace.measured is not None:
            self._of = (task.run, task.training.batch_size)
            self._seconds = pace.measured
