from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

import pytest

from zk0d.config.run import RunSettings
from zk0d.record.summary import NodePoint, Point, RoundPoint, RunSummary
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


def found(number: int, *losses: float, node: str = "ann", mark: str = "a") -> NodePoint:
    """What a node found of the weights after a round: the same loss on each of two episodes."""
    mean = sum(losses) / len(losses)
    return NodePoint(round=number, node=node, loss=mean, frames=20, losses=tuple(losses), mark=mark)


def by_nodes(*points: NodePoint, run: str = "7", start_from: str = "") -> RunSummary:
    """A run of two rounds whose coordinator evaluates nothing."""
    made = summary(None, None, None, run=run)
    return made.model_copy(update={"evaluations": (), "measured": points, "start_from": start_from})


GAINED = (found(0, 1.0, 2.0), found(2, 0.8, 1.81))


@pytest.mark.parametrize(
    ("points", "passed", "says"),
    [
        (GAINED, True, "it beats the baseline (round 0): loss 1.3050 against 1.5000 on one node"),
        (
            (*GAINED, found(0, 1.0, 1.1, node="bo"), found(2, 0.8, 0.89, node="bo")),
            True,
            "on 2 nodes, 4 held-out episodes, spread 0.00",
        ),
        (
            (*GAINED, found(0, 1.0, 1.1, node="bo"), found(2, 1.0, 1.1, node="bo")),
            False,
            "less than the nodes' spread",
        ),
        ((found(0, 1.0, 2.0), found(2, 1.1, 2.1)), False, "it is no better than the baseline"),
        ((found(0, 1.0), found(2, 0.5)), False, "one held-out episode has no spread"),
        ((found(2, 0.5, 0.5),), False, "no node evaluated both it and the baseline (round 0)"),
        (
            (found(0, 1.0, 2.0), found(2, 0.8, 1.8, mark="b")),
            False,
            "no node evaluated both it and the baseline (round 0)",
        ),
    ],
)
def test_by_the_nodes_where_the_coordinator_has_no_recordings(
    points: tuple[NodePoint, ...], passed: bool, says: str
) -> None:
    verdict = judge(by_nodes(*points))
    assert verdict.passed is passed
    assert verdict.judged_by == "nodes"
    assert says in " ".join(verdict.reasons)


def test_nodes_do_not_overrule_the_coordinators_recordings() -> None:
    beside = {"measured": (found(0, 1.0, 2.0), found(1, 0.5, 1.5))}
    verdict = judge(summary(1.0, 1.2).model_copy(update=beside))
    assert not verdict.passed
    assert verdict.judged_by == "coordinator"


@pytest.mark.parametrize(
    ("last", "start_from", "passed", "says"),
    [
        (by_nodes(found(2, 0.9, 1.9), run="6"), "", True, "it beats the last release (run 6"),
        (by_nodes(found(2, 0.7, 1.7), run="6"), "", False, "no better than the last release"),
        (
            by_nodes(found(2, 0.9, 1.9, mark="b"), run="6"),
            "",
            False,
            "no node evaluated both it and the last release (run 6, round 2)",
        ),
        (
            by_nodes(found(2, 0.9, 1.9, mark="b"), run="6"),
            "6/2",
            True,
            "it beats the baseline (round 0), which is the last release (run 6, round 2)",
        ),
    ],
)
def test_nodes_compare_with_the_last_release_if_they_know_it(
    last: RunSummary, start_from: str, passed: bool, says: str
) -> None:
    """A run that began with it has it as its round 0."""
    verdict = judge(by_nodes(*GAINED, start_from=start_from), last)
    assert verdict.passed is passed
    assert says in " ".join(verdict.reasons)
