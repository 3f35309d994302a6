"""A ClientApp notes for its owner what the learner did in a round."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zk0d.config.machine import LINE_FOLDER_VARIABLE
from zk0d.daemon.own_rounds import OwnRound, RoundBook
from zk0d.federation.learner_client import Progress
from zk0d.federation.messages import TrainReply
from zk0d.learning.progress import Energy, told_by

log = logging.getLogger("flwr")

#: Of the seconds that a learner counts: those in which it computes.
COMPUTES = ("evaluate", "train")


class OwnRoundNotes:
    """Hears what a learner tells of a round, and notes the round; in a simulation, nothing."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        folder = environment.get(LINE_FOLDER_VARIABLE)
        self._book = RoundBook(Path(folder)) if folder else None
        self._joules: float | None = None

    def hearing(self, progress: Progress) -> Progress:
        """``progress``, which hears everything, too."""

        def hear(event: dict[str, Any]) -> None:
            told = told_by(event)
            if isinstance(told, Energy):
                self._joules = told.joules
            progress(event)

        return hear

    def note(self, run: str, reply: TrainReply) -> None:
        """Note the round; a disk that is full loses the note and not the round."""
        if self._book is None:
            return
        figures = reply.figures
        done = OwnRound(
            run=run,
            round=reply.round,
            steps=figures.steps,
            train_loss=_number(figures.policy_loss),
            holdout_loss=_number(figures.holdout_loss),
            seconds=sum(figures.seconds.get(phase, 0.0) for phase in COMPUTES),
            joules=self._joules,
        )
        try:
            if trouble := self._book.add(done):
                log.error("zk0d: %s", trouble)
        except OSError as error:
            log.error("zk0d: %s: the round cannot be noted (%s).", self._book.path, error.strerror)


def _number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return value if value is not None and math.isfinite(value) else None
