from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import pytest

from zk0d.config.run import RunSettings
from zk0d.record.summary import Point, RoundPoint, RunSummary
from zk0d.release.gate import judge


def summary(
    *losses: float | None,
    spread: float = 0.01,
    run: str = "7",
    settings: Mapping[str, object] = {},
) -> RunSummary:
    """A run with one evaluation per round, from round 0 on."""
    return RunSummary(
        run=run,
        round=len(losses) - 1,
        began="2026-01-01T00:00:00Z",
        settings={**RunSettings().to_flat(), **settings},
        versions={"zk0d": "0.1.0", "lerobot": version("lerobot")},
        evaluations=tuple(
            Point(round=n, loss=loss, losses={"a": loss}, spreads={"a": spread})
            for n, loss in enumerate(losses)
        ),
        rounds=tuple(
            RoundPoint(
                round=n,
                nodes=2,
                train_loss=1.0,
                learning_rate=1e-4,
                proximal_mu=0.0,
                update_norm=1.0,
            )
            for n in range(1, len(losses))
        ),
        nodes=(),
        refused={},
        lost=0,
    )


@pytest.mark.parametrize(
    ("losses", "passed", "says"),
    [
        ((1.0, 0.5), True, "it beats the baseline (round 0): loss 0.5000 against 1.0000"),
        ((1.0, 1.2), False, "it is no better than the baseline"),
        ((1.0, 0.99), False, "by less than the evaluation's spread"),  # sqrt(2) * 0.01 is more
        ((1.0, None), False, "round 1 was not evaluated on every dataset"),
        ((None, 0.5), False, "the run has no baseline"),
        ((1.0,), False, "round 0 is the baseline itself"),
    ],
)
def test_against_the_baseline(losses: tuple[float | None, ...], passed: bool, says: str) -> None:
    verdict = judge(summary(*losses))
    assert verdict.passed is passed
    assert says in " ".join(verdict.reasons)


@pytest.mark.parametrize(
    ("last", "passed", "says"),
    [
        (summary(1.0, 0.8, run="6"), True, "it beats the last release (run 6, round 1)"),
        (summary(1.0, 0.4, run="6"), False, "it is no better than the last release"),
        (summary(1.0, 0.8, run="6", settings={"seed": 1}), False, "was evaluated on other data"),
        (
            summary(1.0, 0.8, run="6", settings={"normalize-by": "node"}),
            False,
            "or was normalized otherwise",
        ),
    ],
)
def test_against_the_last_release(last: RunSummary, passed: bool, says: str) -> None:
    verdict = judge(summary(1.0, 0.5), last)
    assert verdict.passed is passed
    assert says in " ".join(verdict.reasons)
