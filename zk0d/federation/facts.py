"""What is known of a run, gathered from its journal: for status lines, pages and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.federation.journal import CONFIG, JOURNAL, JournalTail

#: Ends of a run that are nobody's decision and may pass: it can go on where it was.
_PASSING = {"disk_full", "gpu_failed", "learner_gone", "learner_silent", "try_again"}
#: Why an update is left out. A node may give any reason for its refusal; others are counted
#: together, so that what a node writes cannot make series without end.
REASONS = frozenset(
    {
        "bad_body",
        "bug",
        "data_error",
        "deadline",
        "disk_full",
        "dropped",
        "flower_error",
        "gpu_failed",
        "implausible_samples",
        "learner_busy",
        "learner_gone",
        "learner_silent",
        "limit_exceeded",
        "manifest_mismatch",
        "model_mismatch",
        "model_not_allowed",
        "model_unavailable",
        "model_unsafe",
        "no_dataset",
        "no_payload",
        "no_statistics",
        "norm_cap",
        "norm_outlier",
        "not_admitted",
        "not_finite",
        "out_of_memory",
        "outside_hours",
        "policy_not_allowed",
        "protocol_mismatch",
        "run_dataset_refused",
        "statistics_mismatch",
        "stopped",
        "try_again",
        "unavailable",
        "wrong_base",
        "wrong_codec",
        "wrong_kind",
        "wrong_round",
        "zero_update",
    }
)
OTHER = "other"
ACCEPTED, REFUSED, LOST = RESULTS = ("accepted", "refused", "lost")


@dataclass
class NodeFacts:
    """What is known of a node in a run."""

    version: str = ""
    updates: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    bytes_up: int = 0
    bytes_down: int = 0
    steps: int = 0
    samples: int = 0
    sits_out_until: int = 0  #: last round
    policy_losses: list[tuple[int, float]] = field(default_factory=list)  #: by round
    last: dict[str, Any] = field(default_factory=dict)  #: its part of the last committed line


@dataclass
class RunFacts:
    """One run's figures; :meth:`take` reads the journal's lines in order."""

    run: str = ""
    state: str = "starting"  #: starting, running, finished, failed or stopped
    rounds: int = 0
    round: int = 0  #: the last committed
    asked: int = 0  #: nodes asked in the present round
    answered: int = 0  #: nodes in the last committed round
    refused: dict[tuple[str, str], int] = field(default_factory=dict)  #: by (node, reason)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)  #: last figures of each
    members: dict[str, NodeFacts] = field(default_factory=dict)  #: every node that was there
    names: dict[str, str] = field(default_factory=dict)  #: what the run calls a node, by key
    baseline: dict[str, float] = field(default_factory=dict)  #: losses before any training
    loss_history: list[tuple[int, float]] = field(default_factory=list)  #: by round, evaluated ones
    evaluations: dict[str, int] = field(default_factory=lambda: {"done": 0, "failed": 0})
    best_loss: float | None = None
    since_best: int = 0  #: evaluations since then
    phases: dict[str, float] = field(default_factory=dict)  #: seconds of the last round
    losses: dict[str, float] = field(default_factory=dict)  #: policy loss by dataset
    success: dict[str, float] = field(default_factory=dict)
    policy_loss: float | None = None
    train_loss: float | None = None
    learning_rate: float = 0.0
    proximal_mu: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    committed: int = 0
    failed: int = 0
    last_commit: float = 0.0
    began: float = 0.0  #: seconds since 1970
    deadline: float = 0.0  #: of the round under way; 0 between rounds
    min_nodes: int = 0
    policy: str = ""
    model: str = ""
    message: str = ""  #: why it failed
    interrupted: bool = False  #: it failed of something that was not its own
    flower_run: str = ""  #: what Flower calls it now, if it was gone on with
    resumed: int = 0  #: times that it was gone on with

    def take(self, line: dict[str, Any]) -> None:
        """Read one line."""
        kind = line["kind"]
        if kind == "run.started":
            settings = line["settings"]
            self.run, self.rounds = line["run"], settings["num-server-rounds"]
            self.min_nodes = settings.get("min-fit-clients", 0)
            self.policy = settings.get("policy", "")
            self.model = settings.get("model-name", "")
            self.state, self.began = "running", line["time"]
        elif kind == "run.finished":
            self.state, self.deadline = "finished", 0.0
        elif kind == "run.failed":
            self.state, self.message, self.deadline = "failed", line["message"], 0.0
            self.interrupted = line["reason"] in _PASSING
        elif kind == "run.resumed":
            self.state, self.message, self.interrupted = "running", "", False
            self.round, self.flower_run = line["round"], line["flower_run"]
            self.resumed += 1
            self._cut(line["round"])
        elif kind == "round.started":
            self.asked = len(line["nodes"])
            self.learning_rate, self.proximal_mu = line["learning_rate"], line["proximal_mu"]
            self.deadline = line["time"] + line.get("deadline_seconds", 0.0)
        elif kind == "round.failed":
            self.failed += 1
            self.deadline = 0.0
        elif kind == "round.committed":
            self._committed(line)
        elif kind == "evaluation.failed":
            self.evaluations["failed"] += 1
        else:
            self._of_a_node(kind, line)

    def _of_a_node(self, kind: str, line: dict[str, Any]) -> None:
        if kind == "node.joined":
            if "key" in line:  # journals of the first versions have none
                self.names[line["key"]] = line["node"]
            self._member(line["node"]).version = line.get("version", "")
        elif kind == "node.lost":
            self._member(line["node"]).updates[LOST] += 1
        elif kind == "node.sits_out":
            self._member(line["node"]).sits_out_until = line["until"]
        elif kind == "update.refused":
            reason = line["reason"] if line["reason"] in REASONS else OTHER
            key = (line["node"], reason)
            self.refused[key] = self.refused.get(key, 0) + 1
            self._member(line["node"]).updates[REFUSED] += 1

    def _member(self, node: str) -> NodeFacts:
        return self.members.setdefault(node, NodeFacts())

    def _cut(self, last: int) -> None:
        """Forget the figures of rounds after ``last``: they are trained again."""
        self.loss_history = [point for point in self.loss_history if point[0] <= last]
        for member in self.members.values():
            member.policy_losses = [p for p in member.policy_losses if p[0] <= last]
        history, self.best_loss, self.since_best = self.loss_history, None, 0
        for _, loss in history:
            self._evaluated(loss)

    @property
    def open(self) -> bool:
        """Whether its journal says that it goes on."""
        return self.state in ("starting", "running")

    @property
    def flower(self) -> str:
        """What Flower calls it; the same as its own name unless it was gone on with."""
        return self.flower_run or self.run

    def end(self, state: str, message: str) -> None:
        """It ended without a last line of its own: its ServerApp died or was stopped."""
        self.state, self.message, self.deadline = state, message, 0.0
        self.interrupted = state == "failed"

    def _committed(self, line: dict[str, Any]) -> None:
        self.round, self.last_commit, self.deadline = line["round"], line["time"], 0.0
        if line["round"]:
            self.committed += 1
            self.answered = len(line["nodes"])
            self.train_loss = line["train_loss"]
            self.bytes_up += line["bytes_up"]
            self.bytes_down += line["bytes_down"]
            self.phases = line["seconds"]
            for node in line["nodes"]:
                self.nodes[node["node"]] = node
                self._took_part(line["round"], node)
        evaluation = line["evaluation"]
        if evaluation:
            self.policy_loss = evaluation["loss"]
            self.evaluations["done"] += 1
            if evaluation["loss"] is not None:
                self.loss_history.append((line["round"], evaluation["loss"]))
                self._evaluated(evaluation["loss"])
            for dataset in evaluation["datasets"]:
                if dataset["loss"] is not None:
                    self.losses[dataset["name"]] = dataset["loss"]
                if dataset["success"] is not None:
                    self.success[dataset["name"]] = dataset["success"]
            if not line["round"]:
                self.baseline = dict(self.losses)

    def _evaluated(self, loss: float) -> None:
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.since_best = loss, 0
        else:
            self.since_best += 1

    def _took_part(self, number: int, node: dict[str, Any]) -> None:
        member = self._member(node["node"])
        member.last = node
        member.updates[ACCEPTED] += 1
        member.bytes_up += node.get("bytes_up", 0)
        member.bytes_down += node.get("bytes_down", 0)
        member.steps += node.get("steps", 0)
        member.samples += node.get("samples", 0)
        member.policy_losses.append((number, node["policy_loss"]))

    def summary(self) -> dict[str, Any]:
        """What ``status --json`` tells of a run."""
        return {
            "run": self.run,
            "state": self.state,
            "round": self.round,
            "rounds": self.rounds,
            "policy_loss": self.policy_loss,
            "train_loss": self.train_loss,
            "losses": self.losses,
            "success": self.success,
            "last_commit": self.last_commit or None,
            "message": self.message,
            "resumed": self.resumed,
        }

    def sentence(self) -> str:
        """All of it in one line."""
        if self.state == "stopped":
            return f"run {self.run} was stopped at round {self.round}/{self.rounds}"
        if self.state == "failed":
            return f"run {self.run} failed at round {self.round}: {self.message}"
        parts = [f"round {self.round}/{self.rounds}"]
        loss = self.policy_loss if self.policy_loss is not None else self.train_loss
        if loss is not None:
            parts.append(f"loss {loss:.3f}")
        if self.asked:
            parts.append(f"{self.answered or self.asked} of {self.asked} nodes")
        if self.state == "finished":
            parts.insert(0, "finished")
        return ", ".join(parts)


class NewestRun:
    """Follows the newest run under a folder of runs."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._folder: Path | None = None
        self._tail: JournalTail | None = None
        self._known: set[Path] | None = None
        self.facts: RunFacts | None = None
        #: Lines that were written since the look before. What a run holds that was there at the
        #: first look, or that is looked at once more after another, is old.
        self.fresh: list[dict[str, Any]] = []

    def look(self) -> RunFacts | None:
        """The newest run's facts; ``None`` if there is no run."""
        there = {path.parent for path in self._runs.glob(f"*/{JOURNAL}") if path.is_file()}
        if self._known is None:
            self._known = there
        newest = max(there, key=_begun, default=None)
        old = newest != self._folder and newest in self._known
        if newest != self._folder:
            self._folder = newest
            self._tail = JournalTail(newest) if newest else None
            self.facts = RunFacts(run=newest.name) if newest else None
        self.fresh = []
        if newest is not None and self._tail is not None and self.facts is not None:
            self._known.add(newest)
            lines = self._tail.new_lines()
            for line in lines:
                self.facts.take(line)
            self.fresh = [] if old else lines
        return self.facts


def _begun(folder: Path) -> float:
    """When a run began: its settings are written once. (A stopped run may go on for a minute.)"""
    for name in (CONFIG, JOURNAL):
        try:
            return (folder / name).stat().st_mtime
        except FileNotFoundError:
            continue
    return 0.0
