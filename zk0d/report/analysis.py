"""A run read from its journal, also one that died."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zk0d.errors import ConfigError
from zk0d.federation.history import History, settings_of
from zk0d.federation.journal import read_journal
from zk0d.federation.story import Story, story_of


@dataclass
class Analysis:
    """The figures of a run, by round.

    Attributes
    ----------
    state
        ``finished``, ``failed`` or ``unfinished``.
    losses
        The nodes' training loss: by node, then by round.
    success
        In closed loop, 0 to 1: by dataset, then by round.
    lost, refused, failed
        Journal lines: answers that did not come, updates that were refused, rounds that failed.
    """

    story: Story
    state: str
    message: str
    losses: dict[str, dict[int, float]] = field(default_factory=dict)
    success: dict[str, dict[int, float]] = field(default_factory=dict)
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)
    traffic: dict[int, tuple[int, int]] = field(default_factory=dict)
    lost: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def evaluated(self) -> dict[int, float]:
        """Policy loss by round, where it was measured."""
        return {p.round: p.loss for p in self.story.evaluations if p.loss is not None}

    @property
    def best(self) -> tuple[int, float] | None:
        """Round and policy loss of the best evaluation."""
        measured = self.evaluated
        return min(measured.items(), key=lambda item: item[1]) if measured else None

    def summary(self) -> str:
        """The run in a sentence or two."""
        rounds, nodes = len(self.story.rounds), len(self.losses)
        text = f"Run {self.story.run} {self.state}: {rounds} rounds with {nodes} nodes."
        measured = self.evaluated
        if self.best and 0 in measured and len(measured) > 1:
            last = measured[max(measured)]
            text += (
                f" Policy loss {measured[0]:.4f} before, {last:.4f} after, best {self.best[1]:.4f}"
                f" in round {self.best[0]}."
            )
        return text + (f" {self.message}" if self.message else "")


def analyse(folder: Path) -> Analysis:
    """Read the run in ``folder``.

    Raises
    ------
    ConfigError
        If there is no run.
    """
    settings = settings_of(folder)
    history = History.read(folder)
    lines = list(read_journal(folder))
    if not lines:
        raise ConfigError(f"{folder}: the journal is empty, so there is nothing to report.")
    last_round = max(history.rounds, default=0)
    state, message = "unfinished", ""
    for line in lines:
        if line["kind"] == "run.finished":
            state, message = "finished", ""
        elif line["kind"] == "run.failed":
            state, message = "failed", line["message"]
        elif line["kind"] == "run.resumed":
            state, message = "unfinished", ""
    analysis = Analysis(
        story_of(history, lines[0]["run"], last_round, settings),
        state,
        message,
        lost=[line for line in lines if line["kind"] == "node.lost"],
        refused=history.refused,
        failed=[line for line in lines if line["kind"] in ("round.failed", "evaluation.failed")],
    )
    for number, line in sorted(history.rounds.items()):
        for node in line.get("nodes") or []:
            analysis.losses.setdefault(node["node"], {})[number] = node["policy_loss"]
        for dataset in (line["evaluation"] or {}).get("datasets", []):
            if dataset.get("success") is not None:
                analysis.success.setdefault(dataset["name"], {})[number] = dataset["success"]
        if line.get("seconds"):
            analysis.seconds[number] = line["seconds"]
        if number:
            analysis.traffic[number] = (line.get("bytes_up") or 0, line.get("bytes_down") or 0)
    return analysis


@dataclass(frozen=True)
class Finding:
    """Something odd, by which evidence, and what to try."""

    rule: str
    evidence: str
    proposal: str


#: Evaluations without a better one until a run counts as stalled.
STALL = 5
FAR_OFF = 2.0  #: times the median of the others
WORSE = 1.2  #: times the best loss
APART = 2.0  #: times the nodes' own loss


def findings(analysis: Analysis) -> list[Finding]:
    """What every rule finds."""
    return [found for rule in RULES for found in rule(analysis)]


def dropouts(analysis: Analysis) -> list[Finding]:
    """Nodes that took part and then no more for two rounds or longer."""
    last = max((point.round for point in analysis.story.rounds), default=0)
    return [
        Finding(
            "dropout",
            f"{name} took part last in round {max(rounds)} of {last}",
            "look at its machine (zk0bot status there); round-deadline may be too short for it",
        )
        for name, rounds in sorted(analysis.losses.items())
        if last - max(rounds) >= 2
    ]


def missing(analysis: Analysis) -> list[Finding]:
    """Evaluations that failed, or gave no loss."""
    none = [str(point.round) for point in analysis.story.evaluations if point.loss is None]
    none += [str(line["round"]) for line in analysis.failed if line["kind"] == "evaluation.failed"]
    if not none:
        return []
    return [
        Finding(
            "missing",
            f"no policy loss in round {', '.join(none[:10])}",
            "look at the evaluator: journalctl -u zk0d-evaluator",
        )
    ]


def stalled(analysis: Analysis) -> list[Finding]:
    """No better evaluation for long."""
    measured, best = analysis.evaluated, analysis.best
    if best is None:
        return []
    since = [number for number in measured if number > best[0]]
    if len(since) < STALL:
        return []
    return [
        Finding(
            "stalled",
            f"round {best[0]} is the best; {len(since)} evaluations since were no better",
            "scheduler-type=reduce-on-plateau, a lower initial-lr, or early-stopping-patience",
        )
    ]


def diverged(analysis: Analysis) -> list[Finding]:
    """Worse at the end than at its best, or than before the first round."""
    measured, best = analysis.evaluated, analysis.best
    if best is None or len(measured) < 2:
        return []
    last = measured[max(measured)]
    if 0 in measured and last > measured[0]:
        worse = f"policy loss {last:.4f} is worse than the baseline's {measured[0]:.4f}"
    elif last > WORSE * best[1]:
        worse = f"policy loss {last:.4f} is far from the best, {best[1]:.4f} in round {best[0]}"
    else:
        return []
    return [
        Finding(
            "diverged",
            worse,
            "a lower initial-lr, fewer local-steps, server-momentum=0.5 if it is another, or"
            " rollback-factor=1.5",
        )
    ]


def apart(analysis: Analysis) -> list[Finding]:
    """Averaged weights that are far worse than what each node has trained."""
    last = max(analysis.evaluated, default=0)
    trained = [losses[last] for losses in analysis.losses.values() if last in losses]
    if len(trained) < 2 or analysis.evaluated[last] <= APART * statistics.fmean(trained):
        return []
    return [
        Finding(
            "apart",
            f"policy loss {analysis.evaluated[last]:.4f} in round {last}, where the nodes' training"
            f" loss is {statistics.fmean(trained):.4f}",
            "nodes may pull the weights apart: fewer local-steps and server-momentum=0.5; or they"
            " know their recordings by heart: more recordings",
        )
    ]


def far_off(analysis: Analysis) -> list[Finding]:
    """A node whose training loss is far above the others'."""
    means = {name: statistics.fmean(losses.values()) for name, losses in analysis.losses.items()}
    found = []
    for name, mean in sorted(means.items()):
        others = [value for other, value in means.items() if other != name]
        if len(others) >= 2 and mean > FAR_OFF * statistics.median(others):
            found.append(
                Finding(
                    "far-off",
                    f"{name}'s training loss is {mean:.4f}, the others' median"
                    f" {statistics.median(others):.4f}",
                    "zk0bot data check on its recordings; aggregation=trimmed-mean bounds what one"
                    " node can do",
                )
            )
    return found


