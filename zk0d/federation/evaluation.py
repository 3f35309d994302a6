"""What the coordinator's evaluator does for a run: builds the policy, measures, writes releases."""

from __future__ import annotations

import time
from collections.abc import Callable

from zk0d.config.run import RunSettings
from zk0d.errors import Zk0dError
from zk0d.federation.learner_client import Evaluator, LearnerError
from zk0d.federation.messages import Evaluate, Release, Start, StartReply
from zk0d.federation.model import GlobalModel
from zk0d.federation.update import Payload
from zk0d.record.events import (
    AnyEvent,
    CheckpointFailed,
    CheckpointWritten,
    Evaluation,
    EvaluationFailed,
)
from zk0d.record.reasons import Reason
from zk0d.record.summary import RunSummary

#: Reasons of a learner that its service restarts.
RESTARTS = (Reason.GPU_FAILED, Reason.LEARNER_GONE)


class RunEvaluator:
    """The evaluator, asked for one run. Its failures are events; a round counts without it."""

    def __init__(
        self,
        evaluator: Evaluator,
        settings: RunSettings,
        run: str,
        record: Callable[[AnyEvent], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._evaluator = evaluator
        self._settings = settings
        self._run = run
        self._record = record
        self._clock = clock
        self._sleep = sleep

    def start(self) -> tuple[StartReply, Payload]:
        """The policy's shape and first weights; waits for an evaluator that restarts."""
        task = Start(
            policy=self._settings.policy,
            model_name=self._settings.model_name,
            seed=self._settings.seed,
            start_from=self._settings.start_from,
        )
        deadline = self._clock() + self._settings.rounds.node_wait
        while True:
            try:
                return self._evaluator.start(task)
            except LearnerError as error:
                if error.reason not in RESTARTS or self._clock() > deadline:
                    raise
                self._sleep(1.0)

    def evaluate(self, model: GlobalModel, number: int) -> Evaluation | None:
        """Seeded evaluation of the weights after round ``number``; ``None`` if it is not due."""
        settings = self._settings
        every, last = settings.evaluation.eval_frequency, settings.rounds.num_server_rounds
        if not every or (number % every and number != last):
            return None
        payload = model.payload()
        task = Evaluate(
            run=self._run,
            round=number,
            spec=model.spec,
            base=payload.manifest.sha256,
            statistics=model.statistics,
            evaluation=settings.evaluation,
            seed=settings.seed,
        )
        try:
            reply = self._evaluator.evaluate(task, payload)
        except Zk0dError as error:
            self._record(EvaluationFailed(round=number, reason=error.reason, message=error.message))
            return None
        return Evaluation(loss=reply.loss, success=reply.success, datasets=reply.datasets)

    def release(self, model: GlobalModel, summary: RunSummary) -> None:
        """Have the weights after the summary's round written as a checkpoint."""
        payload, number = model.payload(), summary.round
        task = Release(
            run=self._run,
            round=number,
            spec=model.spec,
            base=payload.manifest.sha256,
            statistics=model.statistics,
            summary=summary,
            keep=self._settings.release.keep_checkpoints,
        )
        try:
            reply = self._evaluator.release(task, payload)
        except Zk0dError as error:
            self._record(CheckpointFailed(round=number, reason=error.reason, message=error.message))
            return
        self._record(
            CheckpointWritten(
                round=number,
                folder=reply.folder,
                passed=reply.passed,
                reasons=reply.reasons,
                seconds=reply.seconds,
            )
        )
