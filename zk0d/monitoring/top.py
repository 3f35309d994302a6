"""``zk0bot top``: a federation at a glance, in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zk0d.config.amounts import say_bytes
from zk0d.errors import UnavailableError
from zk0d.monitoring.samples import Samples, Source

BARS = "▁▂▃▄▅▆▇█"
MOST_NODES = 40
STYLES = {"running": "green", "waiting": "yellow", "failed": "red"}
NONE = "–"


@dataclass
class View:
    """Draws what was read; remembers what changes with time.

    Parameters
    ----------
    clock
        Seconds since 1970; replaced in tests.
    """

    clock: Callable[[], float] = time.time
    losses: dict[float, float] = field(default_factory=dict)  #: mean held-out loss by round
    _before: tuple[float, dict[str, float]] | None = None

    def draw(self, samples: Samples) -> RenderableType:
        """One frame."""
        now = self.clock()
        parts: list[RenderableType] = [*self._alerts(samples)]
        if samples.value("zk0d_round") is not None:
            parts += [self._run(samples, now), "", self._nodes(samples, now)]
        machines = self._machines(samples, now)
        if machines.row_count:
            parts += ["", machines]
        return Group(*parts)

    def _alerts(self, samples: Samples) -> list[RenderableType]:
        lines: list[RenderableType] = [
            Text(f"does not answer: {service}", style="red") for service in samples.silent
        ]
        for alert in samples.all("ALERTS", alertstate="firing"):
            labels = alert.labels
            colour = "red" if labels.get("severity") == "critical" else "yellow"
            where = labels.get("node") or labels.get("instance") or ""
            name = labels.get("alertname", "")
            lines.append(Text(f"{name} {where} (docs/runbooks/{name}.md)", style=colour))
        return [*lines, ""] if lines else []

    def _run(self, samples: Samples, now: float) -> RenderableType:
        value = samples.value
        round_, rounds = value("zk0d_round") or 0.0, value("zk0d_run_rounds") or 0.0
        state = next(
            (s.labels["state"] for s in samples.all("zk0d_run_state") if s.value), "no run yet"
        )
        names = next((s.labels for s in samples.all("zk0d_run_info")), {})
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"run {names.get('run', NONE)}", style="bold"),
            Text(state, style=STYLES.get(state, "")),
            f"{names.get('model', '')} {names.get('policy', '')}".strip(),
            ProgressBar(total=max(rounds, 1.0), completed=round_, width=24),
            f"round {round_:.0f}/{rounds:.0f}",
        )
        grid = Table.grid(padding=(0, 2))
        mean, best = value("zk0d_policy_loss_mean"), value("zk0d_policy_loss_best")
        start = samples.by("dataset", "zk0d_policy_loss_baseline")
        if mean is not None:
            self.losses[round_] = mean
        grid.add_row(
            "held-out loss",
            Text(_number(mean), style="bold"),
            f"best {_number(best)}",
            f"start {_number(sum(start.values()) / len(start) if start else None)}",
            Text(_spark(list(self.losses.values())), style="cyan"),
        )
        for task, ratio in samples.by("task", "zk0d_success_ratio").items():
            grid.add_row("success", Text(f"{ratio:.0%}", style="bold"), escape(task))
        commit, deadline = (
            value("zk0d_last_round_committed_timestamp_seconds"),
            value("zk0d_round_deadline_timestamp_seconds"),
        )
        grid.add_row(
            "last commit",
            f"{_span(now - commit)} ago" if commit else NONE,
            f"deadline in {_span(deadline - now)}" if deadline else "no round under way",
            f"rate {_number(value('zk0d_learning_rate'))}",
            f"mu {_number(value('zk0d_proximal_mu'))}",
            f"agreement {_number(value('zk0d_update_agreement'))}",
        )
        phases = samples.by("phase", "zk0d_round_phase_seconds")
        words = ", ".join(f"{phase} {_span(seconds)}" for phase, seconds in phases.items())
        return Group(head, grid, Text(f"last round     {words or NONE}"))

    def _nodes(self, samples: Samples, now: float) -> RenderableType:
        online = samples.by("node", "zk0d_node_online")
        table = Table(box=None, pad_edge=False, header_style="dim")
        numbers = ("loss", "agrees", "answer", "accepted", "refused", "lost", "up", "down")
        for title in ("node", "", *numbers):
            table.add_column(title, justify="left" if title in ("node", "") else "right")
        table.add_column("version")
        columns = [
            samples.by("node", "zk0d_train_loss"),
            samples.by("node", "zk0d_update_cosine"),
            samples.by("node", "zk0d_node_answer_seconds"),
            *(
                samples.by("node", "zk0d_node_updates_total", result=result)
                for result in ("accepted", "refused", "lost")
            ),
            *(
                samples.by("node", "zk0d_node_bytes_total", direction=direction)
                for direction in ("up", "down")
            ),
        ]
        shapes = (_number, _share, _span, _count, _count, _count, _bytes, _bytes)
        versions = {s.labels["node"]: s.labels["version"] for s in samples.all("zk0d_node_info")}
        last = samples.by("node", "zk0d_node_last_online_timestamp_seconds")
        # Who is away first: that is what somebody looks for.
        names = sorted(online, key=lambda name: (bool(online[name]), name))
        for name in names[:MOST_NODES]:
            seen = last.get(name)
            state = (
                Text("online", style="green")
                if online[name]
                else Text(f"away {_span(now - seen)}" if seen else "never seen", style="yellow")
            )
            figures = [
                shape(column.get(name)) for shape, column in zip(shapes, columns, strict=True)
            ]
            table.add_row(escape(name), state, *figures, escape(versions.get(name, "")))
        if len(names) > MOST_NODES:
            table.add_row(f"and {len(names) - MOST_NODES} more")
        return table if names else Text("no node may join yet", style="yellow")

    def _machines(self, samples: Samples, now: float) -> Table:
        """The learners, each with what it does and its GPU."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("learner", "", "steps", "s/step", "rounds", "memory", "GPU", "free disk"):
            table.add_column(title, justify="left" if title in ("learner", "") else "right")
        steps = samples.by("instance", "zk0d_train_steps_total")
        seconds = samples.by("instance", "zk0d_train_seconds_total")
        paces = self._paces(steps, seconds, now)
        for up in sorted(samples.all("zk0d_learner_up"), key=lambda s: s.labels["instance"]):
            instance = up.labels["instance"]
            here = {"instance": instance}
            busy = samples.value("zk0d_learner_busy", **here)
            state = (
                Text("gone", style="red")
                if not up.value
                else Text("working", style="green")
                if busy
                else Text("ready")
            )
            free = [
                sample.value / size
                for sample in samples.all("zk0d_filesystem_free_bytes", **here)
                if (
                    size := samples.value(
                        "zk0d_filesystem_size_bytes", **here, holds=sample.labels["holds"]
                    )
                )
            ]
            table.add_row(
                escape(up.labels.get("node") or instance),
                state,
                _count(steps.get(instance)),
                _number(paces.get(instance)),
                _count(samples.value("zk0d_tasks_total", **here, kind="train", result="done")),
                _bytes(samples.value("zk0d_learner_process_resident_memory_bytes", **here)),
                _gpu(samples, instance),
                f"{min(free):.0%}" if free else NONE,
            )
        return table

    def _paces(
        self, steps: dict[str, float], seconds: dict[str, float], now: float
    ) -> dict[str, float]:
        """Seconds per step since the last frame, or ever in the first."""
        both = {f"n {key}": value for key, value in steps.items()}
        both |= {f"s {key}": value for key, value in seconds.items()}
        before = self._before[1] if self._before else {}
        self._before = (now, both)
        paces = {}
        for key in steps:
            taken = steps[key] - before.get(f"n {key}", 0.0)
            spent = seconds.get(key, 0.0) - before.get(f"s {key}", 0.0)
            if taken > 0 and spent >= 0:
                paces[key] = spent / taken
        return paces


def show(source: Source, console: Console, *, once: bool, interval: float) -> None:
    """Draw until Ctrl-C; or one frame."""
    view = View()
    if once:
        console.print(view.draw(source.read()))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                frame = view.draw(source.read())
            except UnavailableError as error:  # it may come back
                frame = Text(error.message, style="red")
            live.update(frame, refresh=True)
            time.sleep(interval)


def _gpu(samples: Samples, instance: str) -> str:
    celsius = samples.value("zk0d_gpu_temperature_celsius", instance=instance)
    busy = samples.value("zk0d_gpu_utilization_ratio", instance=instance)
    parts = [
        f"{busy:.0%}" if busy is not None else "",
        f"{celsius:.0f} °C" if celsius is not None else "",
    ]
    return " ".join(part for part in parts if part) or NONE


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _share(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


def _bytes(value: float | None) -> str:
    return NONE if value is None else say_bytes(value)


def _span(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.3g} s" if abs(seconds) < 10 else f"{seconds:.0f} s"


def _spark(values: list[float]) -> str:
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high <= low:
        return ""
    return "".join(BARS[int((value - low) / (high - low) * 7)] for value in values[-40:])
