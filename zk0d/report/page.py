"""One HTML page of a run that needs no network: words, charts as SVG, what was odd."""

from __future__ import annotations

import html
import io
from collections.abc import Callable

from zk0d.report.analysis import Analysis, findings

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem;color:#222}"
    "svg{max-width:100%;height:auto}table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid #ddd;overflow-wrap:anywhere}"
)
#: Okabe and Ito's colours, which people who confuse red and green tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")


def page(analysis: Analysis) -> str:
    """The page; everything that came from elsewhere is escaped."""
    rows = "".join(
        f"<tr><td>{_e(f.rule)}</td><td>{_e(f.evidence)}</td><td>{_e(f.proposal)}</td></tr>"
        for f in findings(analysis)
    )
    odd = (
        f"<table><tr><th>rule</th><th>evidence</th><th>to try</th></tr>{rows}</table>"
        if rows
        else "<p>Nothing odd was found.</p>"
    )
    settings = "".join(
        f"<tr><td>{_e(key)}</td><td>{_e(str(value))}</td></tr>"
        for key, value in sorted(analysis.story.settings.items())
    )
    charts = "".join(f"<h2>{title}</h2>{svg}" for title, svg in _charts(analysis))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>run {_e(analysis.story.run)}</title><style>{STYLE}</style>"
        f"<h1>Run {_e(analysis.story.run)}</h1><p>{_e(analysis.summary())}</p>"
        f"<h2>What was odd</h2>{odd}{charts}<h2>Settings</h2><table>{settings}</table></html>\n"
    )


def _e(text: str) -> str:
    return html.escape(text)


def _charts(analysis: Analysis) -> list[tuple[str, str]]:
    story = analysis.story
    made = []
    datasets = sorted({name for point in story.evaluations for name in point.losses})
    lines = {
        name: {p.round: v for p in story.evaluations if (v := p.losses.get(name)) is not None}
        for name in datasets
    }
    if any(lines.values()):
        made.append(("Policy loss", _lines(lines, "policy loss")))
    if analysis.losses:
        made.append(("Training loss", _lines(analysis.losses, "training loss")))
        made.append(("Participation", _svg(lambda axes: _participation(axes, analysis))))
    if story.rounds:
        rates = {"learning rate": {p.round: p.learning_rate for p in story.rounds}}
        norms = {"norm of the mean update": {p.round: p.update_norm for p in story.rounds}}
        made += [("Learning rate", _lines(rates, "rate")), ("Updates", _lines(norms, "norm"))]
    if analysis.seconds:
        phases = sorted({phase for seconds in analysis.seconds.values() for phase in seconds})
        by_phase = {
            phase: {n: s.get(phase, 0.0) for n, s in analysis.seconds.items()} for phase in phases
        }
        made.append(("Seconds by phase", _lines(by_phase, "seconds")))
    if analysis.traffic:
        directions = {
            name: {n: both[at] / 1e6 for n, both in analysis.traffic.items()}
            for at, name in enumerate(("up", "down"))
        }
        made.append(("Megabytes", _lines(directions, "MB")))
    return made


def _lines(series: dict[str, dict[int, float]], label: str) -> str:
    def draw(axes: object) -> None:
        for at, (name, values) in enumerate(series.items()):
            numbers = sorted(values)
            axes.plot(  # type: ignore[attr-defined]
                numbers,
                [values[number] for number in numbers],
                color=COLOURS[at % len(COLOURS)],
                marker="o" if len(numbers) < 40 else None,
                markersize=3,
                label=name,
            )
        axes.set_ylabel(label)  # type: ignore[attr-defined]
        if len(series) <= 12:
            axes.legend(fontsize=8, frameon=False)  # type: ignore[attr-defined]

    return _svg(draw)


def _participation(axes: object, analysis: Analysis) -> None:
    for row, (_, losses) in enumerate(sorted(analysis.losses.items())):
        axes.scatter(list(losses), [row] * len(losses), s=12, marker="s", color=COLOURS[0])  # type: ignore[attr-defined]
    names = sorted(analysis.losses)
    axes.set_yticks(range(len(names)), names, fontsize=8)  # type: ignore[attr-defined]


def _svg(draw: Callable[[object], None]) -> str:
    """A chart as SVG, without the XML's head."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlabel("round")
    axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]
