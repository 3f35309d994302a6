"""The picture of a model card: held-out and training loss by round."""

from __future__ import annotations

from pathlib import Path

from zk0d.pages import COLOURS
from zk0d.record.summary import RunSummary

CHART = "training.png"  #: in a checkpoint's folder


def draw_training(summary: RunSummary, path: Path) -> None:
    """Draw the run up to the summary's round, as PNG."""
    # No pyplot: it keeps every figure, and looks for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    FigureCanvasAgg(figure)
    held_out, training = figure.subplots(1, 2)
    names = sorted({name for point in summary.evaluations for name in point.losses})
    for at, name in enumerate(names):
        measured = {
            p.round: loss for p in summary.evaluations if (loss := p.losses.get(name)) is not None
        }
        colour = COLOURS[at % len(COLOURS)]
        held_out.plot(list(measured), list(measured.values()), color=colour, label=name)
        if 0 in measured:
            held_out.axhline(measured[0], color=colour, linestyle=":", linewidth=0.8)
    if 1 < len(names) <= len(COLOURS):
        held_out.legend(fontsize=8, frameon=False)
    held_out.set_title("policy loss, held out", fontsize=10)
    rounds = [point.round for point in summary.rounds]
    training.plot(rounds, [point.train_loss for point in summary.rounds], color=COLOURS[0])
    training.set_title("training loss, mean of nodes", fontsize=10)
    for axes in (held_out, training):
        axes.set_xlabel("round")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})
