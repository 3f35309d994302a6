"""What is known of a run, gathered from its journal: for status lines, pages and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.federation.journal import CONFIG, JOURNAL, JournalTail

#: Ends of a run that are nobody's decision and may pass: it can go on where it was.
_PASSING = {"disk_full", "learner_gone", "learner_silent", "try_again"}


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
    message: str = ""  #: why it failed
    interrupted: bool = False  #: it failed of something that was not its own
    flower_run: str = ""  #: what Flower calls it now, if it was gone on with
    resumed: int = 0  #: times that it was gone on with

    def take(self, line: dict[str, Any]) -> None:
        """Read one line."""
        kind = line["kind"]
        if kind == "run.started":
            self.run, self.rounds = line["run"], line["settings"]["num-server-rounds"]
            self.state = "running"
        elif kind == "run.finished":
            self.state = "finished"
        elif kind == "run.failed":
            self.state, self.message = "failed", line["message"]
            self.interrupted = line["reason"] in _PASSING
        elif kind == "run.resumed":
            self.state, self.message, self.interrupted = "running", "", False
            self.round, self.flower_run = line["round"], line["flower_run"]
            self.resumed += 1
        elif kind == "round.started":
            self.asked = len(line["nodes"])
            self.learning_rate, self.proximal_mu = line["learning_rate"], line["proximal_mu"]
        elif kind == "update.refused":
            key = (line["node"], line["reason"])
            self.refused[key] = self.refused.get(key, 0) + 1
        elif kind == "round.failed":
            self.failed += 1
        elif kind == "round.committed":
            self._committed(line)

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
        self.state, self.message = state, message
        self.interrupted = state == "failed"

    def _committed(self, line: dict[str, Any]) -> None:
        self.round, self.last_commit = line["round"], line["time"]
        if line["round"]:
            self.committed += 1
            self.answered = len(line["nodes"])
            self.train_loss = line["train_loss"]
            self.bytes_up += line["bytes_up"]
            self.bytes_down += line["bytes_down"]
            self.phases = line["seconds"]
            for node in line["nodes"]:
                self.nodes[node["node"]] = node
        evaluation = line["evaluation"]
        if evaluation:
            self.policy_loss = evaluation["loss"]
            for dataset in evaluation["datasets"]:
                if dataset["loss"] is not None:
                    self.losses[dataset["name"]] = dataset["loss"]
                if dataset["success"] is not None:
                    self.success[dataset["name"]] = dataset["success"]

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
        self.facts: RunFacts | None = None
        self.fresh: list[dict[str, Any]] = []  #: lines that the last look read

    def look(self) -> RunFacts | None:
        """The newest run's facts; ``None`` if there is no run."""
        newest = self._newest()
        if newest != self._folder:
            self._folder = newest
            self._tail = JournalTail(newest) if newest else None
            self.facts = RunFacts(run=newest.name) if newest else None
        self.fresh = []
        if self._tail is not None and self.facts is not None:
            self.fresh = self._tail.new_lines()
            for line in self.fresh:
                self.facts.take(line)
        return self.facts

    def _newest(self) -> Path | None:
        folders = [path.parent for path in self._runs.glob(f"*/{JOURNAL}") if path.is_file()]
        return max(folders, key=_begun) if folders else None


def _begun(folder: Path) -> float:
    """When a run began: its settings are written once. (A stopped run may go on for a minute.)"""
    for name in (CONFIG, JOURNAL):
        try:
            return (folder / name).stat().st_mtime
        except FileNotFoundError:
            continue
    return 0.0
