"""What the demo leaves behind: a table, ``summary.json`` and a chart."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table

from zk0d.demo.comparison import Outcome
from zk0d.demo.layout import Contributor
from zk0d.record.events import RoundCommitted
from zk0d.record.journal import read_journal

FEDERATED = "federated"
#: Without drift correction and without the server's momentum.
PLAIN = "plain averaging"
SCHEMA_VERSION = 1


def table(outcomes: Iterable[Outcome], contributors: list[Contributor], episodes: int) -> Table:
    """Success by policy and region."""
    made = Table(title=f"success in closed loop, {episodes} held-out episodes per region")
    made.add_column("policy")
    made.add_column("optimizer steps", justify="right")
    for contributor in contributors:
        made.add_column(f"region {contributor.title}", justify="right")
    for outcome in outcomes:
        style = "bold green" if outcome.title == FEDERATED else None
        made.add_row(
            outcome.title,
            str(outcome.steps),
            *(f"{success:.2f}" for success in outcome.success),
            style=style,
        )
    return made


def write_summary(
    path: Path,
    outcomes: Iterable[Outcome],
    contributors: list[Contributor],
    episodes: int,
    facts: dict[str, Any],
) -> None:
    """The table and the run's facts as JSON."""
    content = {
        "schema_version": SCHEMA_VERSION,
        **facts,
        "episodes_per_region": episodes,
        "success": {
            outcome.title: {
                "optimizer_steps": outcome.steps,
                **{
                    f"region_{contributor.letter}": success
                    for contributor, success in zip(contributors, outcome.success, strict=True)
                },
            }
            for outcome in outcomes
        },
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def draw_chart(
    path: Path, run: Path, outcomes: list[Outcome], contributors: list[Contributor]
) -> None:
    """Held-out loss by round beside the success of each policy, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    committed = [event for event in read_journal(run) if isinstance(event, RoundCommitted)]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for contributor in contributors:
        points = [
            (event.round, dataset.loss)
            for event in committed
            for dataset in (event.evaluation.datasets if event.evaluation else ())
            if dataset.name == contributor.letter and dataset.loss is not None
        ]
        if points:
            left.plot(*zip(*points, strict=True), marker="o", label=f"region {contributor.title}")
    trained = [(e.round, e.train_loss) for e in committed if e.train_loss is not None]
    if trained:
        left.plot(*zip(*trained, strict=True), ls=":", color="gray", label="training, all nodes")
    left.set(xlabel="round", ylabel="loss", title="Policy loss on held-out episodes")
    left.set_yscale("log")
    left.legend()
    width = 0.8 / len(contributors)
    for number, contributor in enumerate(contributors):
        places = [
            row + (number - (len(contributors) - 1) / 2) * width for row in range(len(outcomes))
        ]
        values = [outcome.success[number] for outcome in outcomes]
        bars = right.bar(places, values, width, label=f"region {contributor.title}")
        if len(contributors) <= 3:
            right.bar_label(bars, fmt="%.2f", fontsize=8)
    labels = [textwrap.fill(outcome.title, 12) for outcome in outcomes]
    right.set_xticks(range(len(outcomes)), labels, fontsize=8)
    right.set(ylim=(0, 1.25), ylabel="success", title="Success in closed loop")
    right.legend(loc="upper right", ncols=len(contributors))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
