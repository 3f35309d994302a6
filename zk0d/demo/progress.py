"""What the demo shows while it works: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zk0d.record.events import (
    EvaluationFailed,
    Event,
    ModelReady,
    NodeJoined,
    NodeLost,
    NodeRefused,
    RoundCommitted,
    RoundFailed,
    RoundStarted,
    RunWaiting,
    UpdateRefused,
)
from zk0d.record.state import RunState

BARS = "▁▂▃▄▅▆▇█"


@dataclass
class RoundsView:
    """A run's rounds as they come, and what a person should notice."""

    rounds: int
    nodes_wanted: int
    state: RunState = field(default_factory=lambda: RunState(whole=False))
    notices: list[str] = field(default_factory=list)
    started: float = 0.0

    def apply(self, event: Event) -> bool:
        """Take the next event; whether it is worth a line of plain output."""
        self.state.apply(event)
        match event:
            case RoundStarted():
                self.started = self.started or event.time
                return False
            case RoundCommitted():
                return True
            case ModelReady(spec=spec) if spec.notice:
                self.notices.append(spec.notice)
            case UpdateRefused() | NodeRefused():
                self.notices.append(f"{event.node}: {event.message}")
            case NodeJoined() if event.notices:
                self.notices += event.notices
            case NodeLost():
                self.notices.append(f"{event.node}: lost ({event.reason})")
            case RunWaiting():
                self.notices.append(f"the run waits: {event.message}; it continues {event.until}")
            case RoundFailed() | EvaluationFailed():
                self.notices.append(event.message)
            case _:
                return False
        return True

    @property
    def round(self) -> int:
        """The last committed round."""
        return self.state.round

    @property
    def nodes(self) -> int:
        """Nodes in that round."""
        return len(self.state.last.nodes) if self.state.last else 0

    @property
    def success(self) -> float | None:
        """Success in closed loop, mean of the datasets."""
        evaluation = self.state.last.evaluation if self.state.last else None
        return evaluation.success if evaluation else None

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; ``None`` before the first round is done."""
        if not self.round or not self.started:
            return None
        pace = (self.state.last_commit - self.started) / self.round
        return pace * (self.rounds - self.round)

    def sentence(self) -> str:
        """All of it in one plain line."""
        parts = [f"round {self.round}/{self.rounds}", f"nodes {self.nodes}/{self.nodes_wanted}"]
        for name, value in (
            ("train loss", self.state.train_loss),
            ("policy loss", self.state.policy_loss),
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
        self.rounds: RoundsView | None = None
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it, and leave its last state on the screen."""
        if not self._console.is_terminal:
            self._console.print(self._headline, soft_wrap=True)
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

    def show(self, event: Event) -> None:
        """Show one event of the run."""
        if self.rounds is None:
            return
        known = len(self.rounds.notices)
        if self.rounds.apply(event) and isinstance(event, RoundCommitted):
            self._line(self.rounds.sentence())
        for notice in self.rounds.notices[known:]:
            self._line(notice)

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
        if self.rounds is not None:
            parts.append(self._rounds(self.rounds))
        return Group(*parts)

    def _rounds(self, view: RoundsView) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        left, state = view.seconds_left, view.state
        grid.add_row(
            Text(f"round {view.round}/{view.rounds}", "bold"),
            ProgressBar(total=view.rounds, completed=view.round, width=30),
            f"{left:.0f} s left" if left else "",
        )
        losses = list(state.evaluated.values())
        grid.add_row("nodes", f"{view.nodes} of {view.nodes_wanted}", "")
        grid.add_row("train loss", _number(state.train_loss), "")
        trend = sparkline(losses) if len(losses) > 1 else ""
        grid.add_row("policy loss", f"{_number(state.policy_loss)}  {trend}", "")
        grid.add_row("success", _number(view.success), "")
        for notice in view.notices[-3:]:
            grid.add_row(Text("notice", "yellow"), Text(notice, overflow="fold"), "")
        return grid


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
