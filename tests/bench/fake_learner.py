"""A learner that trains nothing: it stands for the GPU, so that only messages are measured.

``python tests/bench/fake_learner.py SOCKET NAME PARAMETERS``
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from zk0d.federation.messages import (
    DatasetResult,
    Evaluate,
    EvaluateReply,
    Message,
    Query,
    QueryReply,
    Start,
    StartReply,
    Train,
    TrainReply,
)
from zk0d.federation.update import Payload
from zk0d.learner.tasks import Learner, TaskControl
from zk0d.learning.spec import PolicySpec, RecordingsSummary
from zk0d.learning.statistics import FeatureStatistics, Statistics
from zk0d.services.learner import LearnerService

TENSOR = 1_000_000  # values in each tensor but the last


class FakeLearner(Learner):
    """Both a contributor's and the coordinator's."""

    kinds: ClassVar[dict[str, type[Message]]] = {
        "query": Query,
        "train": Train,
        "start": Start,
        "evaluate": Evaluate,
    }

    def __init__(self, name: str, parameters: int) -> None:
        self._name = name
        self._parameters = parameters

    def run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        if isinstance(task, Start):
            spec = PolicySpec(
                policy="act",
                model_name="tiny",
                seed=0,
                fps=30,
                state_width=2,
                action_width=2,
                cameras={},
            )
            return StartReply(spec=spec), Payload.encode(self._tensors(), "weights")
        if isinstance(task, Query):
            values = np.arange(6.0).reshape(3, 2)
            return QueryReply(
                name=self._name,
                recordings=RecordingsSummary(
                    episodes=1, frames=3, fps=30, state_width=2, action_width=2, cameras={}
                ),
                usable_frames=3,
                statistics=Statistics(
                    features={
                        key: FeatureStatistics.of(values) for key in ("action", "observation.state")
                    }
                ),
            ), None
        if isinstance(task, Train):
            assert payload is not None
            for _ in payload.decode(consume=True):
                pass
            reply = TrainReply(
                name=self._name,
                round=task.round,
                base=task.base,
                steps=task.steps,
                samples=task.steps * task.batch_size,
                loss=1.0,
                policy_loss=1.0,
                proximal_loss=0.0,
                grad_norm=1.0,
                update_norm=1.0,
                learning_rate=1e-3,
            )
            return reply, Payload.encode(self._tensors(), "delta")
        return EvaluateReply(datasets=(DatasetResult(name="none", loss=1.0),)), None

    def _tensors(self):  # type: ignore[no-untyped-def]
        random = np.random.default_rng(time.time_ns())
        left, number = self._parameters, 0
        while left > 0:
            size = min(TENSOR, left)
            yield f"t{number:04d}", random.standard_normal(size, np.float32)
            left, number = left - size, number + 1


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    path, name, parameters = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    LearnerService(name, lambda: (FakeLearner(name, parameters), path)).run()


if __name__ == "__main__":
    main()
