"""Fakes for the round engine: a grid with a clock of its own, and nodes that answer as told.

They stand for Flower's grid and for learners, so that a round with a deadline of an hour takes a
moment; the real ones are in tests/demo and test_in_process.py.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from tests.record.lines import read_lines
from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.federation.envelope import from_record, kind_of, to_record
from zk0d.federation.messages import (
    Evaluate,
    EvaluateReply,
    Measure,
    MeasureReply,
    NodeRejected,
    Noted,
    Query,
    QueryReply,
    Refusal,
    Release,
    ReleaseReply,
    Start,
    StartReply,
    Train,
    TrainReply,
    UpdateRejected,
)
from zk0d.federation.run import Run
from zk0d.federation.update import Kind, Manifest, Payload, TensorEntry
from zk0d.flower.replies import PAGE
from zk0d.learning.spec import PolicySpec, RecordingsSummary, RobotDescription
from zk0d.learning.statistics import FeatureStatistics, Statistics
from zk0d.record.events import DatasetResult, HeldOut, NodeFigures
from zk0d.record.journal import Journal, settings_of
from zk0d.release.gate import judge

NEVER = float("inf")
SPEC = PolicySpec(
    policy="act", model_name="tiny", seed=0, fps=30, state_width=2, action_width=2, cameras={}
)
SUMMARY = RecordingsSummary(
    episodes=2, frames=20, fps=30, state_width=2, action_width=2, cameras={}
)
STATISTICS = Statistics(
    features={
        name: FeatureStatistics.of(np.arange(6.0).reshape(3, 2))
        for name in ("action", "observation.state")
    }
)


def first_weights() -> dict[str, np.ndarray]:
    return {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}


@dataclass
class FakeNode:
    """A node; ``train`` and ``query`` may be replaced to misbehave."""

    name: str
    key: str = ""  #: stands for its public key, if that is not its name
    step: float = 1.0  #: what it adds to every weight in a round
    gradient: float = 0.1  #: what its variate has everywhere
    seconds: float = 5.0
    online: bool = True
    activated: float = 0.0
    shares: bool = True
    statistics: Statistics = STATISTICS
    trained: list[Train] = field(default_factory=list)
    queried: int = 0
    notices: list[UpdateRejected] = field(default_factory=list)
    rejections: list[NodeRejected] = field(default_factory=list)
    robot: RobotDescription | None = None
    train: Callable[[FakeNode, Train, Payload], tuple[RecordDict | None, float]] | None = None
    query: Callable[[FakeNode, Query], tuple[RecordDict | None, float]] | None = None
    held_out: int = 0  #: episodes
    gains: float = 0.1  #: what its held-out loss falls by if tensor a grows by 1
    mark: str = ""
    measured: list[Measure] = field(default_factory=list)
    measure: Callable[[FakeNode, Measure, Payload], tuple[RecordDict | None, float]] | None = None

    def answer_query(self, task: Query) -> tuple[RecordDict | None, float]:
        self.queried += 1
        if self.query is not None:
            return self.query(self, task)
        return to_record(self.query_reply()), self.seconds

    def query_reply(self) -> QueryReply:
        return QueryReply(
            name=self.name,
            recordings=SUMMARY,
            usable_frames=20,
            held_out=self.held_out,
            statistics=self.statistics if self.shares else None,
            robot=self.robot,
        )

    def answer_train(self, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        self.trained.append(task)
        if self.train is not None:
            return self.train(self, task, payload)
        return self.update(task, payload), self.seconds

    def update(
        self,
        task: Train,
        payload: Payload,
        change: Callable[[Any], Any] = lambda a: a,
        **facts: Any,
    ) -> RecordDict:
        """A plausible answer; ``change`` alters the arrays, ``facts`` the numbers."""
        arrays = {n: np.full_like(a, self.step) for n, a in payload.arrays().items()}
        figures = {
            "steps": task.training.local_steps,
            "samples": task.training.frames,
            "loss": 0.5,
            "policy_loss": 0.5,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
        }
        if task.evaluation.on_nodes:
            figures |= {f"holdout_{k}": v for k, v in self.found(payload).model_dump().items()}
        reply = {"name": self.name, "round": task.round, "base": task.base}
        for key, value in facts.items():
            (figures if key in NodeFigures.model_fields else reply)[key] = value
        changed = change(arrays)
        if all(np.isfinite(array).all() for array in changed.values()):
            update = Payload.of(changed, "delta", task.training.uplink_codec)
        else:
            update = raw_payload(changed)
        if task.training.drift_correction != "none":
            update = update.with_beside(self.variate(task, payload))
        return to_record(TrainReply.model_validate({**reply, "figures": figures}), update)

    def answer_measure(self, task: Measure, payload: Payload) -> tuple[RecordDict | None, float]:
        self.measured.append(task)
        if self.measure is not None:
            return self.measure(self, task, payload)
        return to_record(self.measure_reply(task, payload)), self.seconds

    def measure_reply(self, task: Measure, payload: Payload, **facts: Any) -> MeasureReply:
        """A plausible answer; ``facts`` change what it found."""
        found = self.found(payload).model_dump() | facts
        return MeasureReply(
            name=self.name, of=task.of, base=task.base, held_out=HeldOut.model_validate(found)
        )

    def found(self, payload: Payload) -> HeldOut:
        """What it finds on its held-out episodes, of which each has a loss of its own."""
        if not self.held_out:
            return HeldOut()
        grown = self.gains * float(payload.arrays()["a"].mean())
        losses = [1.0 + 0.1 * n - grown * (1.0 + 0.01 * n) for n in range(self.held_out)]
        mark = self.mark or hashlib.sha256(self.name.encode()).hexdigest()[:16]
        return HeldOut(
            loss=float(np.mean(losses)), frames=4 * len(losses), losses=tuple(losses), mark=mark
        )

    def variate(self, task: Train, payload: Payload) -> Payload:
        """A plausible one."""
        arrays = {n: np.full_like(a, self.gradient) for n, a in payload.arrays().items()}
        return Payload.of(arrays, "variates", task.training.variate_codec)


def raw_payload(arrays: dict[str, Any], kind: Kind = "delta") -> Payload:
    """A float32 payload that no encoder of ours would make: its values may be anything."""
    data = {name: np.asarray(array, "<f4").tobytes() for name, array in sorted(arrays.items())}
    entries = tuple(
        TensorEntry(
            name=name,
            shape=np.shape(arrays[name]),
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        for name, content in data.items()
    )
    manifest = Manifest(kind=kind, codec="fp32", tensors=entries)
    return Payload(manifest, [b"".join(data.values())])


def refuse(reason: str) -> Callable[..., tuple[RecordDict, float]]:
    """A node that refuses for ``reason``."""
    return lambda *_: (to_record(Refusal(reason=reason, message=f"because of {reason}")), 1.0)


def silent(*_: Any) -> tuple[None, float]:
    """A node that never answers."""
    return None, NEVER


class FakeGrid(Grid):
    """Answers become available as the clock advances; only ``sleep`` advances it."""

    def __init__(self, nodes: Iterable[FakeNode]) -> None:
        self.nodes = dict(enumerate(nodes, 1))
        self.now = 1000.0
        self.asked: list[int] = []  #: for how many answers, each time
        self.events: list[tuple[float, Callable[[], None]]] = []
        self._ids = itertools.count(1)
        self._answers: dict[str, tuple[float, Message]] = {}
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for event in [e for e in self.events if e[0] <= self.now]:
            self.events.remove(event)
            event[1]()

    def at(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen so many seconds after the start."""
        self.events.append((1000.0 + seconds, event))

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def get_nodes(self) -> list[Any]:
        from datetime import UTC, datetime

        return [
            SimpleNamespace(
                node_id=number,
                status="online" if node.online else "offline",
                name=node.name,
                public_key=(node.key or node.name).encode(),
                last_activated_at=datetime.fromtimestamp(node.activated, UTC).isoformat()
                if node.activated
                else "",
            )
            for number, node in self.nodes.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            number = message.metadata.dst_node_id
            node = self.nodes[number]
            name = f"m{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = name
            ids.append(name)
            copied = RecordDict(dict(message.content.items()))
            if message.metadata.message_type == "query":
                if kind_of(copied) == UpdateRejected.__name__:
                    node.notices.append(from_record(copied, UpdateRejected)[0])
                    record, seconds = to_record(Noted()), 1.0
                elif kind_of(copied) == NodeRejected.__name__:
                    node.rejections.append(from_record(copied, NodeRejected)[0])
                    record, seconds = to_record(Noted()), 1.0
                else:
                    record, seconds = node.answer_query(from_record(copied, Query)[0])
            elif message.metadata.message_type == "evaluate":
                asked, payload = from_record(_copied(message.content), Measure)
                assert payload is not None
                record, seconds = node.answer_measure(asked, payload)
            else:
                task, payload = from_record(_copied(message.content), Train)
                assert payload is not None
                record, seconds = node.answer_train(task, payload)
            TaskIdentity.node_id = number
            if record is None:
                continue
            answer = Message(record, reply_to=message)
            self._answers[name] = (self.now + seconds, answer)
        TaskIdentity.node_id = 1
        return ids

    def fail(self, name: str, reason: str) -> None:
        """Let Flower answer with an error in place of the node."""
        due, answer = self._answers[name]
        failed = Message(Error(code=2, reason=reason), reply_to=answer)
        failed.metadata.__dict__["_reply_to_message_id"] = name
        self._answers[name] = (due, failed)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = list(message_ids)
        self.asked.append(len(asked))
        ready = [i for i in asked if i in self._answers and self._answers[i][0] <= self.now]
        return [self._answers.pop(i)[1] for i in ready[:PAGE]]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: Any = None
    ) -> list[Message]:
        raise NotImplementedError


