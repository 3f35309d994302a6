"""What the coordinator's evaluator does for a run: builds the policy, measures, writes releases."""

from __future__ import annotations

from collections.abc import Callable

from zk0d.config.run import RunSettings
from zk0d.errors import Zk0dError
from zk0d.federation.learner_client import Evaluator, LearnerError
from zk0d.federation.messages import Evaluate, Release, Start, StartReply
from zk0d.federation.model import GlobalModel
from zk0d.federation.update import Payload
from zk0d.federation.waiting import SHORT_PAUSES, Waiting, pause
from zk0d.learning.spec import Adapter
from zk0d.record.events import (
    AnyEvent,
    CheckpointFailed,
    CheckpointWritten,
    Evaluation,
    EvaluationFailed,
)
from zk0d.record.reasons import Effect, Reason
from zk0d.record.summary import RunSummary


class RunEvaluator:
    """The evaluator, asked for one run.

    One that is away is waited for. Its other failures are events; a round counts without it.

    Parameters
    ----------
    closed
        Whether the run gives up instead, as in a simulation, where nobody restarts it.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        settings: RunSettings,
        run: str,
        record: Callable[[AnyEvent], object],
        waiting: Waiting,
        *,
        closed: bool = False,
    ) -> None:
        self._evaluator = evaluator
        self._settings = settings
        self._run = run
        self._record = record
        self._waiting = waiting
        self._closed = closed
        self._has_recordings = True  #: until it says that there are none

    def start(self) -> tuple[StartReply, Payload]:
        """The policy's shape and first weights; waits while the evaluator cannot give them."""
        task = Start(
            policy=self._settings.policy,
            model_name=self._settings.model_name,
            seed=self._settings.seed,
            adapter=Adapter.of(self._settings),
            start_from=self._settings.start_from,
        )
        return self._patiently(lambda: self._evaluator.start(task), lambda reason: reason.waits)

    def _patiently[R](self, ask: Callable[[], R], passes: Callable[[Reason], bool]) -> R:
        """What the evaluator answers, asked again while what it refuses for ``passes``."""
        tries, waits_for = 0, []
        while True:
            try:
                answer = ask()
            except LearnerError as error:
                if self._closed or not passes(Reason.of(error.reason)):
                    raise
                seconds = pause(tries, SHORT_PAUSES)
                if tries:  # it may just have been restarted
                    self._waiting.for_error(error, seconds)
                    waits_for.append(Reason.of(error.reason))
                self._waiting.rest(seconds)
                tries += 1
            else:
                if waits_for:
                    self._waiting.over(waits_for[-1])
                return answer

    def evaluate(self, model: GlobalModel, number: int) -> Evaluation | None:
        """Seeded evaluation of the weights after round ``number``.

        ``None`` if it is not due, failed, or there are no recordings to evaluate on.
        """
        settings = self._settings
        due = settings.evaluation.is_due(number, settings.rounds.num_server_rounds)
        if not due or not self._has_recordings:
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
            reply = self._patiently(lambda: self._evaluator.evaluate(task, payload), _is_away)
        except Zk0dError as error:
            self._record(EvaluationFailed(round=number, reason=error.reason, message=error.message))
            return None
        if not reply.datasets:
            self._has_recordings = False  # the weights need not go there again
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
            reply = self._patiently(lambda: self._evaluator.release(task, payload), _is_away)
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


def _is_away(reason: Reason) -> bool:
    return reason.waits and reason.effect is Effect.AWAY
