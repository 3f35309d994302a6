"""A run read from its journal, also one that died."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from zk0d.errors import ConfigError
from zk0d.record.events import EvaluationFailed, RoundCommitted, RoundFailed
from zk0d.record.held_out import change_of
from zk0d.record.journal import settings_of
from zk0d.record.state import RunState
from zk0d.record.summary import RunSummary, summary_of


@dataclass(frozen=True)
class Analysis:
    """The figures of a run, by round."""

    state: RunState
    run: RunSummary

    @property
    def outcome(self) -> str:
        """``finished``, ``failed`` or ``unfinished``."""
        return self.state.phase if self.state.phase in ("finished", "failed") else "unfinished"

    @cached_property
    def losses(self) -> dict[str, dict[int, float]]:
        """The nodes' training loss: by node, then by round."""
        found: dict[str, dict[int, float]] = {}
        for number, losses in sorted(self.state.losses.items()):
            for node, loss in losses.items():
                found.setdefault(node, {})[number] = loss
        return found

    @cached_property
    def on_nodes(self) -> dict[str, dict[int, float]]:
        """Loss on the episodes that nodes hold out: by node, then by round of the weights."""
        found: dict[str, dict[int, float]] = {}
        for number, event in sorted(self.state.rounds.items()):
            for node in event.nodes:
                if node.holdout_loss is not None and not node.staleness:
                    found.setdefault(node.node, {})[number - 1] = node.holdout_loss
        for number, measured in self.state.measured.items():
            for each in measured.values():
                if each.loss is not None:
                    found.setdefault(each.node, {})[number] = each.loss
        return found

    @cached_property
    def success(self) -> dict[str, dict[int, float]]:
        """In closed loop, 0 to 1: by dataset, then by round."""
        found: dict[str, dict[int, float]] = {}
        for number, event in sorted(self.state.rounds.items()):
            for dataset in event.evaluation.datasets if event.evaluation else ():
                if dataset.success is not None:
                    found.setdefault(dataset.name, {})[number] = dataset.success
        return found

    @cached_property
    def agreement(self) -> dict[str, dict[int, float]]:
        """How much updates pull the same way: of all, and each with the combined one, by round."""
        found: dict[str, dict[int, float]] = {}
        for number, event in sorted(self.state.rounds.items()):
            cosines = [(node.node, node.agreement) for node in event.nodes]
            for name, value in [("all", event.agreement), *cosines]:
                if value is not None:
                    found.setdefault(name, {})[number] = value
        return found

    @cached_property
    def steps(self) -> dict[str, dict[int, float]]:
        """Optimizer steps that nodes had time for: by node, then by round."""
        found: dict[str, dict[int, float]] = {}
        if self.run.settings.get("round-minutes"):
            for number, event in sorted(self.state.rounds.items()):
                for node in event.nodes:
                    found.setdefault(node.node, {})[number] = node.steps
        return found

    @property
    def seconds(self) -> dict[int, dict[str, float]]:
        """Seconds by phase."""
        return {n: e.seconds for n, e in sorted(self.state.rounds.items()) if e.seconds}

    @property
    def traffic(self) -> dict[int, tuple[int, int]]:
        """Payload bytes: up, down."""
        return {n: (e.bytes_up, e.bytes_down) for n, e in sorted(self.state.rounds.items()) if n}

    @property
    def evaluated(self) -> dict[int, float]:
        """Policy loss by round, where it was measured."""
        return self.state.evaluated

    @property
    def best(self) -> tuple[int, float] | None:
        """Round and policy loss of the best evaluation."""
        return self.state.best

    def summary(self) -> str:
        """The run in a sentence or two."""
        rounds, nodes = len(self.run.rounds), len(self.losses)
        text = f"Run {self.run.run} {self.outcome}: {rounds} rounds with {nodes} nodes."
        measured = self.evaluated
        if self.best and 0 in measured and len(measured) > 1:
            last = measured[max(measured)]
            text += (
                f" Policy loss {measured[0]:.4f} before, {last:.4f} after, best {self.best[1]:.4f}"
                f" in round {self.best[0]}."
            )
        return text + self._nodes_say() + (f" {self.state.message}" if self.state.message else "")

    def _nodes_say(self) -> str:
        """How the policy changed on the episodes that nodes hold out."""
        found = change_of(self.run)
        if found is None:
            return ""
        spread = "" if found.spread is None else f", spread {found.spread:.4f}"
        whose = "one node" if len(found.nodes) == 1 else f"{len(found.nodes)} nodes"
        return (
            f" On the held-out episodes of {whose} the loss went from {found.before:.4f} to"
            f" {found.after:.4f}{spread}."
        )


