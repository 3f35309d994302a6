"""The run: rounds of train, collect, aggregate, evaluate, commit.

One message goes to every node of a round; answers are folded one at a time as they come. A round
ends when all are in or at its deadline, and counts if enough answered. Only a committed round
exists.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation.admission import admit
from zk0d.federation.aggregate import Arrays, ServerStep, WeightedMean, norm
from zk0d.federation.envelope import Refused, from_record, to_record
from zk0d.federation.journal import CONFIG, Journal
from zk0d.federation.learner_client import Evaluator, LearnerError
from zk0d.federation.messages import (
    Evaluate,
    EvaluateReply,
    Query,
    QueryReply,
    Start,
    Train,
    TrainReply,
)
from zk0d.federation.nodes import Node, nodes_of
from zk0d.federation.update import Manifest, Payload
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import Statistics, merge

log = logging.getLogger("flwr")

#: Seconds between two looks at who is online.
PRESENCE_INTERVAL = 2.0
#: Once enough nodes can train, seconds that the others still have to answer the first query.
QUERY_GRACE = 60.0
#: Rounds in a row that may fail before the run does.
MAX_FAILED_ROUNDS = 3
#: A refusal for one of these passes by itself, so the node is asked again; after any other it is
#: left out of the run, because it would only refuse again.
PASSING = {
    "deadline",
    "disk_full",
    "dropped",
    "flower_error",
    "learner_busy",
    "learner_gone",
    "learner_silent",
    "out_of_memory",
    "try_again",
}
#: Seconds until a node that refused in passing is asked again; doubles up to the second number.
ASK_AGAIN = (2.0, 60.0)


class RunFailed(Zk0dError):
    """The run cannot go on; its committed rounds stay."""

    default_reason = "run_failed"


@dataclass
class _Pending:
    """A message that waits for its answer."""

    node: Node
    kind: str
    sent: float


@dataclass
class _Delay:
    """When a node that refused in passing is asked again."""

    until: float
    seconds: float


@dataclass
class _Round:
    """What one round has so far."""

    task: Train
    mean: WeightedMean
    asked: list[str]
    replies: dict[str, TrainReply] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    bytes_up: int = 0


class Run:
    """One run, from the first query to the last commit.

    Parameters
    ----------
    grid
        Flower's way to the nodes.
    evaluator
        The learner beside the server.
    clock, sleep
        Replaced in tests.

    Raises
    ------
    RunFailed
        From :meth:`run`, if nodes or answers are too few for too long.
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
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid = grid
        self._settings = settings
        self._server = server
        self._journal = journal
        self._evaluator = evaluator
        self._clock = clock
        self._sleep = sleep
        self._pending: dict[str, _Pending] = {}
        self._members: dict[str, QueryReply] = {}
        self._names: dict[str, str] = {}
        self._left_out: set[str] = set()
        self._delays: dict[str, _Delay] = {}
        self._spec: PolicySpec
        self._statistics: Statistics
        self._weights: Arrays
        self._server_step = ServerStep(settings.server_momentum, settings.server_learning_rate)
        self._steps = settings.steps_per_round
        self._last_look = 0.0
        self._last_presence = 0.0

    def run(self) -> None:
        """Train all rounds."""
        settings, journal = self._settings, self._journal
        journal.write("run.started", settings=settings.to_flat())
        journal.write_json(CONFIG, {"run": journal.run, "settings": settings.to_flat()})
        try:
            self._start()
            self._gather()
            self._commit(0, {}, self._evaluate(0))
            failures = 0
            number = 1
            while number <= settings.num_server_rounds:
                if self._round(number):
                    failures = 0
                    number += 1
                    continue
                failures += 1
                if failures == MAX_FAILED_ROUNDS:
                    raise RunFailed(
                        f"round {number} failed {failures} times in a row; the run stops at"
                        f" round {number - 1}. The journal says why each failed."
                    )
        except Zk0dError as error:
            self._write_end("run.failed", reason=error.reason, message=error.message)
            raise
        except Exception as error:
            self._write_end("run.failed", reason="bug", message=f"{type(error).__name__}: {error}")
            raise
        journal.write("run.finished", rounds=settings.num_server_rounds)

    def _write_end(self, kind: str, **facts: Any) -> None:
        try:
            self._journal.write(kind, **facts)
        except TryAgainError as error:
            log.error("zk0d: %s", error.message)

    # --- before the first round -------------------------------------------------------------------

    def _start(self) -> None:
        """The policy's shape and first weights, from the evaluator."""
        task = Start(
            policy=self._settings.policy,
            model_name=self._settings.model_name,
            seed=self._settings.seed,
        )
        deadline = self._clock() + self._settings.node_wait
        while True:
            try:
                reply, payload = self._evaluator.start(task)
                break
            except LearnerError as error:
                if error.reason != "learner_gone" or self._clock() > deadline:
                    raise
                self._sleep(1.0)
        self._spec = reply.spec
        self._weights = {name: array.copy() for name, array in payload.decode(consume=True)}
        self._journal.write("model.ready", spec=reply.spec.model_dump())

    def _gather(self) -> None:
        """Wait for enough nodes that can train, and merge their statistics, once."""
        wanted = self._settings.min_fit_clients
        enough_since: list[float] = []

        def ready() -> bool:
            if len(self._members) < wanted:
                return False
            enough_since.append(self._clock())
            return not self._pending or self._clock() - enough_since[0] > QUERY_GRACE

        self._wait_for(ready, lambda: f"{len(self._members)} of {wanted} nodes can train")
        shared = [
            reply.statistics
            for _, reply in sorted(self._members.items(), key=lambda item: item[1].name)
            if reply.statistics is not None
        ]
        self._statistics = merge(shared)
        self._journal.write_json("statistics.json", self._statistics.model_dump(mode="json"))
        self._journal.write("statistics.merged", nodes=len(shared), sha256=self._statistics.sha256)

    def _wait_for(self, ready: Callable[[], bool], state: Callable[[], str]) -> None:
        """Serve queries until ``ready``, or fail after the run's ``node-wait``."""
        deadline = self._clock() + self._settings.node_wait
        while True:
            self._query_newcomers()
            self._collect(None)
            if ready():
                return
            if self._clock() > deadline:
                raise RunFailed(
                    f"{state()} after waiting {self._settings.node_wait:.0f} s; start more nodes,"
                    " or lower min-fit-clients.",
                    reason="too_few_nodes",
                )
            self._sleep(self._server.poll_interval)

    def _query_newcomers(self) -> None:
        """Ask every node that was not asked in this run; a late one joins the next round."""
        if self._clock() - self._last_look < PRESENCE_INTERVAL:
            return
        self._last_look = self._clock()
        asked = {pending.node.key for pending in self._pending.values()}
        newcomers = [
            node
            for key, node in sorted(nodes_of(self._grid).items())
            if node.online
            and key not in self._members
            and key not in asked | self._left_out
            and (key not in self._delays or self._clock() >= self._delays[key].until)
        ]
        if newcomers:
            task = Query(
                run=self._journal.run,
                spec=self._spec,
                dataset_uri=self._settings.dataset_uri,
            )
            self._send(newcomers, to_record(task), MessageType.QUERY)

    # --- one round --------------------------------------------------------------------------------

    def _round(self, number: int) -> bool:
        """Train, collect, aggregate, evaluate, commit; ``False`` if too few answered."""
        began = self._clock()
        chosen = self._choose(number)
        payload = Payload.of(self._weights, "weights")
        manifest, bytes_down = payload.manifest, payload.manifest.size
        task = self._task(number, manifest)
        self._journal.write(
            "round.started",
            round=number,
            nodes=[self._name(node.key) for node in chosen],
            learning_rate=task.schedule.rate(task.first_step),
            proximal_mu=task.proximal_mu,
        )
        self._send(chosen, to_record(task, payload), MessageType.TRAIN)
        del payload
        sent = self._clock()
        state = _Round(task, WeightedMean(self._weights), [node.key for node in chosen])
        deadline = began + self._settings.round_deadline
        while self._open(state) and self._clock() < deadline:
            self._query_newcomers()
            if not self._collect(state, manifest):
                self._sleep(self._server.poll_interval)
        for key in self._open(state):
            self._lose(state, key, "deadline")
        collected = self._clock()
        wanted = self._settings.min_fit_clients
        if len(state.replies) < wanted:
            self._journal.write(
                "round.failed",
                round=number,
                reason="quorum",
                message=f"{len(state.replies)} of {wanted} needed updates came.",
                refused=self._named(state.refused),
                lost=self._named(state.lost),
            )
            return False
        mean = state.mean.mean()
        mean_norm = norm(mean)
        self._server_step.apply(self._weights, mean)
        aggregated = self._clock()
        evaluation = self._evaluate(number)
        self._commit(
            number,
            {
                "nodes": [
                    self._node_facts(state, key) for key in sorted(state.replies, key=self._name)
                ],
                "refused": self._named(state.refused),
                "lost": self._named(state.lost),
                "samples": sum(reply.samples for reply in state.replies.values()),
                "train_loss": _weighted(state.replies.values(), "policy_loss"),
                "proximal_loss": _weighted(state.replies.values(), "proximal_loss"),
                "learning_rate": task.schedule.rate(task.first_step),
                "proximal_mu": task.proximal_mu,
                "mean_update_norm": mean_norm,
                "bytes_down": bytes_down * len(chosen),
                "bytes_up": state.bytes_up,
                "seconds": {
                    "send": sent - began,
                    "collect": collected - sent,
                    "aggregate": aggregated - collected,
                    "evaluate": self._clock() - aggregated,
                },
            },
            evaluation,
        )
        return True

    def _choose(self, number: int) -> list[Node]:
        """The members of this round: online, able to train, sampled by ``fraction-fit``."""
        wanted = self._settings.min_fit_clients

        def ready() -> list[Node]:
            nodes = nodes_of(self._grid)
            return [nodes[k] for k in sorted(self._members) if k in nodes and nodes[k].online]

        self._wait_for(
            lambda: len(ready()) >= wanted,
            lambda: f"{len(ready())} of {wanted} nodes are online in round {number}",
        )
        nodes = sorted(ready(), key=lambda node: self._name(node.key))
        count = max(wanted, round(self._settings.fraction_fit * len(nodes)))
        if count < len(nodes):
            sampler = random.Random(f"{self._settings.seed}/{number}")
            nodes = sorted(sampler.sample(nodes, count), key=lambda node: self._name(node.key))
        return nodes

    def _task(self, number: int, manifest: Manifest) -> Train:
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
            schedule=CosineSchedule(
                peak=settings.initial_lr,
                end=settings.initial_lr * settings.final_lr_fraction,
                warmup_steps=settings.warmup_steps,
                total_steps=settings.num_server_rounds * self._steps,
            ),
            seed=settings.seed,
            weight_decay=settings.weight_decay,
            grad_clip_norm=settings.grad_clip_norm,
            proximal_mu=settings.proximal_mu,
            deadline_seconds=settings.round_deadline,
            dataset_uri=settings.dataset_uri,
        )

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
        """Make the round exist: its folder, then its line."""
        evaluated = None
        if evaluation is not None:
            evaluated = {
                "loss": evaluation.loss,
                "success": evaluation.success,
                "datasets": [dataset.model_dump() for dataset in evaluation.datasets],
            }
        record = {"round": number, **facts, "evaluation": evaluated}
        files: dict[str, Callable[[Path], None]] = {
            "global.safetensors": lambda path: _save(self._weights, path),
        }
        if self._server_step.velocity is not None:
            velocity = self._server_step.velocity
            files["momentum.safetensors"] = lambda path: _save(velocity, path)
        self._journal.commit(number, files)
        self._journal.write("round.committed", **record)
        self._journal.prune(self._settings.keep_rounds)

    # --- messages ---------------------------------------------------------------------------------

    def _send(self, nodes: list[Node], record: RecordDict, kind: str) -> None:
        messages = [Message(record, dst_node_id=node.id, message_type=kind) for node in nodes]
        sent = self._clock()
        for node in nodes:
            self._names.setdefault(node.key, node.name)
        for node, message_id in zip(nodes, self._grid.push_messages(messages), strict=True):
            if message_id:
                self._pending[message_id] = _Pending(node, kind, sent)

    def _open(self, state: _Round) -> list[str]:
        """Keys of the round's nodes that have neither answered nor been given up."""
        done = {*state.replies, *state.refused, *state.lost}
        return [key for key in state.asked if key not in done]

    def _collect(self, state: _Round | None, model: Manifest | None = None) -> bool:
        """Take the answers that are there, one at a time; whether there was any."""
        any_came = False
        for message_id in list(self._pending):
            for answer in self._grid.pull_messages([message_id]):
                any_came = True
                pending = self._pending.pop(message_id)
                if pending.kind == MessageType.QUERY:
                    self._take_query(pending.node, answer)
                elif state is not None and model is not None and self._is_of(state, pending):
                    self._take_update(state, model, pending.node, answer)
        self._give_up_lost(state)
        return any_came

    def _is_of(self, state: _Round, pending: _Pending) -> bool:
        """Whether an answer belongs to this round and is still waited for."""
        return pending.node.key in self._open(state)

    def _take_query(self, node: Node, answer: Message) -> None:
        try:
            reply, _ = from_record(_content(answer), QueryReply)
        except Zk0dError as error:
            self._journal.write(
                "node.refused", node=node.name, reason=error.reason, message=error.message
            )
            if error.reason in PASSING:
                last = self._delays.get(node.key)
                seconds = min(2 * last.seconds, ASK_AGAIN[1]) if last else ASK_AGAIN[0]
                self._delays[node.key] = _Delay(self._clock() + seconds, seconds)
            else:
                self._leave_out(node.key, error)
            return
        self._delays.pop(node.key, None)
        self._members[node.key] = reply
        self._names[node.key] = reply.name
        self._journal.write(
            "node.joined",
            node=reply.name,
            frames=reply.usable_frames,
            episodes=reply.recordings.episodes,
            shares_statistics=reply.statistics is not None,
        )

    def _take_update(self, state: _Round, model: Manifest, node: Node, answer: Message) -> None:
        try:
            reply, payload = from_record(_content(answer), TrainReply)
            del answer
            admitted = admit(state.task, reply, payload, model)
        except Zk0dError as error:
            state.refused[node.key] = error.reason
            self._journal.write(
                "update.refused",
                round=state.task.round,
                node=self._name(node.key),
                reason=error.reason,
                message=error.message,
            )
            if isinstance(error, Refused) and error.reason not in PASSING:
                self._leave_out(node.key, error)
            return
        state.bytes_up += admitted.payload.manifest.size
        state.norms[node.key] = admitted.norm
        # Near 1, so that the sum keeps its precision.
        weight = reply.samples / (state.task.steps * state.task.batch_size)
        state.mean.fold(admitted.payload, weight)
        state.replies[node.key] = reply
        self._journal.write(
            "update.accepted",
            round=state.task.round,
            node=self._name(node.key),
            loss=reply.policy_loss,
            samples=reply.samples,
        )

    def _leave_out(self, key: str, error: Zk0dError) -> None:
        """A node that refuses for a reason that stays is not asked again in this run."""
        self._journal.write("node.left_out", node=self._name(key), reason=error.reason)
        self._left_out.add(key)
        self._members.pop(key, None)

    def _give_up_lost(self, state: _Round | None) -> None:
        """Stop waiting for nodes that, by the SuperLink's view, cannot answer any more."""
        if not self._pending or self._clock() - self._last_presence < PRESENCE_INTERVAL:
            return
        self._last_presence = self._clock()
        nodes = nodes_of(self._grid)
        for message_id, pending in list(self._pending.items()):
            now = nodes.get(pending.node.key)
            gone = now is None or not now.online or now.id != pending.node.id
            # A session that began after the message was sent has never seen it.
            if gone or (now is not None and now.activated > pending.sent):
                del self._pending[message_id]
                if state is not None and self._is_of(state, pending):
                    self._lose(state, pending.node.key, "offline")

    def _lose(self, state: _Round, key: str, reason: str) -> None:
        state.lost[key] = reason
        for message_id, pending in list(self._pending.items()):
            if pending.node.key == key and pending.kind == MessageType.TRAIN:
                del self._pending[message_id]
        self._journal.write(
            "node.lost", round=state.task.round, node=self._name(key), reason=reason
        )

    # --- facts ------------------------------------------------------------------------------------

    def _name(self, key: str) -> str:
        return self._names.get(key, key[:12])

    def _named(self, by_key: dict[str, str]) -> dict[str, str]:
        return {self._name(key): reason for key, reason in by_key.items()}

    def _node_facts(self, state: _Round, key: str) -> dict[str, Any]:
        reply = state.replies[key]
        return {
            "node": reply.name,
            "samples": reply.samples,
            "steps": reply.steps,
            "loss": reply.loss,
            "policy_loss": reply.policy_loss,
            "proximal_loss": reply.proximal_loss,
            "grad_norm": reply.grad_norm,
            "update_norm": state.norms[key],
            "bad_batches": reply.bad_batches,
            "seconds": reply.seconds,
        }


def _save(arrays: Arrays, path: Path) -> None:
    """Write tensors; a full disk is an ``OSError`` as everywhere, and none of safetensors' own."""
    try:
        safetensors.numpy.save_file(arrays, path)
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from None


def _content(answer: Message) -> RecordDict:
    if answer.has_error():
        reason = (answer.error.reason or "").splitlines()
        raise Zk0dError(
            f"Flower reports error {answer.error.code}: {reason[0] if reason else 'no reason'}",
            reason="flower_error",
        )
    return answer.content


def _weighted(replies: Iterable[TrainReply], what: str) -> float:
    """Mean of a number of the replies, weighted by samples."""
    replies = list(replies)
    total = sum(reply.samples for reply in replies)
    return float(sum(getattr(reply, what) * reply.samples for reply in replies) / total)
