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
from zk0d.record.state import ACCEPTED, RunState

REFRESH_SECONDS = 30
WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 20, 40  #: room around the chart's lines
MOST_POINTS = 400
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
        chart=_chart(run) if run else None,
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


@dataclass(frozen=True)
class _Chart:
    """Held-out loss by round, in SVG's coordinates: no script draws it, so any browser shows it."""

    line: list[tuple[float, float]]
    levels: list[tuple[float, str]]  #: y, and the loss there
    rounds: list[tuple[float, int]]  #: x, and the round there
    start: float  #: y of the loss before training
    words: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT


def _chart(run: RunState) -> _Chart | None:
    points = thinned(list(run.evaluated.items()))
    if len(points) < 2:
        return None
    last = max(run.wanted, points[-1][0], 1)
    values = [loss for _, loss in points]
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = max(0.0, low - room), high + room

    def x(round_: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * round_ / last, 1)

    def y(loss: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low), 1)

    levels = [low + (high - low) * step / 4 for step in range(5)]
    begin, end = points[0], points[-1]
    return _Chart(
        line=[(x(number), y(loss)) for number, loss in points],
        levels=[(y(loss), f"{loss:.3g}") for loss in levels],
        rounds=[(x(n), n) for n in sorted({0, last // 4, last // 2, 3 * last // 4, last})],
        start=y(begin[1]),
        words=f"Loss on held-out recordings from {begin[1]:.4g} in round {begin[0]} to"
        f" {end[1]:.4g} in round {end[0]}; dashed: before training.",
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most :data:`MOST_POINTS` of them, with the first and the last."""
    step = -(-len(points) // MOST_POINTS)
    if step <= 1:
        return list(points)
    return [*points[:-1:step], points[-1]]


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
