"""The run: rounds of train, collect, aggregate, evaluate, commit.

A round's updates wait on disk until the last is in or its deadline has passed, and count if enough
came. Only a committed round exists; a run that was interrupted goes on after the last one.
"""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
from flwr.app import Message
from flwr.serverapp import Grid

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation.admission import Strikes, check_norm, check_reply, outliers
from zk0d.federation.aggregate import (
    Arrays,
    ServerStep,
    Weighted,
    aggregate,
    clip_scales,
    norm,
    rule_for,
)
from zk0d.federation.envelope import Refused, from_record, to_record
from zk0d.federation.fleet import PASSING, Fleet, content
from zk0d.federation.history import History
from zk0d.federation.journal import (
    CONFIG,
    MOMENTUM,
    STATISTICS,
    WEIGHTS,
    Journal,
    is_whole,
    read_journal,
)
from zk0d.federation.learner_client import Evaluator, LearnerError
from zk0d.federation.messages import (
    Evaluate,
    EvaluateReply,
    Notice,
    Query,
    Release,
    Start,
    Train,
    TrainReply,
)
from zk0d.federation.nodes import Node
from zk0d.federation.outputs import Outputs, run_config
from zk0d.federation.schedule import RoundPlan, RunSchedule
from zk0d.federation.spool import NotAdmitted, Spool
from zk0d.federation.story import story_of
from zk0d.federation.tally import Accepted, RoundTally
from zk0d.federation.update import Manifest, Payload
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import Statistics, merge

log = logging.getLogger("flwr")

#: Once enough nodes can train, seconds that the others still have to answer the first query.
QUERY_GRACE = 60.0
#: Rounds in a row that may fail before the run does.
MAX_FAILED_ROUNDS = 3
#: Reasons of a learner that its service starts anew.
STARTS_ANEW = {"gpu_failed", "learner_gone"}
#: A deadline that follows the nodes' pace is never shorter.
SHORTEST_DEADLINE = 10.0


