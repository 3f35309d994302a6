"""What trains."""

from __future__ import annotations

from zk0d.monitoring.panels import ORANGE, RED, Panel, Query, graph

TITLE = "Training and GPUs"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [
        step_time(),
        utilization(),
        temperature(),
        power(),
        gpu_memory(),
        busy(),
        slowed(),
        errors(),
        memory_errors(),
    ]


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
        "Power of each GPU, with other programs' use, and its limit (limits.gpu-power-watts).",
        "watt",
        Query('zk0d_gpu_power_watts{node=~"$node"}', "{{node}} {{instance}} {{gpu}}"),
        Query('zk0d_gpu_power_limit_watts{node=~"$node"}', "limit {{node}} {{instance}} {{gpu}}"),
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


def slowed() -> Panel:
    return graph(
        "GPUs slowed down",
        "1 while a GPU's clocks are lowered for its power limit (power), its heat (thermal), or by"
        " the card itself or its power supply (hardware). The alert fires for the last two.",
        "short",
        Query('zk0d_gpu_slowed{node=~"$node"}', "{{node}} {{instance}} {{gpu}} {{reason}}"),
        limits=((1, ORANGE),),
        points=True,
        span=8,
    )


def errors() -> Panel:
    return graph(
        "GPU errors",
        "Errors that the driver reported (Xid) within an hour. The alert says which.",
        "short",
        Query(
            'sum by (node, instance, gpu) (increase(zk0d_gpu_xid_errors_total{node=~"$node"}[1h]))',
            "{{node}} {{instance}} {{gpu}}",
        ),
        limits=((0.5, ORANGE),),
        points=True,
        span=8,
    )


def memory_errors() -> Panel:
    return graph(
        "GPU memory errors",
        "Errors in a card's life that it could not correct, and rows that it replaced after them.",
        "short",
        Query(
            'zk0d_gpu_ecc_uncorrected_errors{kind="life", node=~"$node"}',
            "errors {{node}} {{instance}} {{gpu}}",
        ),
        Query(
            'zk0d_gpu_remapped_rows{kind!="corrected", node=~"$node"}',
            "rows {{kind}} {{node}} {{instance}} {{gpu}}",
        ),
        limits=((1, ORANGE),),
        points=True,
        span=8,
    )
