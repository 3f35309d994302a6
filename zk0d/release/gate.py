"""Whether a checkpoint may be called the latest or the best: it must beat what was there before."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zk0d.record.summary import Point, RunSummary

_OTHERWISE = "was evaluated on other data, or was normalized otherwise"


@dataclass(frozen=True)
class Verdict:
    """Yes or no, and why, a sentence each."""

    passed: bool
    reasons: tuple[str, ...]


def judge(summary: RunSummary, last: RunSummary | None = None) -> Verdict:
    """Compare a checkpoint with its run's baseline (round 0) and the last release.

    Parameters
    ----------
    summary
        Of the checkpoint: its newest evaluation must be of its own round.
    last
        Of the release that is the latest now.
    """
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
