"""What one contributor's machine did, and what it cost its owner."""

from __future__ import annotations

from zk0d.monitoring.panels import BLUE, MINE, Panel, Query, graph, number

TITLE = "Work and cost in the time shown"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [rounds(), steps(), hours(), received(), sent(), energy(), tasks(), step_time(), line()]


def _total(title: str, text: str, unit: str, expr: str) -> Panel:
    return number(title, text, unit, Query(expr), below=BLUE)


def rounds() -> Panel:
    return _total(
        "Rounds trained",
        "Rounds that this machine finished and answered.",
        "short",
        f'sum(increase(zk0d_tasks_total{{kind="train", result="done", {MINE}}}[$__range]))',
    )


def steps() -> Panel:
    return _total(
        "Optimizer steps",
        "Steps taken, with those of failed rounds.",
        "short",
        f"sum(increase(zk0d_train_steps_total{{{MINE}}}[$__range]))",
    )


def hours() -> Panel:
    return _total(
        "GPU hours",
        "Hours that the GPU worked on training tasks; a CPU's if there is no GPU.",
        "h",
        f'sum(increase(zk0d_task_seconds_total{{kind="train", {MINE}}}[$__range])) / 3600',
    )


def received() -> Panel:
    return _total(
        "Received",
        "Bytes of the received tasks: mostly the policy's weights.",
        "bytes",
        f'sum(increase(zk0d_task_bytes_total{{direction="received", {MINE}}}[$__range]))',
    )


def sent() -> Panel:
    return _total(
        "Sent",
        "Bytes of the sent answers: updates and counts, no recordings.",
        "bytes",
        f'sum(increase(zk0d_task_bytes_total{{direction="sent", {MINE}}}[$__range]))',
    )


def energy() -> Panel:
    return _total(
        "GPU energy",
        "Energy of the GPUs in that time, with other programs' use: mean power times time.",
        "watth",
        f"sum(avg_over_time(zk0d_gpu_power_watts{{{MINE}}}[$__range])) * $__range_s / 3600",
    )


def tasks() -> Panel:
    return graph(
        "Tasks by result",
        "Ended tasks by kind and result. The learner's log has the reason of every failure.",
        "short",
        Query(
            f"sum by (kind, result) (zk0d_tasks_total{{{MINE}}})",
            "{{kind}} {{result}}",
        ),
        points=True,
    )


def step_time() -> Panel:
    return graph(
        "Seconds per optimizer step",
        "Mean over five minutes, while this machine trains.",
        "s",
        Query(
            f"zk0d:train_step_seconds:mean5m{{{MINE}}}",
            "{{node}} {{instance}}",
        ),
    )


def line() -> Panel:
    return graph(
        "Line since midnight",
        "Weights and updates that moved since the owner's midnight, and what is lent a day.",
        "bytes",
        Query(f"sum by (direction) (zk0d_line_today_bytes{{{MINE}}})", "{{direction}}"),
        Query(f"max(zk0d_line_day_limit_bytes{{{MINE}}}) > 0", "lent a day"),
    )
