"""What the demo shows while it works: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"


@dataclass
class RoundFacts:
    """The federation's figures, read from the journal's lines."""

    rounds: int
    nodes_wanted: int
    round: int = 0
    nodes: int = 0
    train_loss: float | None = None
    policy_loss: float | None = None
    success: float | None = None
    learning_rate: float | None = None
    losses: list[float] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    started: float = 0.0
    updated: float = 0.0

    def take(self, line: dict[str, Any]) -> bool:
        """Read one line of the journal; whether it is worth a line of plain output."""
        kind = line["kind"]
        if kind == "round.started":
            self.started = self.started or line["time"]
            self.learning_rate = line["learning_rate"]
        elif kind == "round.committed":
            self.round, self.updated = line["round"], line["time"]
            self.nodes = len(line.get("nodes", []))
            self.train_loss = line.get("train_loss")
            evaluation = line["evaluation"]
            if evaluation and evaluation["loss"] is not None:
                self.policy_loss = evaluation["loss"]
                self.losses.append(evaluation["loss"])
                self.success = evaluation["success"]
            return True
        elif kind in ("update.refused", "node.refused"):
            self.notices.append(f"{line['node']}: {line['message']}")
            return True
        elif kind == "node.lost":
            self.notices.append(f"{line['node']}: lost ({line['reason']})")
            return True
        elif kind in ("round.failed", "evaluation.failed"):
            self.notices.append(line["message"])
            return True
        return False

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; ``None`` before the first round is done."""
        if not self.round or not self.started:
            return None
        return (self.updated - self.started) / self.round * (self.rounds - self.round)

    def sentence(self) -> str:
        """All of it in one plain line."""
        parts = [f"round {self.round}/{self.rounds}", f"nodes {self.nodes}/{self.nodes_wanted}"]
        for name, value in (
            ("train loss", self.train_loss),
            ("policy loss", self.policy_loss),
            ("success", self.success),
        ):
            if value is not None:
                parts.append(f"{name} {value:.3f}")
        if self.seconds_left is not None and self.round < self.rounds:
            parts.append(f"{self.seconds_left:.0f} s left")
        return ", ".join(parts)


@dataclass
class Stage:
    """One part of the demo."""

    title: str
    state: str = "waiting"  #: waiting, working, done
    note: str = ""
    began: float = 0.0
    seconds: float = 0.0


def sparkline(values: list[float], width: int = 24) -> str:
    """The last values as a line of bars, the lowest and highest of them as its bounds."""
    shown = values[-width:]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in shown)


class Progress:
    """The demo's stages and, in the federation's, its rounds.

    Parameters
    ----------
    console
        A terminal gets a live view, anything else a line for each event.
    """

    def __init__(self, console: Console, headline: str, stages: list[str]) -> None:
        self._console = console
        self._headline = headline
        self._stages = {title: Stage(title) for title in stages}
        self._began = time.monotonic()
        self.facts: RoundFacts | None = None
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it, and leave its last state on the screen."""
        if not self._console.is_terminal:
            self._console.print(self._headline)
            yield
            return
        with Live(
            get_renderable=self.render, console=self._console, refresh_per_second=4
        ) as self._live:
            yield

    @contextmanager
    def stage(self, title: str) -> Iterator[Stage]:
        """A stage that is under way while the block runs."""
        stage = self._stages[title]
        stage.state, stage.began = "working", time.monotonic()
        self._line(f"{title} ...")
        yield stage
        stage.state, stage.seconds = "done", time.monotonic() - stage.began
        self._line(f"{title}: {stage.note} ({stage.seconds:.0f} s)")

    def note(self, stage: Stage, note: str) -> None:
        """Say how far a stage is."""
        stage.note = note
        self._line(f"{stage.title}: {note}")

    def take(self, line: dict[str, Any]) -> None:
        """Show one line of the journal."""
        if self.facts is not None and self.facts.take(line):
            if line["kind"] == "round.committed":
                self._line(self.facts.sentence())
            else:
                self._line(self.facts.notices[-1])

    def _line(self, text: str) -> None:
        if self._live is None:
            elapsed = time.monotonic() - self._began
            line = f"[{elapsed:5.0f} s] {text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The view as it is now."""
        elapsed = int(time.monotonic() - self._began)
        head = Table.grid(expand=True)
        head.add_column()
        head.add_column(justify="right")
        head.add_row(Text(self._headline, style="bold"), f"{elapsed // 60}:{elapsed % 60:02d}")
        stages = Table.grid(padding=(0, 1))
        for stage in self._stages.values():
            mark, style = {
                "waiting": ("·", "dim"),
                "working": ("▸", "bold cyan"),
                "done": ("✓", "green"),
            }[stage.state]
            seconds = f"{stage.seconds:.0f} s" if stage.state == "done" else ""
            stages.add_row(Text(mark, style), Text(stage.title, style), stage.note, seconds)
        parts: list[RenderableType] = [head, stages]
        if self.facts is not None:
            parts.append(self._rounds(self.facts))
        return Group(*parts)

    def _rounds(self, facts: RoundFacts) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        left = facts.seconds_left
        grid.add_row(
            Text(f"round {facts.round}/{facts.rounds}", "bold"),
            ProgressBar(total=facts.rounds, completed=facts.round, width=30),
            f"{left:.0f} s left" if left else "",
        )
        grid.add_row("nodes", f"{facts.nodes} of {facts.nodes_wanted}", "")
        grid.add_row("train loss", _number(facts.train_loss), "")
        trend = sparkline(facts.losses) if len(facts.losses) > 1 else ""
        grid.add_row("policy loss", f"{_number(facts.policy_loss)}  {trend}", "")
        grid.add_row("success", _number(facts.success), "")
        for notice in facts.notices[-3:]:
            grid.add_row(Text("notice", "yellow"), Text(notice, overflow="fold"), "")
        return grid


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
