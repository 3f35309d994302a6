"""A run's charts, as SVG for the page and as PNG beside it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.pages import COLOURS
from zk0d.report.analysis import Analysis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, Mapping[int, float]]  #: values by round, by what they are of
MANY = 12  #: lines that a legend can still tell apart


@dataclass(frozen=True)
class Chart:
    """One chart. ``name`` is its file's, without a suffix."""

    name: str
    title: str
    draw: Callable[[Axes], None]
    rows: int = 0  #: beyond a few, the chart grows with them

    def svg(self) -> str:
        """As SVG, without the XML's head."""
        text = io.StringIO()
        self._figure().savefig(text, format="svg", metadata={"Date": None})
        drawn = text.getvalue()
        return drawn[drawn.index("<svg") :]

    def save(self, path: Path) -> None:
        """As PNG."""
        self._figure().savefig(path, format="png", dpi=120, metadata={"Software": None})

    def _figure(self) -> Figure:
        # No pyplot: it keeps every figure, and looks for a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, max(3.0, 1.2 + 0.22 * self.rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        self.draw(axes)
        axes.set_xlabel("round")
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def charts(analysis: Analysis) -> list[Chart]:
    """Those that the run has figures for."""
    summary, made = analysis.run, []
    losses = _by_dataset(analysis)
    if losses:
        made.append(Chart("policy_loss", "Policy loss", _with_baseline(losses)))
    if analysis.on_nodes:
        drawn = _with_baseline(analysis.on_nodes)
        made.append(Chart("on_nodes", "Policy loss on the nodes' held-out episodes", drawn))
    if analysis.success:
        made.append(Chart("success", "Success", _lines(analysis.success, "success", (0, 1.02))))
    if analysis.losses:
        made.append(Chart("training_loss", "Training loss", _lines(analysis.losses, "loss")))
        nodes = len(analysis.losses)
        made.append(
            Chart(
                "participation",
                "Participation: blue took part, orange refused",
                _heat(analysis),
                rows=nodes,
            )
        )
    if summary.rounds:
        rates = {"learning rate": {p.round: p.learning_rate for p in summary.rounds}}
        pulls = {"proximal mu": {p.round: p.proximal_mu for p in summary.rounds}}
        norms = {"norm of the mean update": {p.round: p.update_norm for p in summary.rounds}}
        made += [
            Chart("learning_rate", "Learning rate, as applied", _lines(rates, "rate")),
            Chart("proximal_mu", "Proximal mu, as applied", _lines(pulls, "mu")),
            Chart("updates", "Updates", _lines(norms, "norm")),
        ]
    if analysis.steps:
        made.append(Chart("steps", "Optimizer steps by node", _lines(analysis.steps, "steps")))
    if analysis.agreement:
        made.append(
            Chart("agreement", "Agreement of the updates", _lines(analysis.agreement, "agreement"))
        )
    if analysis.seconds:
        phases = sorted({phase for seconds in analysis.seconds.values() for phase in seconds})
        by_phase = {
            phase: {n: s.get(phase, 0.0) for n, s in analysis.seconds.items()} for phase in phases
        }
        made.append(Chart("seconds", "Seconds by phase", _stacked(by_phase, "seconds")))
    if analysis.traffic:
        directions = {
            name: {n: both[at] / 1e6 for n, both in analysis.traffic.items()}
            for at, name in enumerate(("up", "down"))
        }
        made.append(Chart("bytes", "Megabytes", _stacked(directions, "MB")))
    if analysis.state.refusals:
        made.append(Chart("refused", "Refused updates", _stacked(_refusals(analysis), "updates")))
    return made


def _by_dataset(analysis: Analysis) -> dict[str, dict[int, float]]:
    points = analysis.run.evaluations
    names = sorted({name for point in points for name in point.losses})
    found = {
        name: {p.round: loss for p in points if (loss := p.losses.get(name)) is not None}
        for name in names
    }
    return {name: losses for name, losses in found.items() if losses}


def _refusals(analysis: Analysis) -> dict[str, dict[int, float]]:
    counts = Counter((event.reason, event.round) for event in analysis.state.refusals)
    rounds = range(1, max(analysis.run.round, *(number for _, number in counts)) + 1)
    return {
        reason: {number: float(counts[reason, number]) for number in rounds}
        for reason in sorted({reason for reason, _ in counts})
    }


def _lines(
    series: Series, label: str, limits: tuple[float, float] | None = None
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for at, (name, values) in enumerate(sorted(series.items())):
            numbers = sorted(values)
            axes.plot(
                numbers,
                [values[number] for number in numbers],
                color=COLOURS[at % len(COLOURS)],
                # Beyond the colours, lines differ by their strokes.
                linestyle=("-", "--", ":", "-.")[at // len(COLOURS) % 4],
                marker="o" if len(numbers) < 40 else None,
                markersize=3,
                label=name,
            )
        _describe(axes, label, len(series))
        if limits:
            axes.set_ylim(*limits)

    return draw


def _with_baseline(series: Series) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        _lines(series, "policy loss")(axes)
        for at, (_, values) in enumerate(sorted(series.items())):
            if 0 in values:
                colour = COLOURS[at % len(COLOURS)]
                axes.axhline(values[0], color=colour, linestyle=":", linewidth=0.8, alpha=0.7)

    return draw


def _stacked(series: Series, label: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        numbers = sorted({number for values in series.values() for number in values})
        heights = [[values.get(n, 0.0) for n in numbers] for values in series.values()]
        colours = [COLOURS[at % len(COLOURS)] for at in range(len(series))]
        # Steps, as bars are: a thousand rounds are one shape and not a thousand.
        axes.stackplot(numbers, heights, labels=list(series), colors=colours, step="mid")
        if len(numbers) == 1:
            axes.set_xlim(numbers[0] - 1, numbers[0] + 1)
        _describe(axes, label, len(series))

    return draw


def _heat(analysis: Analysis) -> Callable[[Axes], None]:
    """Nodes by rounds: dark where a node's update was taken, orange where one was refused."""

    def draw(axes: Axes) -> None:
        from matplotlib.colors import ListedColormap

        names = sorted(analysis.losses)
        last = max(max(losses) for losses in analysis.losses.values())
        grid = [[int(n in analysis.losses[name]) for n in range(1, last + 1)] for name in names]
        for event in analysis.state.refusals:
            if event.node in analysis.losses and 1 <= event.round <= last:
                grid[names.index(event.node)][event.round - 1] = 2
        axes.imshow(
            grid,
            aspect="auto",
            interpolation="nearest",
            cmap=ListedColormap(["#f2f2f2", COLOURS[0], COLOURS[1]]),
            vmin=0,
            vmax=2,
            extent=(0.5, last + 0.5, len(names) - 0.5, -0.5),
        )
        axes.set_yticks(range(len(names)), names, fontsize=8)

    return draw


def _describe(axes: Axes, label: str, series: int) -> None:
    axes.set_ylabel(label)
    axes.margins(x=0.01)
    if 1 < series <= MANY:
        # Above the chart, where it hides nothing.
        axes.legend(
            fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, borderpad=0
        )
