"""Where a round's time and bytes go."""

from __future__ import annotations

from zk0d.monitoring.panels import BLUE, GREEN, ORANGE, RED, Panel, Query, graph, number

TITLE = "One round"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [
        length(),
        slowest(),
        slack(),
        spread(),
        phases(),
        slowest_nodes(),
        node_phases(),
        bytes_by_node(),
        traffic(),
        throughput(),
    ]


def length() -> Panel:
    return number(
        "Last round took",
        "All phases of the last committed round.",
        "s",
        Query("sum(zk0d_round_phase_seconds)"),
        below=BLUE,
        span=6,
    )


def slowest() -> Panel:
    return number(
        "Slowest node took",
        "The longest time from sending the last round to a node's answer. The round waited for it.",
        "s",
        Query("topk(1, zk0d_node_answer_seconds)", "{{node}}"),
        below=BLUE,
        span=6,
    )


def slack() -> Panel:
    return number(
        "Until the deadline",
        "Seconds until the deadline of the round under way; 0 between rounds, below 0 it is"
        " overdue.",
        "s",
        Query(
            "max((zk0d_round_deadline_timestamp_seconds > 0) - time()"
            " or 0 * zk0d_round_deadline_timestamp_seconds)"
        ),
        limits=((-300, ORANGE), (0, GREEN)),
        below=RED,
        span=6,
    )


def spread() -> Panel:
    return number(
        "Slowest against median",
        "The slowest node's time as a multiple of the median. Above 2 one machine slows the run:"
        " a shorter round-deadline ends rounds without it.",
        "short",
        Query("max(zk0d_node_answer_seconds) / quantile(0.5, zk0d_node_answer_seconds)"),
        limits=((2, ORANGE), (4, RED)),
        decimals=2,
        span=6,
    )


def phases() -> Panel:
    return graph(
        "Seconds by phase",
        "The coordinator's time in the last round: send, collect (nodes train), aggregate,"
        " evaluate, commit.",
        "s",
        Query("zk0d_round_phase_seconds", "{{phase}}"),
        stacked=True,
    )


def slowest_nodes() -> Panel:
    return graph(
        "Slowest nodes",
        "The ten longest times from sending a round to the answer.",
        "s",
        Query('topk(10, zk0d_node_answer_seconds{node=~"$node"})', "{{node}}"),
        points=True,
    )


def node_phases() -> Panel:
    return graph(
        "Seconds of nodes by phase",
        "The chosen nodes' time in their last round: load, evaluate, train, encode, and"
        " transfer, which is the rest.",
        "s",
        Query('avg by (phase) (zk0d_node_phase_seconds{node=~"$node"})', "{{phase}}"),
        stacked=True,
    )


def bytes_by_node() -> Panel:
    return graph(
        "Bytes by node and direction",
        "Payload of accepted rounds in this run: weights go down, updates come up.",
        "bytes",
        Query('zk0d_node_bytes_total{node=~"$node"}', "{{node}} {{direction}}"),
        points=True,
    )


def traffic() -> Panel:
    return graph(
        "Bytes per second",
        "Payload of all nodes, as rounds are committed.",
        "Bps",
        Query(
            "sum by (direction) (rate(zk0d_update_bytes_total[$__rate_interval]))", "{{direction}}"
        ),
    )


def throughput() -> Panel:
    return graph(
        "Frames trained on per second",
        "Samples of accepted updates, as rounds are committed.",
        "short",
        Query(
            'sum by (node) (rate(zk0d_node_samples_total{node=~"$node"}[$__rate_interval]))',
            "{{node}}",
        ),
        stacked=True,
    )
