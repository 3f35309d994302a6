"""A round's tries at a learner that may die in it, and resumes it when it is back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from zk0d.daemon.clock import uptime
from zk0d.errors import Zk0dError
from zk0d.federation.learner_client import LearnerError, NodeLearner, Progress
from zk0d.federation.messages import Train
from zk0d.learning.progress import Training, told_by
from zk0d.record.reasons import Reason

log = logging.getLogger("flwr")

#: Seconds between two looks whether a learner is back; doubles up to the second number.
LOOK_AGAIN = (1.0, 10.0)
#: A learner that dies so often without a later step dies of the round.
MOST_DEATHS = 2


class Tries:
    """What one message's learner came to.

    Parameters
    ----------
    seconds
        That the round gives.
    progress
        Takes a learner's events, too.
    clock, sleep
        Replaced in tests.
    """

    def __init__(
        self,
        seconds: float,
        progress: Progress,
        clock: Callable[[], float] = uptime,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._until = clock() + seconds
        self._progress = progress
        self._clock = clock
        self._sleep = sleep
        self._step = self._farthest = self._deaths = 0

    def take(self, event: dict[str, Any]) -> None:
        """An event of the learner."""
        told = told_by(event)
        if isinstance(told, Training):
            self._step = told.step
        self._progress(event)

    def again(self, task: Train, learner: NodeLearner, error: Zk0dError) -> Train:
        """Wait for a learner that has died; the same task, with the time that is left.

        Raises
        ------
        Zk0dError
            ``error``, if it is another one, if the learner was not there in the first place, if it
            dies again and again, or if it is not back before the round's end.
        """
        if not isinstance(error, LearnerError) or error.reason != Reason.LEARNER_GONE:
            raise error
        if not error.vanished and not self._deaths:
            raise error
        self._deaths = 1 if self._step > self._farthest else self._deaths + 1
        self._farthest = max(self._farthest, self._step)
        if self._deaths >= MOST_DEATHS:
            raise error
        log.warning(
            "zk0d: the learner has ended in round %d at step %d (%s); it gets the round again when"
            " it is back.",
            task.round,
            self._step,
            error.message,
        )
        pause, longest = LOOK_AGAIN
        while (left := self._until - self._clock()) > 0.0:
            self._sleep(min(pause, left))
            if learner.answers() and (left := self._until - self._clock()) > 0.0:
                return task.model_copy(update={"deadline_seconds": left})
            pause = min(2 * pause, longest)
        raise error
