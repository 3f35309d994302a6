"""What is known of a run: one fold over its journal, for all who ask.

The coordinator continues a run by it, and status, metrics, pages, reports and summaries are views
of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from zk0d.errors import ConfigError
from zk0d.learning.spec import PolicySpec, RobotDescription
from zk0d.record.events import (
    EvaluationFailed,
    Event,
    ModelReady,
    NodeJoined,
    NodeLeftOut,
    NodeLost,
    NodeMeasured,
    NodeNotMeasured,
    NodePreparing,
    NodeRefused,
    NodeRound,
    NodeSitsOut,
    RoundCommitted,
    RoundFailed,
    RoundStarted,
    RunContinued,
    RunFailed,
    RunFinished,
    RunResumed,
    RunStarted,
    RunStopped,
    RunWaiting,
    StatisticsMerged,
    UpdateRefused,
)
from zk0d.record.journal import CONFIG, JOURNAL, JournalTail, is_whole, read_journal
from zk0d.record.reasons import Reason

ACCEPTED, REFUSED, LOST = RESULTS = ("accepted", "refused", "lost")
Phase = Literal["starting", "running", "waiting", "finished", "failed", "stopped"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass
class Member:
    """A node of a run. Sums count repeated rounds, too."""

    version: str = ""
    updates: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    bytes_up: int = 0
    bytes_down: int = 0
    steps: int = 0
    samples: int = 0
    sits_out_until: int = 0  #: the last round without it
    last: NodeRound | None = None  #: its part in the last round that it had one in


@dataclass
class RunState:
    """A run after the events that it was given, in order.

    Attributes
    ----------
    whole
        Whether the nodes' parts are kept of every round. Who follows a run for weeks keeps those
        of the last one only.
    rounds
        The committed rounds that count: a round that was committed again counts once, the last
        time, and what came after the round at which the run was resumed never was.
    losses
        The nodes' training losses: by round, then by node.
    refusals
        Refused updates of rounds that count, or may still.
    """

    run: str = ""
    whole: bool = True
    phase: Phase = "starting"
    settings: dict[str, str | int | float | bool] = field(default_factory=dict)
    spec: PolicySpec | None = None
    start_from: str = ""  #: the release that it began with, RUN/ROUND
    statistics_sha256: str = ""
    statistics_groups: tuple[str, ...] = ()  #: that have their own
    began: float = 0.0  #: seconds since 1970
    heard: float = 0.0  #: when its last event was written, seconds since 1970
    message: str = ""  #: why it failed
    interrupted: bool = False  #: no ServerApp works on it, and it is worth resuming
    waiting: RunWaiting | None = None  #: what it waits for, until a round is committed
    flower_run: str = ""  #: what Flower calls it, if it was resumed
    resumed: int = 0

    rounds: dict[int, RoundCommitted] = field(default_factory=dict)
    last: RoundCommitted | None = None  #: the last one, with its nodes
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    refusals: list[UpdateRefused] = field(default_factory=list)
    lost: list[NodeLost] = field(default_factory=list)
    failures: list[RoundFailed | EvaluationFailed] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)  #: every node that was there
    names: dict[str, str] = field(default_factory=dict)  #: what the run calls a node, by key
    enrolled: dict[str, str] = field(default_factory=dict)  #: the roster's names, by key
    robots: list[RobotDescription] = field(default_factory=list)  #: of all that take part
    preparing: dict[str, NodePreparing] = field(default_factory=dict)  #: by key: how far each is
    unable: dict[str, NodeRefused] = field(default_factory=dict)  #: by key: why it cannot train
    open: RoundStarted | None = None  #: the round under way
    holding_out: dict[str, str] = field(default_factory=dict)  #: nodes with held-out episodes
    #: What nodes found of weights on those: by the round that left these, then by the node's key.
    measured: dict[int, dict[str, NodeMeasured]] = field(default_factory=dict)
    #: Why others did not, by round, then by name.
    not_measured: dict[int, dict[str, str]] = field(default_factory=dict)

    asked: int = 0  #: nodes in the round that was sent last
    learning_rate: float = 0.0
    proximal_mu: float = 0.0
    bytes_up: int = 0  #: sums and counts hold repeated rounds, too
    bytes_down: int = 0
    committed: int = 0
    failed: int = 0
    evaluations: dict[str, int] = field(default_factory=lambda: {"done": 0, "failed": 0})
    refused: Counter[tuple[str, Reason]] = field(default_factory=Counter)  #: by node and reason

    @classmethod
    def read(cls, folder: Path) -> RunState:
        """The run in ``folder``, whole."""
        state = cls(run=folder.name)
        for event in read_journal(folder):
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Take the next event."""
        self.heard = event.time or self.heard
        match event:
            case RunStarted():
                self.run, self.settings = event.run, event.settings
                self.phase = "waiting" if self.waiting else "running"
                self.began = self.began or event.time
            case RunResumed():
                self._resume(event)
            case RunFinished():
                self.phase, self.open, self.waiting = "finished", None, None
            case RunFailed():
                self.phase, self.message, self.open = "failed", event.message, None
                self.interrupted, self.waiting = Reason.of(event.reason).waits, None
            case RunWaiting():
                if self.phase != "stopped":
                    self.phase, self.waiting = "waiting", event
            case RunContinued():
                self._go_on()
            case RunStopped():
                self.stop()
            case ModelReady():
                self.spec, self.start_from = event.spec, event.start_from
                self._meet(event.robot)
            case StatisticsMerged():
                self.statistics_sha256 = event.sha256
                self.statistics_groups = event.groups
            case NodeJoined():
                if event.key:
                    self._name(event)
                self.unable.pop(event.key or event.node, None)
                self.preparing.pop(event.key or event.node, None)
                self._member(event.node).version = event.version
                self._meet(event.robot)
                self._hold_out(event)
            case NodePreparing():
                self.unable.pop(event.key or event.node, None)
                self.preparing[event.key or event.node] = event
            case NodeRefused():
                self.preparing.pop(event.key or event.node, None)
                self.unable[event.key or event.node] = event
            case NodeLeftOut():
                self.holding_out = {k: n for k, n in self.holding_out.items() if n != event.node}
            case NodeMeasured():
                self.measured.setdefault(event.round, {})[event.key] = event
                self.not_measured.get(event.round, {}).pop(event.node, None)
            case NodeNotMeasured():
                self.not_measured.setdefault(event.round, {})[event.node] = event.reason
            case NodeLost():
                self.lost.append(event)
                self._member(event.node).updates[LOST] += 1
            case NodeSitsOut():
                self._member(event.node).sits_out_until = event.until
            case UpdateRefused():
                self.refusals.append(event)
                self.refused[event.node, Reason.of(event.reason)] += 1
                self._member(event.node).updates[REFUSED] += 1
            case RoundStarted():
                self.open, self.asked = event, len(event.nodes)
                self.learning_rate, self.proximal_mu = event.learning_rate, event.proximal_mu
            case RoundFailed():
                self.open = None
                self.failed += 1
                self.failures.append(event)
            case EvaluationFailed():
                self.evaluations["failed"] += 1
                self.failures.append(event)
            case RoundCommitted():
                self._commit(event)

    def _go_on(self) -> None:
        if self.phase == "waiting":
            self.phase = "running"
        self.waiting = None

    def _commit(self, event: RoundCommitted) -> None:
        self._go_on()
        self.open, self.last = None, event
        self.rounds[event.round] = event if self.whole else event.model_copy(update={"nodes": ()})
        self.evaluations["done"] += event.evaluation is not None
        if not event.round:
            return  # the policy before any training
        self.losses[event.round] = {node.node: node.policy_loss for node in event.nodes}
        if event.round == 1:
            self._take_first(event)
        self.committed += 1
        self.bytes_up += event.bytes_up
        self.bytes_down += event.bytes_down
        for node in event.nodes:
            member = self._member(node.node)
            member.last = node
            member.updates[ACCEPTED] += 1
            member.bytes_up += node.bytes_up
            member.bytes_down += node.bytes_down
            member.steps += node.steps
            member.samples += node.samples

    def _resume(self, event: RunResumed) -> None:
        if self.waiting is not None and self.waiting.reason == Reason.INTERRUPTED:
            self.waiting = None
        self.phase, self.message = "waiting" if self.waiting else "running", ""
        self.interrupted, self.open = False, None
        self.flower_run = event.flower_run
        self.unable.clear()
        self.preparing.clear()
        self.resumed += 1
        self.cut(event.round)

    def cut(self, last: int) -> None:
        """Forget what came after round ``last``: it is trained again."""
        self.rounds = {n: event for n, event in self.rounds.items() if n <= last}
        self.losses = {n: losses for n, losses in self.losses.items() if n <= last}
        self.refusals = [event for event in self.refusals if event.round <= last]
        self.measured = {n: found for n, found in self.measured.items() if n <= last}
        self.not_measured = {n: found for n, found in self.not_measured.items() if n <= last}
        if self.last is not None and self.last.round > last:
            self.last = self.rounds.get(last)

    def stop(self) -> None:
        """It was stopped, and its ServerApp wrote no last event of its own."""
        self.phase, self.message, self.open = "stopped", "", None
        self.interrupted, self.waiting = False, None

    def interrupt(self, message: str) -> None:
        """Its ServerApp ended without a last event of its own, after the last that it wrote."""
        self.interrupted, self.open, self.phase = True, None, "waiting"
        if self.waiting is None:
            reason = Reason.INTERRUPTED
            self.waiting = RunWaiting(
                reason=reason, message=message, until=reason.until, since=self.heard, run=self.run
            )

    def _take_first(self, event: RoundCommitted) -> None:
        """Nodes evaluate a round's first weights: in round 1 those before any training."""
        for node in event.nodes:
            if node.holdout_mark and not node.staleness:
                found = NodeMeasured(
                    **node.held_out.model_dump(),
                    time=event.time,
                    run=event.run,
                    round=0,
                    node=node.node,
                    key=node.key,
                    seconds=node.seconds.get("evaluate", 0.0),
                )
                self.measured.setdefault(0, {})[node.key] = found

    def _hold_out(self, event: NodeJoined) -> None:
        """Whether a node holds out episodes now; one that changed its key is the same node."""
        same = {k for k, name in self.holding_out.items() if k == event.key or name == event.node}
        for key in same:
            del self.holding_out[key]
        if event.held_out:
            self.holding_out[event.key] = event.node

    def _meet(self, robot: RobotDescription | None) -> None:
        if robot is not None and robot not in self.robots:
            self.robots.append(robot)

    def _name(self, event: NodeJoined) -> None:
        """A node that changed its key keeps its name; the old key has it no more."""
        for key, name in self.names.items():
            if name == event.node and key != event.key:
                self.names[key] = f"{name}-{key[:6]}"
        self.names[event.key] = event.node
        if event.enrolled:
            self.enrolled[event.key] = event.enrolled

    def _member(self, node: str) -> Member:
        return self.members.setdefault(node, Member())

    # --- what follows from it ---------------------------------------------------------------------

    @property
    def left_out(self) -> dict[str, str]:
        """Why nodes have no part in the run, by name."""
        lasting = (each for each in self.unable.values() if not Reason.of(each.reason).passes)
        return {each.node: each.message for each in lasting}

    @property
    def goes_on(self) -> bool:
        """Whether a ServerApp works on it, by its journal."""
        return self.phase in ("starting", "running", "waiting") and not self.interrupted

    @property
    def flower(self) -> str:
        """What Flower calls it: another number than its own once it was resumed."""
        return self.flower_run or self.run

    @property
    def round(self) -> int:
        """The last committed round that counts."""
        return max(self.rounds, default=0)

    @property
    def wanted(self) -> int:
        """Planned rounds of the run."""
        return int(self.settings.get("num-server-rounds", 0))

    @property
    def deadline(self) -> float:
        """Until when the round under way waits, seconds since 1970; 0 between rounds."""
        return self.open.time + self.open.deadline_seconds if self.open else 0.0

    @property
    def evaluated(self) -> dict[int, float]:
        """Held-out loss by round, where it was measured."""
        return {
            number: event.evaluation.loss
            for number, event in sorted(self.rounds.items())
            if event.evaluation is not None and event.evaluation.loss is not None
        }

    @property
    def best(self) -> tuple[int, float] | None:
        """Round and held-out loss of the best evaluation."""
        return min(self.evaluated.items(), key=lambda item: item[1], default=None)

    @property
    def since_best(self) -> int:
        """Evaluations after the best one."""
        best = self.best
        return sum(number > best[0] for number in self.evaluated) if best else 0

    @property
    def on_nodes(self) -> dict[str, Any] | None:
        """The newest loss on the nodes' held-out episodes, by frames, and of which round."""
        of = max(self.measured, default=0)
        found = [each for each in self.measured.get(of, {}).values() if each.loss is not None]
        if self.last is not None and self.last.holdout_loss is not None and self.last.round > of:
            of, loss = self.last.round - 1, self.last.holdout_loss
            count = sum(node.holdout_loss is not None for node in self.last.nodes)
        elif found:
            frames = sum(each.frames for each in found) or 1
            loss = sum((each.loss or 0.0) * each.frames for each in found) / frames
            count = len(found)
        else:
            return None
        return {"round": of, "loss": loss, "nodes": count}

    @property
    def policy_loss(self) -> float | None:
        """Held-out loss of the last evaluation, mean of the datasets."""
        found = [event.evaluation for _, event in sorted(self.rounds.items()) if event.evaluation]
        return found[-1].loss if found else None

    @property
    def train_loss(self) -> float | None:
        """Training loss of the last round, weighted by samples."""
        return self.last.train_loss if self.last else None

    @property
    def agreement(self) -> float | None:
        """How much the updates of the last round pulled the same way, 0 to 1."""
        return self.last.agreement if self.last else None

    @property
    def last_commit(self) -> float:
        """When the last round was committed; 0 before the first."""
        return self.last.time if self.last else 0.0

    def by_dataset(self, what: Literal["loss", "success"]) -> dict[str, float]:
        """The newest held-out loss, or success in closed loop, of each dataset."""
        return _by_dataset((event for _, event in sorted(self.rounds.items())), what)

    @property
    def baseline(self) -> dict[str, float]:
        """Each dataset's held-out loss before any training."""
        return _by_dataset([self.rounds[0]] if 0 in self.rounds else [], "loss")

    def last_whole(self, folder: Path) -> int:
        """The newest committed round whose files in ``folder`` are those that were written.

        Raises
        ------
        ConfigError
            If there is none.
        """
        for number in sorted(self.rounds, reverse=True):
            if is_whole(folder / "rounds" / f"{number:05d}"):
                return number
        raise ConfigError(
            f"{folder}: no committed round is whole, so it cannot be resumed; start a new run.",
            reason="nothing_to_resume",
        )

    def status(self) -> dict[str, Any]:
        """What ``status --json`` tells of a run."""
        return {
            "run": self.run,
            "state": self.phase,
            "round": self.round,
            "rounds": self.wanted,
            "policy_loss": self.policy_loss,
            "train_loss": self.train_loss,
            "agreement": self.agreement,
            "losses": self.by_dataset("loss"),
            "on_nodes": self.on_nodes,
            "success": self.by_dataset("success"),
            "last_commit": self.last_commit or None,
            "message": self.message,
            "resumed": self.resumed,
            "waiting": {
                "since": self.waiting.since,
                "reason": self.waiting.reason,
                "for": self.waiting.message,
                "until": self.waiting.until,
                "next_try": self.waiting.next_try or None,
            }
            if self.waiting
            else None,
        }

    def sentence(self) -> str:
        """All of it in one line."""
        if self.phase == "stopped":
            return f"run {self.run} was stopped at round {self.round}/{self.wanted}"
        if self.phase == "failed":
            return f"run {self.run} failed at round {self.round}: {self.message}"
        if self.waiting is not None:
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.waiting.since))
            return (
                f"run {self.run} waits at round {self.round}/{self.wanted} since {since}:"
                f" {self.waiting.message}; it continues {self.waiting.until}"
            )
        parts = [f"round {self.round}/{self.wanted}"]
        loss = self.policy_loss if self.policy_loss is not None else self.train_loss
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        if self.asked:
            answered = len(self.last.nodes) if self.last else 0
            parts.append(f"{answered or self.asked} of {self.asked} nodes")
        if self.phase == "finished":
            parts.insert(0, "finished")
        elif not self.asked:
            parts += [f"{each.node} cannot train: {each.message}" for each in self.unable.values()]
            parts += [f"{each.node} is {each.message}" for each in self.preparing.values()]
        return ", ".join(parts)