def analyse(folder: Path) -> Analysis:
    """Read the run in ``folder``.

    Raises
    ------
    ConfigError
        If there is no run.
    """
    settings = settings_of(folder)
    state = RunState.read(folder)
    if not state.began:
        raise ConfigError(f"{folder}: the journal is empty, so it cannot be reported.")
    return Analysis(state, summary_of(state, state.round, settings))


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
#: Mean cosine of two updates. On SoReach it is 0.5 and more if recordings are alike, and 0.1 or
#: less in late rounds if each node has a region of its own.
APART = 0.25


def findings(analysis: Analysis) -> list[Finding]:
    """What every rule finds."""
    return [found for rule in RULES for found in rule(analysis)]


def dropouts(analysis: Analysis) -> list[Finding]:
    """Nodes that took part and then no more for two rounds or longer."""
    last = max((point.round for point in analysis.run.rounds), default=0)
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
    none = [str(point.round) for point in analysis.run.evaluations if point.loss is None]
    none += [str(e.round) for e in analysis.state.failures if isinstance(e, EvaluationFailed)]
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
            "a lower initial-lr, fewer local-steps, server-momentum=0.5, or rollback-factor=1.5",
        )
    ]


def apart(analysis: Analysis) -> list[Finding]:
    """Updates that have little in common, or cancel although they are corrected."""
    events = [event for _, event in sorted(analysis.state.rounds.items())]
    late = [e for e in events if e.agreement is not None and len(e.nodes) > 1]
    late = late[len(late) // 2 :]
    if not late:
        return []
    corrected = analysis.state.settings.get("drift-correction", "none") != "none"
    if statistics.fmean(map(_alike, late)) >= (0.0 if corrected else APART):
        return []
    nodes = statistics.fmean(len(event.nodes) for event in late)
    agreement = statistics.fmean(event.agreement or 0.0 for event in late)
    better = "fewer local-steps and a lower initial-lr"
    if not corrected:
        better = "drift-correction=control-variates, or fewer local-steps"
    return [
        Finding(
            "apart",
            f"the updates of rounds {late[0].round} to {late[-1].round} agree to {agreement:.2f};"
            f" {nodes:.0f} updates with nothing in common agree to {nodes**-0.5:.2f}",
            f"the nodes pull the weights apart: {better}",
        )
    ]


def _alike(event: RoundCommitted) -> float:
    """The mean cosine of two of a round's updates, if all have the same norm.

    Then agreement a of n updates is |sum| / n norms, so n a^2 = 1 + (n - 1) cosine.
    """
    count, agreement = len(event.nodes), event.agreement or 0.0
    return (count * agreement**2 - 1) / (count - 1)


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
    for event in analysis.state.refusals:
        by_node.setdefault(event.node, []).append(event.reason)
    return [
        Finding(
            "refused",
            f"{len(reasons)} updates of {name} were refused ({', '.join(sorted(set(reasons)))})",
            "the journal's update.refused lines say why; zk0bot node show gives its contact",
        )
        for name, reasons in sorted(by_node.items())
    ]


def no_progress(analysis: Analysis) -> list[Finding]:
    """Rounds that failed for want of updates."""
    failed = [str(e.round) for e in analysis.state.failures if isinstance(e, RoundFailed)]
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
        if other.run.comparable != first.run.comparable:
            raise ConfigError(
                f"runs {first.run.run} and {other.run.run} were not evaluated on the same"
                " datasets, frames and seed, so their losses cannot be compared."
            )
        mine, theirs = first.best, other.best
        if mine is None or theirs is None:
            said.append(f"run {other.run.run}: one of the two was not evaluated")
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
            f"run {other.run.run} against {first.run.run}: best {theirs[1]:.4f} against"
            f" {mine[1]:.4f}, spread {noise:.4f}: {word}"
        )
    return said


def _spread(analysis: Analysis, number: int) -> float:
    """The largest standard error of that round's losses."""
    point = next(p for p in analysis.run.evaluations if p.round == number)
    return max((s for s in point.spreads.values() if s is not None), default=0.0)
