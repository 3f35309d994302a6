"""The coordinator's page for people: run, round, loss and participation. Read only, no script.

Off by default (``gateway.status-page``): it shows every node's alias to whoever asks. It is one
document: its style is in it, its chart is SVG in it, and a browser is told to load nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from zk0d.federation.nodes import Node
from zk0d.record.state import ACCEPTED, RunState

REFRESH_SECONDS = 30
WIDTH, HEIGHT = 640, 280
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 20, 40  #: room around the chart's lines
MOST_POINTS = 400
MOST_NODES = 200

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0;
  --good: #1a7f37; --bad: #cf222e; --accent: #0969da; --ground: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d;
  --good: #3fb950; --bad: #f85149; --accent: #4493f8; --ground: #0d1117; --card: #151b23; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.25rem 1rem 3rem; color: var(--ink);
  background: var(--ground); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: 0; }
.soft { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem;
  margin: 1.25rem 0 0; }
dl div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; background: var(--card);
  border: 1px solid var(--line); border-radius: .5rem; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
.grid { stroke: var(--line); } .loss { stroke: var(--accent); fill: none; stroke-width: 2.5; }
.point { fill: var(--accent); } .start { stroke: var(--soft); stroke-dasharray: 5 5; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .4rem .6rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
progress { width: 6rem; height: .6rem; accent-color: var(--accent); }
@media (max-width: 34rem) { .bar { display: none; } svg text { font-size: 22px; }
  .loss { stroke-width: 4; } th, td { padding: .4rem .35rem; } }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: Sent with the page: nothing is loaded, framed or run.
HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
]


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
    now = time.time() if now is None else now
    parts = _parts(nodes, run)
    body = [_head(parts, run, now)]
    if run is not None:
        body += [_figures(run, parts), _chart(run), _by_dataset(run)]
    body.append(_participation(parts))
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        '<meta name="robots" content="noindex">'
        f"<title>zk0d: {escape(_title(run))}</title><style>{_STYLE}</style></head>\n"
        f"<body>{''.join(body)}</body></html>\n"
    ).encode()


def _title(run: RunState | None) -> str:
    return f"round {run.round} of {run.wanted}" if run else "no run yet"


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


def _head(parts: Sequence[_Part], run: RunState | None, now: float) -> str:
    at = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    online = sum(part.online for part in parts)
    if run is None:
        words = "no run yet"
    else:
        kind = {"running": "good", "finished": "good", "failed": "bad"}.get(run.phase, "soft")
        name, policy = (str(run.settings.get(key, "")) for key in ("model-name", "policy"))
        model = f" · {escape(name)} ({escape(policy)})" if name else ""
        words = f'run {escape(run.run)} · <span class="{kind}">{escape(run.phase)}</span>{model}'
    return (
        f"<h1>zk0d federation</h1><p>{words}</p>"
        f'<p class="soft">{online} of {len(parts)} nodes online · {at}</p>'
    )


def _figures(run: RunState, parts: Sequence[_Part]) -> str:
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
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts
    )
    return f"<dl>{cells}</dl>"


def _chart(run: RunState) -> str:
    """Held-out loss by round as SVG: no script draws it, so every browser shows it."""
    points = thinned(list(run.evaluated.items()))
    heading = "<h2>Held-out loss by round</h2>"
    if len(points) < 2:
        return f'{heading}<p class="soft">There is a line once two rounds were evaluated.</p>'
    last = max(run.wanted, points[-1][0], 1)
    values = [loss for _, loss in points]
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
    low, high = max(0.0, low - room), high + room

    def x(round_: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * round_ / last

    def y(loss: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low)

    drawn = []
    for step in range(5):
        loss = low + (high - low) * step / 4
        drawn.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(loss):.1f}"'
            f' y2="{y(loss):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y(loss) + 5:.1f}" text-anchor="end">{loss:.3g}</text>'
        )
    drawn += [
        f'<text x="{x(round_):.1f}" y="{HEIGHT - 12}" text-anchor="middle">{round_}</text>'
        for round_ in sorted({0, last // 4, last // 2, 3 * last // 4, last})
    ]
    start = points[0][1]
    drawn.append(
        f'<line class="start" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(start):.1f}"'
        f' y2="{y(start):.1f}"/>'
    )
    path = " ".join(f"{x(round_):.1f},{y(loss):.1f}" for round_, loss in points)
    drawn.append(f'<polyline class="loss" points="{path}"/>')
    end = points[-1]
    drawn.append(f'<circle class="point" cx="{x(end[0]):.1f}" cy="{y(end[1]):.1f}" r="4"/>')
    text = (
        f"Loss on held-out recordings from {points[0][1]:.4g} in round {points[0][0]} to"
        f" {end[1]:.4g} in round {end[0]}; dashed: before training."
    )
    return (
        f'{heading}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{text}</title>'
        f"{''.join(drawn)}</svg>"
        f'<p class="soft">{text}</p>'
    )


def _by_dataset(run: RunState) -> str:
    losses, baseline = run.by_dataset("loss"), run.baseline
    if len(losses) < 2:
        return ""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_number(baseline.get(name))}</td>"
        f"<td>{_number(loss)}</td></tr>"
        for name, loss in losses.items()
    )
    return (
        "<h2>By dataset</h2><table><thead><tr><th>Dataset</th><th>Before training</th>"
        f"<th>Now</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _participation(parts: Sequence[_Part]) -> str:
    if not parts:
        return '<h2>Participation</h2><p class="soft">No node may join yet.</p>'
    rows = []
    for part in parts[:MOST_NODES]:
        state = (
            '<span class="good">online</span>'
            if part.online
            else '<span class="soft">offline</span>'
        )
        share = (
            f'<progress max="{part.asked}" value="{part.accepted}">'
            f"{part.accepted} of {part.asked}</progress>"
            if part.asked
            else ""
        )
        rows.append(
            f'<tr><td>{escape(part.alias)}</td><td>{state}</td><td class="bar">{share}</td>'
            f"<td>{part.accepted}</td><td>{part.asked - part.accepted}</td>"
            f"<td>{part.samples:,}</td></tr>"
        )
    more = len(parts) - MOST_NODES
    rest = f'<p class="soft">and {more} more</p>' if more > 0 else ""
    return (
        '<h2>Participation</h2><div class="scroll"><table><thead><tr><th>Node</th><th>Now</th>'
        '<th class="bar">Took part</th><th>Rounds</th><th>Missed</th><th>Frames</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{rest}"
    )


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most :data:`MOST_POINTS` of them, with the first and the last."""
    step = -(-len(points) // MOST_POINTS)
    if step <= 1:
        return list(points)
    return [*points[:-1:step], points[-1]]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
