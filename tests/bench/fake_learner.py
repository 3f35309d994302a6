"""A learner that trains nothing: it stands for the GPU, so that only messages are measured.

``python tests/bench/fake_learner.py SOCKET NAME PARAMETERS``
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from zk0d.config.run import CodecName
from zk0d.federation.messages import (
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
from zk0d.federation.update import Kind, Payload, PayloadEncoder
from zk0d.learner.tasks import Learner, TaskControl
from zk0d.learning.spec import PolicySpec, RecordingsSummary
from zk0d.learning.statistics import FeatureStatistics, Statistics
from zk0d.record.events import DatasetResult, NodeFigures
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
        self._kept: NDArray[np.float32] | None = None

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
            return StartReply(spec=spec), self._payload("weights", "fp32", 1)
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
            figures = NodeFigures(
                steps=task.training.local_steps,
                samples=task.training.frames,
                loss=1.0,
                policy_loss=1.0,
                grad_norm=1.0,
                learning_rate=1e-3,
            )
            reply = TrainReply(name=self._name, round=task.round, base=task.base, figures=figures)
            return reply, self._payload("delta", task.training.uplink_codec, task.round)
        return EvaluateReply(datasets=(DatasetResult(name="none", loss=1.0),)), None

    def _payload(self, kind: Kind, codec: CodecName, round_: int) -> Payload:
        """Values made once; a few are changed so that no chunk was sent before."""
        encoder = PayloadEncoder(kind, codec)
        random = np.random.default_rng(round_ + 1000 * sum(self._name.encode()))
        for number, start in enumerate(range(0, self._parameters, TENSOR)):
            tensor = self._values()[: min(TENSOR, self._parameters - start)]
            tensor[: len(tensor) : 1000] = random.standard_normal(-(-len(tensor) // 1000)) * 1e-3
            encoder.add(f"t{number:04d}", tensor)
        return encoder.finish()

    def _values(self) -> NDArray[np.float32]:
        if self._kept is None:
            self._kept = np.random.default_rng().standard_normal(TENSOR, np.float32) * 1e-3
        return self._kept


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    path, name, parameters = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    LearnerService(name, lambda: (FakeLearner(name, parameters), path)).run()


if __name__ == "__main__":
    main()