def _by_dataset(
    events: Iterable[RoundCommitted], what: Literal["loss", "success"]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for event in events:
        for dataset in event.evaluation.datasets if event.evaluation else ():
            value = getattr(dataset, what)
            if value is not None:
                found[dataset.name] = value
    return found


class NewestRun:
    """Follows the newest run under a folder of runs."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._folder: Path | None = None
        self._known: set[Path] | None = None
        self._tail: JournalTail | None = None
        self.state: RunState | None = None
        #: Events that were written since the look before. What a run holds that was there at the
        #: first look, or that is looked at once more after another, is old.
        self.fresh: list[Event] = []

    def look(self) -> RunState | None:
        """The newest run's state; ``None`` if there is no run."""
        there = {path.parent for path in self._runs.glob(f"*/{JOURNAL}") if path.is_file()}
        if self._known is None:
            self._known = there
        newest = max(there, key=_begun, default=None)
        old = newest != self._folder and newest in self._known
        if newest != self._folder:
            self._folder = newest
            self._tail = JournalTail(newest) if newest else None
            self.state = RunState(run=newest.name, whole=False) if newest else None
        self.fresh = []
        if newest is not None and self._tail is not None and self.state is not None:
            self._known.add(newest)
            events = self._tail.new_events()
            for event in events:
                self.state.apply(event)
            self.fresh = [] if old else events
        return self.state


def _begun(folder: Path) -> float:
    """When a run began: its settings are written once. (A stopped run may write for a minute.)"""
    for name in (CONFIG, JOURNAL):
        try:
            return (folder / name).stat().st_mtime
        except FileNotFoundError:
            continue
    return 0.0