def refusals(analysis: Analysis) -> list[Finding]:
    """Updates that were refused."""
    by_node: dict[str, list[str]] = {}
    for line in analysis.refused:
        by_node.setdefault(line["node"], []).append(line["reason"])
    return [
        Finding(
            "refused",
            f"{len(reasons)} updates of {name} were refused ({', '.join(sorted(set(reasons)))})",
            "the journal's update.refused lines say why; zk0bot node list tells its contact",
        )
        for name, reasons in sorted(by_node.items())
    ]


def no_progress(analysis: Analysis) -> list[Finding]:
    """Rounds that failed for want of updates."""
    failed = [str(line["round"]) for line in analysis.failed if line["kind"] == "round.failed"]
    if not failed:
        return []
    return [
        Finding(
            "no-progress",
            f"round {', '.join(failed[:10])} failed: too few updates came",
            "a longer round-deadline, or a lower min-fit-clients",
        )
    ]


RULES = (dropouts, missing, stalled, diverged, apart, far_off, refusals, no_progress)


def compare(runs: list[Analysis]) -> list[str]:
    """The runs beside the first: a sentence each.

    Raises
    ------
    ConfigError
        If one was evaluated otherwise than the first.
    """
    first, *others = runs
    said = []
    for other in others:
        if other.story.comparable != first.story.comparable:
            raise ConfigError(
                f"runs {first.story.run} and {other.story.run} were not evaluated on the same"
                " datasets, frames and seed, so their losses cannot be compared."
            )
        mine, theirs = first.best, other.best
        if mine is None or theirs is None:
            said.append(f"run {other.story.run}: one of the two was not evaluated")
            continue
        noise = _spread(first, mine[0]) + _spread(other, theirs[0])
        gain = mine[1] - theirs[1]
        word = (
            "no difference beyond noise"
            if abs(gain) <= noise
            else "better"
            if gain > 0
            else "worse"
        )
        said.append(
            f"run {other.story.run} against {first.story.run}: best {theirs[1]:.4f} against"
            f" {mine[1]:.4f}, spread {noise:.4f}: {word}"
        )
    return said


def _spread(analysis: Analysis, number: int) -> float:
    """The largest standard error of that round's losses."""
    point = next(p for p in analysis.story.evaluations if p.round == number)
    return max((s for s in point.spreads.values() if s is not None), default=0.0)
