"""Whether a checkpoint may be called the latest or the best: it must beat what was there before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from zk0d.record.held_out import Change, change, points_of
from zk0d.record.summary import Point, RunSummary

_OTHERWISE = "was evaluated on other data, or was normalized otherwise"


@dataclass(frozen=True)
class Verdict:
    """Yes or no, and why, a sentence each."""

    passed: bool
    reasons: tuple[str, ...]
    judged_by: Literal["coordinator", "nodes"] = "coordinator"  #: on whose recordings


def judge(summary: RunSummary, last: RunSummary | None = None) -> Verdict:
    """Compare a checkpoint with its run's baseline (round 0) and the last release.

    By the losses on the coordinator's own recordings; if it has none, by those of the nodes.

    Parameters
    ----------
    summary
        Of the checkpoint: its newest evaluation must be of its own round.
    last
        Of the release that is the latest now.
    """
    if not summary.has_evaluations and points_of(summary, summary.round):
        return _judge_by_nodes(summary, last)
    points = {point.round: point for point in summary.evaluations}
    mine = points.get(summary.round)
    if mine is None or mine.loss is None:
        return Verdict(False, (f"round {summary.round} was not evaluated on every dataset",))
    verdicts = []
    baseline = points.get(0)
    if summary.round == 0:
        verdicts.append((False, "round 0 is the baseline itself"))
    elif baseline is None or baseline.loss is None:
        verdicts.append((False, "the run has no baseline: round 0 was not evaluated"))
    else:
        verdicts.append(_better(mine, baseline, "the baseline (round 0)"))
    if last is not None:
        theirs = {point.round: point for point in last.evaluations}.get(last.round)
        name = f"the last release (run {last.run}, round {last.round})"
        if last.comparable != summary.comparable:
            verdicts.append((False, f"{name} {_OTHERWISE}: it cannot be compared"))
        elif theirs is None or theirs.loss is None:
            verdicts.append((False, f"{name} was not evaluated"))
        else:
            verdicts.append(_better(mine, theirs, name))
    return Verdict(all(passed for passed, _ in verdicts), tuple(text for _, text in verdicts))


def _judge_by_nodes(summary: RunSummary, last: RunSummary | None) -> Verdict:
    """By each node's own change on the episodes that it holds out."""
    if summary.round == 0:
        return Verdict(False, ("round 0 is the baseline itself",), "nodes")
    mine = points_of(summary, summary.round)
    first = change(points_of(summary, 0), mine)
    name = "the baseline (round 0)"
    if last is None:
        verdicts = [_better_on_nodes(first, name)]
    else:
        release = f"the last release (run {last.run}, round {last.round})"
        if summary.start_from == f"{last.run}/{last.round}":
            # The run began with it: whoever measured round 0 has measured it.
            verdicts = [_better_on_nodes(first, f"{name}, which is {release}")]
        else:
            since = change(points_of(last, last.round), mine)
            verdicts = [_better_on_nodes(first, name), _better_on_nodes(since, release)]
    passed = all(passed for passed, _ in verdicts)
    return Verdict(passed, tuple(text for _, text in verdicts), "nodes")


def _better_on_nodes(found: Change | None, name: str) -> tuple[bool, str]:
    """Lower, on the nodes' own held-out episodes, by more than the spread."""
    if found is None:
        return False, f"no node evaluated both it and {name} on the same held-out episodes"
    episodes = sum(each.episodes for each in found.nodes)
    whose = f"{len(found.nodes)} nodes"
    if len(found.nodes) == 1:
        whose = f"one node alone, {found.nodes[0].node}"
    figures = f"loss {found.after:.4f} against {found.before:.4f} on {whose}"
    if found.spread is None:
        return False, f"one held-out episode has no spread, so {name} is not beaten: {figures}"
    figures += f", {episodes} held-out episodes, spread {found.spread:.4f}"
    if found.mean >= 0:
        return False, f"it is no better than {name}: {figures}"
    if -found.mean <= found.spread:
        return False, f"it beats {name} by less than the nodes' spread: {figures}"
    return True, f"it beats {name}: {figures}"


def _better(mine: Point, other: Point, name: str) -> tuple[bool, str]:
    """Lower by more than the standard error of the mean over datasets of both."""
    assert mine.loss is not None
    assert other.loss is not None
    noise = math.hypot(_spread(mine), _spread(other))
    gain = other.loss - mine.loss
    figures = f"loss {mine.loss:.4f} against {other.loss:.4f}, spread {noise:.4f}"
    if gain <= 0:
        return False, f"it is no better than {name}: {figures}"
    if gain <= noise:
        return False, f"it beats {name} by less than the evaluation's spread: {figures}"
    return True, f"it beats {name}: {figures}"


def _spread(point: Point) -> float:
    """Standard error of the unweighted mean over datasets; independent errors add in squares."""
    known = [spread for spread in point.spreads.values() if spread is not None]
    return math.sqrt(sum(spread**2 for spread in known)) / len(known) if known else 0.0
