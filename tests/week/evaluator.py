"""The coordinator's evaluator in this process, without its socket."""

from __future__ import annotations

from zk0d.config.cameras import MappedAt
from zk0d.config.machine import ServerSettings
from zk0d.federation.messages import (
    Evaluate,
    EvaluateReply,
    Release,
    ReleaseReply,
    Start,
    StartReply,
)
from zk0d.federation.update import Payload
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learner.tasks import TaskControl
from zk0d.simulation.engine import Simulation


class InProcessEvaluator:
    """What a run asks of the learner beside it; it writes no checkpoints."""

    def __init__(self, simulation: Simulation) -> None:
        plan = simulation.plan
        values = {
            "state": simulation.folder.absolute(),
            "models": plan.models,
            "evaluation": [each.model_dump(by_alias=True) for each in simulation.evaluation],
            "evaluator": {"device": plan.device, "cpu-threads": plan.cpu_threads},
        }
        self._learner = CoordinatorEvaluator(
            ServerSettings.parse(values, where="week"), MappedAt.COMMAND
        )
        self._learner.open()

    def start(self, task: Start) -> tuple[StartReply, Payload]:
        reply, payload = self._learner.run(task, None, TaskControl())
        assert isinstance(reply, StartReply)
        assert payload is not None
        return reply, payload

    def evaluate(self, task: Evaluate, weights: Payload) -> EvaluateReply:
        reply, _ = self._learner.run(task, weights, TaskControl())
        assert isinstance(reply, EvaluateReply)
        return reply

    def release(self, task: Release, weights: Payload) -> ReleaseReply:
        del weights
        return ReleaseReply(folder=f"round_{task.round}", passed=True, reasons=())
