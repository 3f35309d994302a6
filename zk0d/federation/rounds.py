"""The run: rounds of train, collect, aggregate, evaluate, commit.

A round's updates wait on disk until the last is in or its deadline has passed, and count if enough
came. Only a committed round exists; a run that was interrupted is resumed after the last one.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Callable

from flwr.app import Message
from flwr.serverapp import Grid

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation.admission import Standing
from zk0d.federation.answers import RoundAnswers
from zk0d.federation.cohort import Cohort
from zk0d.federation.envelope import to_record
from zk0d.federation.evaluation import RunEvaluator
from zk0d.federation.learner_client import Evaluator
from zk0d.federation.messages import Query, Train
from zk0d.federation.model import GlobalModel
from zk0d.federation.nodes import Node
from zk0d.federation.schedule import RoundPlan, RunSchedule
from zk0d.federation.spool import Spool
from zk0d.federation.update import Manifest
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import Statistics, merge
from zk0d.record.events import (
    AnyEvent,
    ModelReady,
    RoundCommitted,
    RoundFailed,
    RoundStarted,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    StatisticsMerged,
)
from zk0d.record.journal import CONFIG, STATISTICS, Journal, is_whole
from zk0d.record.outputs import Outputs, run_config
from zk0d.record.state import RunState
from zk0d.record.summary import summary_of

log = logging.getLogger("flwr")

#: Once enough nodes can train, seconds that the others still have to answer the first query.
QUERY_GRACE = 60.0
#: Rounds in a row that may fail before the run does.
MAX_FAILED_ROUNDS = 3
#: A deadline that follows the nodes' pace is never shorter.
SHORTEST_DEADLINE = 10.0


class RunFailedError(Zk0dError):
    """The run cannot continue; its committed rounds stay."""

    default_reason = "run_failed"


class Run:
    """One run, from the first query to the last commit.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    evaluator
        The learner beside the server.
    resumed_by
        What Flower calls the run that resumes this one; empty if this one is new.
    clock, sleep
        Replaced in tests.

    Raises
    ------
    RunFailedError
        From :meth:`run`, if nodes or answers are too few for too long.
    ConfigError
        If there is nothing to resume.
    TryAgainError
        If the disk is full.
    """

    def __init__(
        self,
        grid: Grid,
        settings: RunSettings,
        server: ServerSettings,
        journal: Journal,
        evaluator: Evaluator,
        *,
        resumed_by: str = "",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._settings = settings
        self._server = server
        self._journal = journal
        self._resumed_by = resumed_by
        self._clock = clock
        self._sleep = sleep
        self._state = RunState(run=journal.run, whole=False)
        self._evaluator = RunEvaluator(evaluator, settings, journal.run, self._record, clock, sleep)
        self._outputs = Outputs(journal.folder, journal.run, settings)
        self._spool = Spool(journal.folder / "spool")
        self._model: GlobalModel
        self._cohort: Cohort
        self._answers: RoundAnswers | None = None

    def run(self) -> None:
        """Train all rounds that are left."""
        try:
            if self._resumed_by:
                self._restore()
            else:
                self._begin()
            self._train_rounds()
        except Zk0dError as error:
            self._record_end(RunFailed(reason=error.reason, message=error.message))
            raise
        except Exception as error:
            self._record_end(RunFailed(reason="bug", message=f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._spool.clear()

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

    def _standing(self) -> Standing:
        admission = self._settings.admission
        return Standing(self._state.refusals, admission.max_strikes, admission.strike_cooldown)

    # --- before the first round -------------------------------------------------------------------

    def _begin(self) -> None:
        """A new run: settings, first weights, nodes, their statistics, and round 0."""
        settings, journal = self._settings, self._journal
        journal.write_json(CONFIG, run_config(journal.run, settings, time.time()))
        self._record(RunStarted(settings=settings.to_flat()))
        self._server.check_run(settings, "run settings")
        spec, payload = self._evaluator.start()
        weights = {name: array.copy() for name, array in payload.decode(consume=True)}
        self._record(ModelReady(spec=spec))
        self._outputs.model(spec)
        self._gather(spec)
        members = sorted(self._cohort.members.items(), key=lambda item: self._cohort.name(item[0]))
        shared = [reply.statistics for _, reply in members if reply.statistics is not None]
        merged = merge(shared)
        journal.write_json(STATISTICS, merged.model_dump(mode="json"))
        self._record(StatisticsMerged(nodes=len(shared), sha256=merged.sha256))
        self._model = GlobalModel(spec, merged, weights, settings.aggregation)
        self._commit(RoundCommitted(round=0, evaluation=self._evaluator.evaluate(self._model, 0)))

    def _restore(self) -> None:
        """Take up an interrupted run after its last whole round."""
        journal = self._journal
        before = RunState.read(journal.folder)
        if not before.rounds:
            # It ended before round 0 was committed: there is nothing to lose.
            self._begin()
            return
        if before.phase == "finished":
            raise RunFailedError(
                f"run {journal.run} is finished; start a new one.", reason="nothing_to_resume"
            )
        last = before.last_whole(journal.folder)
        before.apply(journal.write(RunResumed(round=last, flower_run=self._resumed_by)))
        self._state, before.whole = before, False
        assert before.spec is not None
        text = (journal.folder / STATISTICS).read_text(encoding="utf-8")
        merged = Statistics.model_validate_json(text)
        if merged.sha256 != before.statistics_sha256:
            raise RunFailedError(
                f"{journal.folder / STATISTICS} is not what this run committed; start a new run.",
                reason="nothing_to_resume",
            )
        self._model = GlobalModel(before.spec, merged, {}, self._settings.aggregation)
        self._model.load(journal, last)
        self._outputs.replay(before)
        self._gather(before.spec)

    def _gather(self, spec: PolicySpec) -> None:
        """Wait for enough nodes that can train."""
        wanted = self._settings.rounds.min_fit_clients
        query = Query(run=self._journal.run, spec=spec, dataset_uri=self._settings.dataset_uri)
        self._cohort = Cohort(
            self._grid, self._record, query, self._take_update, self._lose, self._clock
        )
        enough_since: list[float] = []

        def ready() -> bool:
            if len(self._cohort.members) < wanted:
                return False
            enough_since.append(self._clock())
            return not self._cohort.waits or self._clock() - enough_since[0] > QUERY_GRACE

        self._wait_for(ready, lambda: f"{len(self._cohort.members)} of {wanted} nodes can train")

    def _wait_for(self, ready: Callable[[], bool], state: Callable[[], str]) -> None:
        """Serve queries until ``ready``, or fail after the run's ``node-wait``."""
        deadline = self._clock() + self._settings.rounds.node_wait
        while True:
            self._cohort.query_newcomers()
            self._cohort.collect()
            if ready():
                return
            if self._clock() > deadline:
                refused = "".join(
                    f", {name} refused ({reason})"
                    for name, reason in sorted(self._cohort.refusals.items())
                )
                raise RunFailedError(
                    f"{state()} after waiting {self._settings.rounds.node_wait:.0f} s{refused};"
                    " start more nodes, or lower min-fit-clients.",
                    reason="too_few_nodes",
                )
            self._sleep(self._server.poll_interval)

    # --- rounds -----------------------------------------------------------------------------------

    def _train_rounds(self) -> None:
        number, last = self._state.round + 1, self._settings.rounds.num_server_rounds
        failures = 0
        while number <= last and not self._schedule().should_stop():
            if self._round(number):
                failures = 0
                number += 1
                continue
            failures += 1
            if failures == MAX_FAILED_ROUNDS:
                assert self._answers is not None
                raise RunFailedError(
                    f"round {number} failed {failures} times in a row; the run stops at"
                    f" round {number - 1}. Of the last one {self._answers.missing()}; the journal"
                    " says why each failed."
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

    def _round(self, number: int) -> bool:
        """Train, collect, aggregate, evaluate, commit; ``False`` if too few answered."""
        chosen = self._choose(number)
        began = self._clock()  # a wait for nodes is nothing that their deadline has to hold
        answers = self._answers = self._send(number, self._schedule().plan(number), chosen)
        deadline = began + answers.task.deadline_seconds
        while answers.open and self._clock() < deadline:
            self._cohort.query_newcomers()
            if not self._cohort.collect():
                self._sleep(self._server.poll_interval)
        answers.close()
        collected = self._clock()
        wanted = self._settings.rounds.min_fit_clients
        if len(answers.accepted) < wanted:
            self._spool.clear()
            self._record(
                RoundFailed(
                    round=number,
                    message=f"{len(answers.accepted)} of {wanted} needed updates came.",
                    refused=self._cohort.named(answers.refused),
                    lost=self._cohort.named(answers.lost),
                )
            )
            self._cohort.requery_unavailable(answers.refused)
            return False
        try:
            mean_norm = self._model.advance(answers.in_order(), answers.task)
        finally:
            self._spool.clear()
        aggregated = self._clock()
        evaluation = self._evaluator.evaluate(self._model, number)
        event = answers.committed().model_copy(
            update={
                "mean_update_norm": mean_norm,
                "evaluation": evaluation,
                "seconds": {
                    "send": answers.sent - began,
                    "collect": collected - answers.sent,
                    "aggregate": aggregated - collected,
                    "evaluate": self._clock() - aggregated,
                },
            }
        )
        self._commit(event)
        return True

    def _choose(self, number: int) -> list[Node]:
        """The members of this round: online, able to train, sampled by ``fraction-fit``."""
        wanted = self._settings.rounds.min_fit_clients

        def ready() -> list[Node]:
            standing = self._standing()
            return [n for n in self._cohort.ready() if not standing.sits_out(n.key, number)]

        self._wait_for(
            lambda: len(ready()) >= wanted,
            lambda: (
                f"{len(ready())} of {wanted} nodes are online and in good standing in round"
                f" {number}"
            ),
        )
        nodes = ready()
        count = max(wanted, round(self._settings.rounds.fraction_fit * len(nodes)))
        if count < len(nodes):
            sampler = random.Random(f"{self._settings.seed}/{number}")
            chosen = sampler.sample(nodes, count)
            nodes = [node for node in nodes if node in chosen]
        return nodes

    def _send(self, number: int, plan: RoundPlan, chosen: list[Node]) -> RoundAnswers:
        """Send a round's message: weights once, and each node's boost."""
        payload = self._model.payload(self._settings.aggregation.downlink_codec)
        manifest = payload.manifest
        task = self._task(number, plan, manifest)
        reach = {self._cohort.name(node.key): node for node in chosen}
        self._record(
            RoundStarted(
                round=number,
                nodes=tuple(reach),
                learning_rate=task.schedule.rate(task.first_step),
                proximal_mu=task.proximal_mu,
                deadline_seconds=task.deadline_seconds,
                reasons=plan.reasons,
                boosts={name: boost for name, boost in plan.boosts.items() if name in reach},
            )
        )
        everyone = to_record(task, payload)
        records = []
        for name, node in reach.items():
            boost = plan.boosts.get(name)
            if boost is None:
                records.append((node, everyone))
            else:
                own = task.model_copy(update={"boost": boost})
                records.append((node, to_record(own, payload)))
        self._cohort.train(records)
        return RoundAnswers(
            task,
            plan,
            manifest,
            self._model.norm,
            {node.key: node for node in chosen},
            settings=self._settings,
            cohort=self._cohort,
            spool=self._spool,
            record=self._record,
            standing=self._standing,
            clock=self._clock,
        )

    def _task(self, number: int, plan: RoundPlan, manifest: Manifest) -> Train:
        settings, last = self._settings, self._state.last
        return Train(
            run=self._journal.run,
            round=number,
            spec=self._model.spec,
            base=manifest.sha256,
            statistics=self._model.statistics,
            statistics_sha256=self._model.statistics.sha256,
            training=settings.training,
            first_step=(number - 1) * settings.training.local_steps,
            schedule=plan.schedule,
            seed=settings.seed,
            proximal_mu=plan.proximal_mu,
            fresh=last is not None and last.rolled_back_to is not None,
            evaluation=settings.evaluation,
            deadline_seconds=self._deadline(),
            dataset_uri=settings.dataset_uri,
        )

    def _deadline(self) -> float:
        """Seconds that this round may take."""
        rounds, last = self._settings.rounds, self._state.last
        paces = [node.answer_seconds for node in last.nodes] if last else []
        if not rounds.round_deadline_factor or not paces:
            return rounds.round_deadline
        pace = rounds.round_deadline_factor * float(statistics.median(paces))
        return min(rounds.round_deadline, max(pace, SHORTEST_DEADLINE))

    def _take_update(self, key: str, answer: Message) -> None:
        if self._answers is not None:
            self._answers.take(key, answer)

    def _lose(self, key: str, reason: str) -> None:
        if self._answers is not None:
            self._answers.lose(key, reason)

    # --- what is kept -----------------------------------------------------------------------------

    def _commit(self, event: RoundCommitted) -> None:
        """Make the round exist: its folder, then its line, then what is written from the line."""
        number, settings = event.round, self._settings
        schedule = self._schedule(event)
        back_to = schedule.wants_rollback()
        if back_to is not None and is_whole(self._journal.round_folder(back_to)):
            self._model.roll_back(self._journal, back_to)
            event = event.model_copy(update={"rolled_back_to": back_to})
        began = self._clock()
        self._model.commit(self._journal, number)
        if event.seconds:
            seconds = event.seconds | {"commit": self._clock() - began}
            event = event.model_copy(update={"seconds": seconds})
        self._outputs.committed(self._record(event))
        best = schedule.best
        self._journal.prune(settings.release.keep_rounds, {best[0]} if best else set())
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

    def _release(self, number: int) -> None:
        """Have the weights, which are those of round ``number``, written as a checkpoint."""
        best = self._schedule().best
        whole = RunState.read(self._journal.folder)
        self._evaluator.release(
            self._model,
            summary_of(whole, number, self._settings),
            best=best is not None and best[0] == number,
        )