class RunFailed(Zk0dError):
    """The run cannot go on; its committed rounds stay."""

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
        What Flower calls the run that goes on with this one; empty if this one is new.
    clock, sleep
        Replaced in tests.

    Raises
    ------
    RunFailed
        From :meth:`run`, if nodes or answers are too few for too long.
    ConfigError
        If there is nothing to go on with.
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
        self._evaluator = evaluator
        self._resumed_by = resumed_by
        self._clock = clock
        self._sleep = sleep
        self._steps = settings.steps_per_round
        self._schedule = RunSchedule(settings, self._steps)
        self._strikes = Strikes(settings.max_strikes, settings.strike_cooldown)
        self._outputs = Outputs(journal.folder, journal.run, settings)
        self._spool = Spool(journal.folder / "spool")
        self._server_step = ServerStep(
            settings.server_momentum,
            settings.server_learning_rate,
            nesterov=settings.server_nesterov,
        )
        self._spec: PolicySpec
        self._statistics: Statistics
        self._weights: Arrays
        self._fleet: Fleet
        self._state: RoundTally | None = None
        self._last: dict[str, Any] = {}  #: the last committed line

    def run(self) -> None:
        """Train all rounds that are left."""
        try:
            if self._resumed_by:
                self._restore()
            else:
                self._begin()
            self._train_rounds()
        except Zk0dError as error:
            self._write_end("run.failed", reason=error.reason, message=error.message)
            raise
        except Exception as error:
            self._write_end("run.failed", reason="bug", message=f"{type(error).__name__}: {error}")
            raise
        finally:
            self._spool.clear()

    def _train_rounds(self) -> None:
        number, last = self._last["round"] + 1, self._settings.num_server_rounds
        failures = 0
        while number <= last and not self._schedule.should_stop():
            if self._round(number):
                failures = 0
                number += 1
                continue
            failures += 1
            if failures == MAX_FAILED_ROUNDS:
                raise RunFailed(
                    f"round {number} failed {failures} times in a row; the run stops at"
                    f" round {number - 1}. Of the last one {self._missing()}; the journal says"
                    " why each failed."
                )
        best = self._schedule.best
        self._release_at_end(number - 1, best[0] if best else None)
        self._journal.write(
            "run.finished",
            rounds=number - 1,
            reason="rounds" if number > last else "early_stopping",
            best_round=best[0] if best else None,
        )

    def _release_at_end(self, last: int, best: int | None) -> None:
        """The last round's checkpoint, and the best one's if that is another."""
        interval = self._settings.checkpoint_interval
        if last and not (interval and last % interval == 0):
            self._release(last)
        if best and best != last and is_whole(self._journal.round_folder(best)):
            self._load(best)
            self._release(best)

    def _release(self, number: int) -> None:
        """Have the evaluator write the current weights as a checkpoint; a failure is a line."""
        story = story_of(
            History.read(self._journal.folder), self._journal.run, number, self._settings
        )
        best = self._schedule.best
        payload = Payload.of(self._weights, "weights")
        task = Release(
            run=self._journal.run,
            round=number,
            spec=self._spec,
            base=payload.manifest.sha256,
            statistics=self._statistics,
            story=story,
            best=best is not None and best[0] == number,
            keep=self._settings.keep_checkpoints,
        )
        try:
            reply = self._evaluator.release(task, payload)
        except Zk0dError as error:
            self._journal.write(
                "checkpoint.failed", round=number, reason=error.reason, message=error.message
            )
            return
        self._journal.write(
            "checkpoint.written",
            round=number,
            folder=reply.folder,
            passed=reply.passed,
            reasons=list(reply.reasons),
            seconds=reply.seconds,
        )

    def _write_end(self, kind: str, **facts: Any) -> None:
        try:
            self._journal.write(kind, **facts)
        except TryAgainError as error:
            log.error("zk0d: %s", error.message)

    # --- before the first round -------------------------------------------------------------------

    def _begin(self) -> None:
        """A new run: settings, first weights, nodes, their statistics, and round 0."""
        settings, journal = self._settings, self._journal
        journal.write_json(CONFIG, run_config(journal.run, settings, time.time()))
        journal.write("run.started", settings=settings.to_flat())
        self._server.check_run(settings, "run settings")
        self._spec, payload = self._ask_evaluator()
        self._weights = {name: array.copy() for name, array in payload.decode(consume=True)}
        journal.write("model.ready", spec=self._spec.model_dump())
        self._outputs.model(self._spec.model_dump())
        self._gather()
        shared = [
            reply.statistics
            for key, reply in sorted(
                self._fleet.members.items(), key=lambda item: self._fleet.name(item[0])
            )
            if reply.statistics is not None
        ]
        self._statistics = merge(shared)
        journal.write_json(STATISTICS, self._statistics.model_dump(mode="json"))
        journal.write("statistics.merged", nodes=len(shared), sha256=self._statistics.sha256)
        self._commit(0, {}, self._evaluate(0))

    def _restore(self) -> None:
        """Take up an interrupted run after its last whole round."""
        journal = self._journal
        history = History.read(journal.folder)
        if not history.rounds:
            # It ended before round 0 was committed: there is nothing to lose.
            self._begin()
            return
        if history.finished:
            raise RunFailed(
                f"run {journal.run} is finished; start a new one.", reason="nothing_to_resume"
            )
        last = history.last_whole(journal.folder)
        history.cut(last)
        journal.write("run.resumed", round=last, flower_run=self._resumed_by)
        self._spec = PolicySpec.model_validate(history.spec)
        text = (journal.folder / STATISTICS).read_text(encoding="utf-8")
        self._statistics = Statistics.model_validate_json(text)
        if self._statistics.sha256 != history.statistics_sha256:
            raise RunFailed(
                f"{journal.folder / STATISTICS} is not what this run committed; start a new run.",
                reason="nothing_to_resume",
            )
        self._load(last)
        for line in history.refused:
            self._strikes.take(line)
        for number in sorted(history.rounds):
            self._note(history.rounds[number])
        self._outputs.replay(read_journal(journal.folder))
        self._gather()

    def _ask_evaluator(self) -> tuple[PolicySpec, Payload]:
        """The policy's shape and first weights."""
        task = Start(
            policy=self._settings.policy,
            model_name=self._settings.model_name,
            seed=self._settings.seed,
            start_from=self._settings.start_from,
        )
        deadline = self._clock() + self._settings.node_wait
        while True:
            try:
                reply, payload = self._evaluator.start(task)
                return reply.spec, payload
            except LearnerError as error:
                if error.reason not in STARTS_ANEW or self._clock() > deadline:
                    raise
                self._sleep(1.0)

    def _gather(self) -> None:
        """Wait for enough nodes that can train."""
        wanted = self._settings.min_fit_clients
        query = Query(
            run=self._journal.run, spec=self._spec, dataset_uri=self._settings.dataset_uri
        )
        self._fleet = Fleet(
            self._grid, self._journal, query, self._take_update, self._lose, self._clock
        )
        enough_since: list[float] = []

        def ready() -> bool:
            if len(self._fleet.members) < wanted:
                return False
            enough_since.append(self._clock())
            return not self._fleet.waits or self._clock() - enough_since[0] > QUERY_GRACE

        self._wait_for(ready, lambda: f"{len(self._fleet.members)} of {wanted} nodes can train")

    def _wait_for(self, ready: Callable[[], bool], state: Callable[[], str]) -> None:
        """Serve queries until ``ready``, or fail after the run's ``node-wait``."""
        deadline = self._clock() + self._settings.node_wait
        while True:
            self._fleet.query_newcomers()
            self._fleet.collect()
            if ready():
                return
            if self._clock() > deadline:
                refused = "".join(
                    f", {name} refused ({reason})"
                    for name, reason in sorted(self._fleet.refusals.items())
                )
                raise RunFailed(
                    f"{state()} after waiting {self._settings.node_wait:.0f} s{refused}; start more"
                    " nodes, or lower min-fit-clients.",
                    reason="too_few_nodes",
                )
            self._sleep(self._server.poll_interval)

    def _missing(self) -> str:
        """Whose updates the round lacks, and for what reason."""
        assert self._state is not None
        told = self._fleet.named({**self._state.refused, **self._state.lost})
        missing = ", ".join(f"{name} ({reason})" for name, reason in sorted(told.items()))
        return f"updates of {missing} are missing" if missing else "too few nodes were asked"

    # --- one round --------------------------------------------------------------------------------

    def _round(self, number: int) -> bool:
        """Train, collect, aggregate, evaluate, commit; ``False`` if too few answered."""
        chosen = self._choose(number)
        began = self._clock()  # a wait for nodes is nothing that their deadline has to hold
        state = self._state = self._send(number, self._schedule.plan(number), chosen)
        deadline = began + state.task.deadline_seconds
        while state.open and self._clock() < deadline:
            self._fleet.query_newcomers()
            if not self._fleet.collect():
                self._sleep(self._server.poll_interval)
        for key in state.open:
            self._fleet.give_up([key])
            self._lose(key, "deadline")
        for key, error in outliers(
            {key: each.update.norm for key, each in state.accepted.items()},
            self._settings.norm_outlier_factor,
        ).items():
            self._spool.drop(state.accepted.pop(key).update)
            self._refuse(key, error)
        collected = self._clock()
        wanted = self._settings.min_fit_clients
        if len(state.accepted) < wanted:
            self._spool.clear()
            self._journal.write(
                "round.failed",
                round=number,
                reason="quorum",
                message=f"{len(state.accepted)} of {wanted} needed updates came.",
                refused=self._fleet.named(state.refused),
                lost=self._fleet.named(state.lost),
            )
            self._fleet.doubt(state.refused)
            return False
        mean_norm = self._aggregate(state)
        aggregated = self._clock()
        evaluation = self._evaluate(number)
        seconds = {
            "send": state.sent - began,
            "collect": collected - state.sent,
            "aggregate": aggregated - collected,
            "evaluate": self._clock() - aggregated,
        }
        facts = state.facts(self._settings, self._fleet) | {
            "mean_update_norm": mean_norm,
            "seconds": seconds,
        }
        self._commit(number, facts, evaluation)
        return True

    def _send(self, number: int, plan: RoundPlan, chosen: list[Node]) -> RoundTally:
        """Send a round's message: weights once, and each node's boost."""
        payload = Payload.of(self._weights, "weights", self._settings.downlink_codec)
        manifest = payload.manifest
        task = self._task(number, plan, manifest)
        reach = {self._fleet.name(node.key): node for node in chosen}
        self._journal.write(
            "round.started",
            round=number,
            nodes=list(reach),
            learning_rate=task.schedule.rate(task.first_step),
            proximal_mu=task.proximal_mu,
            deadline_seconds=task.deadline_seconds,
            reasons=list(plan.reasons),
            boosts={name: boost for name, boost in plan.boosts.items() if name in reach},
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
        self._fleet.train(records)
        return RoundTally(
            task,
            plan,
            manifest,
            norm(self._weights),
            self._clock(),
            {node.key: node for node in chosen},
        )

    def _deadline(self) -> float:
        """Seconds that this round may take."""
        settings = self._settings
        paces = [node["answer_seconds"] for node in self._last.get("nodes", [])]
        if not settings.round_deadline_factor or not paces:
            return settings.round_deadline
        pace = settings.round_deadline_factor * float(statistics.median(paces))
        return min(settings.round_deadline, max(pace, SHORTEST_DEADLINE))

    def _choose(self, number: int) -> list[Node]:
        """The members of this round: online, able to train, sampled by ``fraction-fit``."""
        wanted = self._settings.min_fit_clients

        def ready() -> list[Node]:
            return [
                node for node in self._fleet.ready() if not self._strikes.sits_out(node.key, number)
            ]

        self._wait_for(
            lambda: len(ready()) >= wanted,
            lambda: (
                f"{len(ready())} of {wanted} nodes are online and in good standing in round"
                f" {number}"
            ),
        )
        nodes = ready()
        count = max(wanted, round(self._settings.fraction_fit * len(nodes)))
        if count < len(nodes):
            sampler = random.Random(f"{self._settings.seed}/{number}")
            chosen = sampler.sample(nodes, count)
            nodes = [node for node in nodes if node in chosen]
        return nodes

    def _task(self, number: int, plan: RoundPlan, manifest: Manifest) -> Train:
        settings = self._settings
        return Train(
            run=self._journal.run,
            round=number,
            spec=self._spec,
            base=manifest.sha256,
            statistics=self._statistics,
            statistics_sha256=self._statistics.sha256,
            steps=self._steps,
            batch_size=settings.batch_size,
            first_step=(number - 1) * self._steps,
            schedule=plan.schedule,
            seed=settings.seed,
            weight_decay=settings.weight_decay,
            grad_clip_norm=settings.grad_clip_norm,
            proximal_mu=plan.proximal_mu,
            uplink_codec=settings.uplink_codec,
            fresh=self._last.get("rolled_back_to") is not None,
            holdout_frames=settings.eval_frames if settings.evaluate_on_nodes else 0,
            deadline_seconds=self._deadline(),
            dataset_uri=settings.dataset_uri,
        )

    def _aggregate(self, state: RoundTally) -> float:
        """Move the weights by the round's updates, in the order of the nodes' names."""
        settings = self._settings
        keys = sorted(state.accepted, key=self._fleet.name)
        accepted = [state.accepted[key] for key in keys]
        scales = clip_scales([each.update.norm for each in accepted], settings.norm_clip_factor)
        # Near 1, so that the sum keeps its precision.
        full = state.task.steps * state.task.batch_size
        updates = [
            Weighted(each.update, each.reply.samples / full, scale)
            for each, scale in zip(accepted, scales, strict=True)
        ]
        rule = rule_for(settings.aggregation, settings.trim_fraction, len(updates))
        try:
            return aggregate(self._weights, updates, rule, self._server_step)
        finally:
            self._spool.clear()

    def _evaluate(self, number: int) -> EvaluateReply | None:
        """Seeded evaluation of the current weights; ``None`` if it is not this round's turn.

        A failure is a missing value and a line in the journal; the round counts.
        """
        every, last = self._settings.eval_frequency, self._settings.num_server_rounds
        if not every or (number % every and number != last):
            return None
        payload = Payload.of(self._weights, "weights")
        task = Evaluate(
            run=self._journal.run,
            round=number,
            spec=self._spec,
            base=payload.manifest.sha256,
            statistics=self._statistics,
            mode=self._settings.eval_mode,
            frames=self._settings.eval_frames,
            episodes=self._settings.eval_episodes,
            rollouts=self._settings.eval_rollouts,
            seed=self._settings.seed,
        )
        try:
            return self._evaluator.evaluate(task, payload)
        except Zk0dError as error:
            self._journal.write(
                "evaluation.failed", round=number, reason=error.reason, message=error.message
            )
            return None

    def _commit(self, number: int, facts: dict[str, Any], evaluation: EvaluateReply | None) -> None:
        """Make the round exist: its folder, then its line, then what is written from the line."""
        evaluated = None
        if evaluation is not None:
            evaluated = {
                "loss": evaluation.loss,
                "success": evaluation.success,
                "datasets": [dataset.model_dump() for dataset in evaluation.datasets],
            }
        record = {"round": number, **facts, "evaluation": evaluated}
        self._note(record)
        back_to = self._schedule.wants_rollback()
        if back_to is not None and is_whole(self._journal.round_folder(back_to)):
            self._load(back_to)
            self._server_step.velocity = None
            record["rolled_back_to"] = back_to
            self._schedule.rolled_back(back_to)
        files: dict[str, Callable[[Path], None]] = {
            WEIGHTS: lambda path: _save(self._weights, path),
        }
        if self._server_step.velocity is not None:
            velocity = self._server_step.velocity
            files[MOMENTUM] = lambda path: _save(velocity, path)
        began = self._clock()
        self._journal.commit(number, files)
        if "seconds" in record:
            record["seconds"]["commit"] = self._clock() - began
        self._last = self._journal.write("round.committed", **record)
        self._outputs.committed(self._last)
        best = self._schedule.best
        self._journal.prune(self._settings.keep_rounds, {best[0]} if best else set())
        interval = self._settings.checkpoint_interval
        if number and interval and number % interval == 0:
            self._release(number)

    def _note(self, line: dict[str, Any]) -> None:
        """Let the schedule see a committed round, the same now and when the run is taken up."""
        self._last = line
        if line["round"]:
            losses = {node["node"]: node["policy_loss"] for node in line["nodes"]}
            self._schedule.trained(line["round"], losses)
        evaluation = line["evaluation"]
        self._schedule.evaluated(line["round"], evaluation["loss"] if evaluation else None)
        if line.get("rolled_back_to") is not None:
            self._schedule.rolled_back(line["rolled_back_to"])

    def _load(self, number: int) -> None:
        """A committed round's weights and momentum."""
        folder = self._journal.round_folder(number)
        self._weights = safetensors.numpy.load_file(folder / WEIGHTS)
        if self._settings.server_momentum and (folder / MOMENTUM).exists():
            self._server_step.velocity = safetensors.numpy.load_file(folder / MOMENTUM)

    # --- answers ----------------------------------------------------------------------------------

    def _take_update(self, key: str, answer: Message) -> None:
        """A node's answer to the round under way."""
        state = self._state
        if state is None or key not in state.open:
            return
        try:
            reply, payload = from_record(content(answer), TrainReply)
            del answer
            frames = self._fleet.members[key].usable_frames if key in self._fleet.members else 0
            payload = check_reply(state.task, reply, payload, state.model, frames)
            size, sha256 = payload.manifest.size, payload.manifest.sha256
            update = self._spool.take(key, payload)
            try:
                check_norm(update.norm, state.weights_norm, self._settings.max_update_ratio)
            except NotAdmitted:
                self._spool.drop(update)
                raise
        except TryAgainError:
            raise  # our own disk, not the node
        except Zk0dError as error:
            self._refuse(key, error)
            return
        seconds = self._clock() - state.sent
        state.accepted[key] = Accepted(reply, update, size, sha256, seconds)
        self._journal.write(
            "update.accepted",
            round=state.task.round,
            node=self._fleet.name(key),
            loss=reply.policy_loss,
            samples=reply.samples,
            norm=update.norm,
        )

    def _refuse(self, key: str, error: Zk0dError) -> None:
        """Leave a node's answer out of the round; an update that is no good is a strike."""
        state = self._state
        assert state is not None
        round_ = state.task.round
        state.refused[key] = error.reason
        nodes_own = isinstance(error, Refused)
        strike = not nodes_own and error.reason not in PASSING
        self._journal.write(
            "update.refused",
            round=round_,
            node=self._fleet.name(key),
            key=key,
            reason=error.reason,
            message=error.message,
            strike=strike,
        )
        if nodes_own and error.reason not in PASSING:
            self._fleet.leave_out(key, error)
        if not strike:
            return
        strikes = self._strikes.refused(key, round_)
        until = self._strikes.sits_out_until(key)
        if until > round_:
            self._journal.write(
                "node.sits_out", round=round_, node=self._fleet.name(key), key=key, until=until
            )
        self._fleet.notify(
            state.nodes[key],
            Notice(
                run=self._journal.run,
                round=round_,
                reason=error.reason,
                message=error.message,
                strikes=strikes,
                sits_out_until=until if until > round_ else 0,
            ),
        )

    def _lose(self, key: str, reason: str) -> None:
        """No answer will come from a node of this round."""
        state = self._state
        if state is None or key not in state.open:
            return
        state.lost[key] = reason
        self._journal.write(
            "node.lost", round=state.task.round, node=self._fleet.name(key), reason=reason
        )


def _save(arrays: Arrays, path: Path) -> None:
    """Write tensors; a full disk is an ``OSError`` as everywhere, and none of safetensors' own."""
    try:
        safetensors.numpy.save_file(arrays, path)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from None