def _copied(record: RecordDict) -> RecordDict:
    """Reading takes a record's payload out; the others still need it."""
    from flwr.app import ArrayRecord

    return RecordDict(
        {
            name: ArrayRecord(dict(each.items())) if isinstance(each, ArrayRecord) else each
            for name, each in record.items()
        }
    )


class RunOnFakes:
    """A run of the real ServerApp's loop against a :class:`FakeGrid`; a subclass says with what."""

    folder: Path
    settings: RunSettings
    grid: FakeGrid
    evaluator: FakeEvaluator

    def run_on_grid(self, resumed_by: str = "") -> None:
        Run(
            self.grid,
            settings_of(self.folder) if resumed_by else self.settings,
            ServerSettings(state=self.folder),
            Journal(self.folder, "1"),
            self.evaluator,
            resumed_by=resumed_by,
            clock=self.grid.clock,
            sleep=self.grid.sleep,
        ).run()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The journal's lines of a kind."""
        return [line for line in read_lines(self.folder) if line["kind"] == kind]


@dataclass
class FakeEvaluator:
    """Stands for the learner beside the server."""

    losses: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    error: Exception | None = None
    start_errors: list[Exception] = field(default_factory=list)
    released: list[tuple[Release, str]] = field(default_factory=list)
    release_error: Exception | None = None
    robot: RobotDescription | None = None
    loss: Callable[[Payload], float] | None = None  #: in place of the mean of tensor a
    has_recordings: bool = True

    def start(self, task: Start) -> tuple[StartReply, Payload]:
        if self.start_errors:
            raise self.start_errors.pop(0)
        return StartReply(spec=SPEC, robot=self.robot), Payload.of(first_weights(), "weights")

    def evaluate(self, task: Evaluate, weights: Payload) -> EvaluateReply:
        if self.error is not None:
            raise self.error
        self.rounds.append(task.round)
        self.bases.append(weights.manifest.sha256)
        if not self.has_recordings:
            return EvaluateReply(datasets=())
        loss = self.loss(weights) if self.loss else float(weights.arrays()["a"].mean())
        self.losses.append(loss)
        return EvaluateReply(datasets=(DatasetResult(name="x", loss=loss, frames=4),))

    def release(self, task: Release, weights: Payload) -> ReleaseReply:
        if self.release_error is not None:
            raise self.release_error
        self.released.append((task, weights.manifest.sha256))
        verdict = judge(task.summary)
        name = f"checkpoint_round_{task.round}"
        return ReleaseReply(folder=name, passed=verdict.passed, reasons=verdict.reasons)
