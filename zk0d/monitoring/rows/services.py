"""Processes that end, stand still or run out."""

from __future__ import annotations

from zk0d.monitoring.panels import GREEN, ORANGE, RED, Panel, Query, graph

TITLE = "Services"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [restarts(), child_starts(), withheld(), disk(), certificates(), memory()]


def restarts() -> Panel:
    return graph(
        "Restarts of services",
        "Restarts of a service's own process in the last hour.",
        "short",
        Query(
            'changes(process_start_time_seconds{job=~"zk0d.*", node=~"$node"}[1h])',
            "{{node}} {{instance}}",
        ),
        Query(
            'changes(zk0d_learner_process_start_time_seconds{node=~"$node"}[1h])',
            "{{node}} {{instance}}, learner",
        ),
        limits=((3, ORANGE), (6, RED)),
        span=8,
    )


def child_starts() -> Panel:
    return graph(
        "Starts of supervised processes",
        "Starts of Flower's processes in the last 15 minutes. One is normal; the alert fires above"
        " three.",
        "short",
        Query(
            'increase(zk0d_child_starts_total{node=~"$node"}[15m])',
            "{{node}} {{instance}} {{child}}",
        ),
        limits=((3, RED),),
        span=8,
    )


def withheld() -> Panel:
    return graph(
        "Watchdog not fed",
        "Checks per second in which a service saw no progress. systemd restarts the service after a"
        " minute of that.",
        "short",
        Query(
            "sum by (node, instance, reason) (rate(zk0d_watchdog_pings_withheld_total"
            '{node=~"$node"}[$__rate_interval]) or rate(zk0d_learner_watchdog_pings_withheld_total'
            '{node=~"$node"}[$__rate_interval]))',
            "{{node}} {{instance}}: {{reason}}",
        ),
        limits=((0.01, ORANGE), (0.5, RED)),
        span=8,
    )


def disk() -> Panel:
    return graph(
        "Free disk",
        "Free share of each disk that zk0d uses. A full disk ends a run; the run resumes by itself"
        " once there is room.",
        "percentunit",
        Query('zk0d:filesystem_free:ratio{node=~"$node"}', "{{node}} {{instance}} {{holds}}"),
        limits=((0.03, ORANGE), (0.1, GREEN)),
        below=RED,
        span=8,
    )


def certificates() -> Panel:
    return graph(
        "Certificates end in",
        "Seconds until each certificate ends. A timer renews the gateway's certificate in its last"
        " 30 days; the alert fires at 14.",
        "s",
        Query(
            'zk0d_certificate_expiry_timestamp_seconds{node=~"$node"} - time()',
            "{{node}} {{instance}} {{certificate}}",
        ),
        limits=((259200, ORANGE), (1209600, GREEN)),
        below=RED,
        span=8,
    )


def memory() -> Panel:
    return graph(
        "Memory of services",
        "Resident memory of each service and of the learner beside it. If it grows for days, there"
        " is a leak.",
        "bytes",
        Query(
            'process_resident_memory_bytes{job=~"zk0d.*", node=~"$node"}', "{{node}} {{instance}}"
        ),
        Query(
            'zk0d_learner_process_resident_memory_bytes{node=~"$node"}',
            "{{node}} {{instance}}, learner",
        ),
        span=8,
    )
