"""The coordinator's page for people: run, round, loss and participation. Read only, no script.

Off by default (``gateway.status-page``): it shows every node's alias to every visitor. It is one
document: its style is in it, its chart is SVG in it, and a browser is told to load nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zk0d import pages
from zk0d.federation.nodes import Node
from zk0d.pages.chart import LossChart
from zk0d.record.state import ACCEPTED, RunState

REFRESH_SECONDS = 30
MOST_NODES = 200


@dataclass(frozen=True)
class _Part:
    """A node's part in the run."""

    alias: str
    online: bool
    accepted: int
    asked: int
    samples: int


def render(nodes: Iterable[Node], run: RunState | None, now: float | None = None) -> bytes:
    """The whole document.

    Parameters
    ----------
    nodes
        As the SuperLink sees them; only aliases are shown.
    run
        The newest run; ``None`` before the first.
    now
        Seconds since 1970.
    """
    parts = _parts(nodes, run)
    return pages.render(
        "federation",
        run=run,
        nodes=parts,
        most=MOST_NODES,
        at=_utc(time.time() if now is None else now),
        refresh=REFRESH_SECONDS,
        waits_since=_utc(run.waiting.since) if run and run.waiting else "",
        figures=_figures(run, parts) if run else (),
        chart=LossChart.of(run.evaluated, run.wanted, "before training") if run else None,
    ).encode()


def _parts(nodes: Iterable[Node], run: RunState | None) -> list[_Part]:
    """Nodes of the roster, and those of the run that have left it since."""
    online: dict[str, bool] = {}
    for node in nodes:
        name = run.names.get(node.key, node.name) if run else node.name
        online[name] = online.get(name, False) or node.online
    members = run.members if run else {}
    made = []
    for alias in sorted({*online, *members}):
        member = members.get(alias)
        updates = member.updates if member else {}
        made.append(
            _Part(
                alias,
                online.get(alias, False),
                updates.get(ACCEPTED, 0),
                sum(updates.values()),
                member.samples if member else 0,
            )
        )
    return made


def _figures(run: RunState, parts: Sequence[_Part]) -> list[tuple[str, str]]:
    start = next(iter(run.evaluated.values()), None)
    answered = len(run.last.nodes) if run.last else 0
    facts = [
        ("Round", f"{run.round} of {run.wanted}"),
        ("Held-out loss", _number(run.policy_loss)),
        ("Best", _number(run.best[1] if run.best else None)),
        ("Before training", _number(start)),
        ("In the last round", f"{answered} of {run.asked}" if run.asked else "–"),
        ("Frames trained on", f"{sum(part.samples for part in parts):,}"),
    ]
    facts += [
        (f"Success, {task}", f"{ratio:.0%}") for task, ratio in run.by_dataset("success").items()
    ]
    return facts


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
