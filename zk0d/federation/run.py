"""The run: it begins or is resumed, trains its rounds, and commits each of them.

Only a committed round exists; a run that was interrupted is resumed after the last one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from flwr.serverapp import Grid

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation.evaluation import RunEvaluator
from zk0d.federation.learner_client import Evaluator
from zk0d.federation.model import GlobalModel
from zk0d.federation.normalization import Normalization
from zk0d.federation.rounds import Rounds, RunFailedError
from zk0d.federation.schedule import RunSchedule
from zk0d.federation.spool import Spool
from zk0d.federation.transport import InMessages, Transport
from zk0d.federation.waiting import Waiting, pause
from zk0d.learning.spec import PolicySpec
from zk0d.record.events import (
    AnyEvent,
    ModelReady,
    RoundCommitted,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
)
from zk0d.record.journal import CONFIG, STATISTICS, Journal, is_whole
from zk0d.record.outputs import Outputs, run_config
from zk0d.record.reasons import Reason
from zk0d.record.state import RunState
from zk0d.record.summary import summary_of

log = logging.getLogger("flwr")

#: What Flower raises once a run is over by its word: stopped, or a minute without a heartbeat.
RUN_IS_OVER = "RunNotRunningException"
#: Rounds in a row that may fail before a closed run does.
MAX_FAILED_ROUNDS = 3


class Run:
    """One run, from the first query to the last commit.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    evaluator
        The learner beside the server.
    transport
        The way that weights and updates travel; inside the messages, if none is given.
    resumed_by
        What Flower calls the run that resumes this one; empty if this one is new.
    closed
        Whether no node can come that is not there at the start, as in a simulation.
    clock, sleep
        Replaced in tests.

    Raises
    ------
    RunFailedError
        From :meth:`run`, if the run is closed and nodes or answers are too few for too long. Any
        other run waits.
    ConfigError
        If there is nothing to resume.
    TryAgainError
        If the run is closed and the disk is full.
    """

    def __init__(
        self,
        grid: Grid,
        settings: RunSettings,
        server: ServerSettings,
        journal: Journal,
        evaluator: Evaluator,
        *,
        transport: Transport | None = None,
        resumed_by: str = "",
        closed: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._settings = settings
        self._server = server
        self._journal = journal
        self._resumed_by = resumed_by
        self._closed = closed
        self._clock = clock
        self._sleep = sleep
        self._state = RunState(run=journal.run, whole=False)
        self._waiting = Waiting(journal.folder, self._record, clock, sleep)
        self._evaluator = RunEvaluator(
            evaluator, settings, journal.run, self._record, self._waiting, closed=closed
        )
        self._normalization = Normalization(settings.normalize_by, journal, self._record)
        self._outputs = Outputs(journal.folder, journal.run, settings)
        self._spool = Spool(journal.folder / "spool")
        self._transport = transport or InMessages()
        self._model: GlobalModel
        self._rounds: Rounds

    def run(self) -> None:
        """Train all rounds that are left; wait as long as it takes for what passes by itself."""
        tries, reached, anew = 0, -1, bool(self._resumed_by)
        while (error := self._try(resume=anew)) is not None:
            tries = tries + 1 if reached == self._state.round else 0
            reached, anew = self._state.round, True
            seconds = pause(tries)
            self._waiting.for_error(error, seconds)
            self._waiting.rest(seconds)

    def _try(self, *, resume: bool) -> Zk0dError | None:
        """Train until the end, or until what passes by itself: what that was."""
        interrupted = True
        try:
            if resume:
                self._restore()
            else:
                self._begin()
            self._train_rounds()
            interrupted = False
        except Zk0dError as error:
            interrupted = False
            if not self._closed and Reason.of(error.reason).waits:
                return error
            self._record_end(RunFailed(reason=error.reason, message=error.message))
            raise
        except Exception as error:
            if type(error).__name__ == RUN_IS_OVER:
                raise  # the coordinator knows whether to resume it
            interrupted = False
            self._record_end(RunFailed(reason="bug", message=f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._transport.close()
            if not interrupted:  # else the resumed round goes on with the pieces that came
                self._clear()
        return None

    def _clear(self, late: Mapping[str, int] | None = None) -> None:
        """Throw the round's updates away, but for what late nodes have sent so far."""
        self._spool.clear()
        self._transport.clear(late or {})

    def _record[E: AnyEvent](self, event: E) -> E:
        """Write an event, and let the run's state follow from it."""
        written = self._journal.write(event)
        self._state.apply(written)  # type: ignore[arg-type]
        return written

    def _record_end(self, event: RunFailed) -> None:
        try:
            self._record(event)
        except TryAgainError as error:
            log.error("zk0d: %s", error.message)

    def _schedule(self, *more: RoundCommitted) -> RunSchedule:
        """The schedule after the committed rounds, and after ``more``."""
        committed = {**self._state.rounds, **{event.round: event for event in more}}
        losses = dict(self._state.losses)
        for event in more:
            losses[event.round] = {node.node: node.policy_loss for node in event.nodes}
        return RunSchedule(self._settings, [committed[n] for n in sorted(committed)], losses)

    # --- before the first round -------------------------------------------------------------------

    def _begin(self) -> None:
        """A new run: settings, first weights, nodes, their statistics, and round 0."""
        settings, journal = self._settings, self._journal
        journal.write_json(CONFIG, run_config(journal.run, settings, time.time()))
        self._record(RunStarted(settings=settings.to_flat()))
        self._server.check_run(settings, "run settings")
        started, payload = self._evaluator.start()
        spec = started.spec
        weights = {name: array.copy() for name, array in payload.decode(consume=True)}
        self._record(ModelReady(spec=spec, robot=started.robot, start_from=started.start_from))
        self._outputs.model(spec)
        self._meet_nodes(spec)
        self._normalization.begin(self._rounds.gather())
        self._model = GlobalModel(spec, self._normalization, weights, settings, journal.folder)
        self._commit(RoundCommitted(round=0, evaluation=self._evaluator.evaluate(self._model, 0)))

    def _restore(self) -> None:
        """Take up an interrupted run after its last whole round."""
        journal = self._journal
        before = RunState.read(journal.folder)
        self._waiting.take_up(before.waiting)
        if not before.rounds:
            # It ended before round 0 was committed: there is nothing to lose.
            self._begin()
            return
        if before.phase == "finished":
            raise RunFailedError(
                f"run {journal.run} is finished; start a new one.", reason="nothing_to_resume"
            )
        last = before.last_whole(journal.folder)
        flower_run = self._resumed_by or journal.run
        before.apply(journal.write(RunResumed(round=last, flower_run=flower_run)))
        self._state, before.whole = before, False
        assert before.spec is not None
        normalization = self._normalization
        if not normalization.restore(before.statistics_sha256, before.statistics_groups):
            raise RunFailedError(
                f"{journal.folder / STATISTICS} is not what this run committed; start a new run.",
                reason="nothing_to_resume",
            )
        self._model = GlobalModel(before.spec, normalization, {}, self._settings, journal.folder)
        self._model.load(journal, last)
        self._outputs.replay(before)
        self._meet_nodes(before.spec)
        if not self._is_trained:
            self._rounds.gather()

    def _meet_nodes(self, spec: PolicySpec) -> None:
        """Ask nodes, by the run's state as it is now."""
        self._rounds = Rounds(
            self._grid,
            spec,
            self._settings,
            self._server,
            self._normalization,
            self._state,
            self._spool,
            self._transport,
            self._record,
            self._waiting,
            closed=self._closed,
            clock=self._clock,
            sleep=self._sleep,
        )

    # --- rounds -----------------------------------------------------------------------------------

    @property
    def _is_trained(self) -> bool:
        """Whether no round is left to train."""
        last = self._settings.rounds.num_server_rounds
        return self._state.round >= last or self._schedule().should_stop()

    def _train_rounds(self) -> None:
        number, last = self._state.round + 1, self._settings.rounds.num_server_rounds
        failures = 0
        while not self._is_trained:
            if self._round(number):
                failures = 0
                number += 1
                continue
            failures += 1
            if not self._closed:
                self._rest_after(number, failures)
            elif failures == MAX_FAILED_ROUNDS:
                raise RunFailedError(
                    f"round {number} failed {failures} times in a row; the run stops at"
                    f" round {number - 1}. Of the last one {self._rounds.missing()}; the journal"
                    " says why each failed.",
                    causes=self._rounds.causes(),
                )
        best = self._schedule().best
        self._release_at_end(number - 1, best[0] if best else None)
        self._record(
            RunFinished(
                rounds=number - 1,
                reason="rounds" if number > last else "early_stopping",
                best_round=best[0] if best else None,
            )
        )

    def _rest_after(self, number: int, failures: int) -> None:
        """Let a pause pass after a round that failed; the first one is tried again at once."""
        if failures == 1:
            return
        seconds = pause(failures - 2)
        causes = {Reason.of(cause) for cause in self._rounds.causes()}
        # What they all lack is what the run waits for, such as room on a disk.
        reason = causes.pop() if len(causes) == 1 else Reason.ROUNDS_FAILED
        reason = reason if reason.waits else Reason.ROUNDS_FAILED
        self._waiting.because(
            reason,
            f"round {number} failed {failures} times in a row, of the last one"
            f" {self._rounds.missing().rstrip('.')}",
            reason.until,
            pause=seconds,
        )
        self._rounds.rest(seconds)

    def _round(self, number: int) -> bool:
        """Train, collect, aggregate, evaluate, commit; ``False`` if too few answered."""
        answers, seconds = self._rounds.train(number, self._schedule().plan(number), self._model)
        if not self._rounds.is_enough(answers):
            return False
        collected = self._clock()
        try:
            combined = self._model.advance(answers.in_order(), answers.task)
        finally:
            self._clear(self._rounds.late)
        aggregated = self._clock()
        evaluation = self._evaluator.evaluate(self._model, number)
        event = answers.committed(combined).model_copy(
            update={
                "variates": len(self._model.variate_rounds),
                "evaluation": evaluation,
                "seconds": {
                    **seconds,
                    "aggregate": aggregated - collected,
                    "evaluate": self._clock() - aggregated,
                },
            }
        )
        self._commit(event)
        return True

    # --- what is kept -----------------------------------------------------------------------------

    def _commit(self, event: RoundCommitted) -> None:
        """Make the round exist: its folder, then its line, then what is written from the line."""
        number, settings = event.round, self._settings
        schedule = self._schedule(event)
        back_to = schedule.wants_rollback()
        if back_to is not None and is_whole(self._journal.round_folder(back_to)):
            self._model.roll_back(self._journal, back_to)
            event = event.model_copy(update={"rolled_back_to": back_to, "variates": 0})
        began = self._clock()
        self._model.commit(self._journal, number)
        if event.seconds:
            seconds = event.seconds | {"commit": self._clock() - began}
            event = event.model_copy(update={"seconds": seconds})
        self._outputs.committed(self._record(event))
        self._waiting.over()
        best = schedule.best
        kept = {best[0]} if best else set()
        if settings.evaluation.on_nodes and self._state.holding_out:
            kept.add(0)  # a node that comes late has not evaluated it
        self._journal.prune(settings.release.keep_rounds, kept)
        interval = settings.release.checkpoint_interval
        if number and interval and number % interval == 0:
            self._release(number)

    def _release_at_end(self, last: int, best: int | None) -> None:
        """The last round's checkpoint, and the best one's if that is another."""
        interval = self._settings.release.checkpoint_interval
        if last and not (interval and last % interval == 0):
            self._release(last)
        if best and best != last and is_whole(self._journal.round_folder(best)):
            self._model.load(self._journal, best)
            self._release(best)

    def _evaluate_on_nodes(self, number: int) -> None:
        """Have nodes evaluate the weights, which are those of round ``number``, for the gate.

        A node that cannot compare them with round 0, because it came later or its learner has
        restarted since, also evaluates that.
        """
        if not self._settings.evaluation.on_nodes:
            return
        self._rounds.evaluations.measure(number, self._model)
        measured = self._state.measured
        first = measured.get(0, {})
        alone = [
            key
            for key, found in measured.get(number, {}).items()
            if key not in first or first[key].mark != found.mark
        ]
        if alone and is_whole(self._journal.round_folder(0)):
            self._model.load(self._journal, 0)
            self._rounds.evaluations.measure(0, self._model, alone)
            self._model.load(self._journal, number)

    def _release(self, number: int) -> None:
        """Have the weights, which are those of round ``number``, written as a checkpoint."""
        self._evaluate_on_nodes(number)
        whole = RunState.read(self._journal.folder)
        self._evaluator.release(self._model, summary_of(whole, number, self._settings))
