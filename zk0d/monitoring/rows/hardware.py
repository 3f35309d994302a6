"""What trains."""

from __future__ import annotations

from zk0d.monitoring.panels import ORANGE, RED, Panel, Query, graph

TITLE = "Training and GPUs"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [step_time(), utilization(), temperature(), power(), gpu_memory(), busy()]


def step_time() -> Panel:
    return graph(
        "Seconds per optimizer step",
        "Mean over the scrapes of five minutes, while a node trains.",
        "s",
        Query('zk0d:train_step_seconds:mean5m{node=~"$node"}', "{{node}} {{instance}}"),
        span=8,
    )


def utilization() -> Panel:
    return graph(
        "GPU utilization",
        "Share of the time that a GPU worked. If it is far below 1 in training, it waits for data.",
        "percentunit",
        Query('zk0d_gpu_utilization_ratio{node=~"$node"}', "{{node}} {{instance}} {{gpu}}"),
        span=8,
    )


def temperature() -> Panel:
    return graph(
        "GPU temperature",
        "The alert fires above 87 degrees for five minutes; most cards slow down above that.",
        "celsius",
        Query('zk0d_gpu_temperature_celsius{node=~"$node"}', "{{node}} {{instance}} {{gpu}}"),
        limits=((80, ORANGE), (87, RED)),
        span=8,
    )


def power() -> Panel:
    return graph(
        "GPU power",
        "Power of each GPU, with other programs' use.",
        "watt",
        Query('zk0d_gpu_power_watts{node=~"$node"}', "{{node}} {{instance}} {{gpu}}"),
        span=8,
    )


def gpu_memory() -> Panel:
    return graph(
        "GPU memory",
        "Used share of each GPU's memory, by all programs. limits.gpu-memory-share bounds zk0d's.",
        "percentunit",
        Query(
            'zk0d_gpu_memory_bytes{kind="used", node=~"$node"} / ignoring (kind)'
            ' zk0d_gpu_memory_bytes{kind="total", node=~"$node"}',
            "{{node}} {{instance}} {{gpu}}",
        ),
        limits=((0.9, ORANGE), (0.98, RED)),
        span=8,
    )


def busy() -> Panel:
    return graph(
        "Learners at work",
        "1 while a learner or evaluator works on a task.",
        "short",
        Query('zk0d_learner_busy{node=~"$node"}', "{{node}} {{instance}}"),
        points=True,
        span=8,
    )
