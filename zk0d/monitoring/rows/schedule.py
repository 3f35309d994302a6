"""At what pace and with what settings it is trained."""

from __future__ import annotations

from zk0d.monitoring.panels import Panel, Query, graph

TITLE = "Pace and schedule"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [round_number(), round_rate(), rate_and_mu(), norms()]


def round_number() -> Panel:
    return graph(
        "Round",
        "The last committed round, and the planned rounds of the run.",
        "short",
        Query("max(zk0d_round)", "committed"),
        Query("max(zk0d_run_rounds)", "planned"),
        points=True,
        span=6,
    )


def round_rate() -> Panel:
    return graph(
        "Rounds per hour",
        "Committed and failed rounds. A failed one had fewer updates than its quorum.",
        "short",
        Query("3600 * sum by (result) (rate(zk0d_rounds_total[$__rate_interval]))", "{{result}}"),
        span=6,
    )


def rate_and_mu() -> Panel:
    return graph(
        "Learning rate and mu",
        "The schedule's values at the round's start: the learning rate, and FedProx's mu.",
        "sci",
        Query("max(zk0d_learning_rate)", "learning rate"),
        Query("max(zk0d_proximal_mu)", "mu"),
        points=True,
        span=6,
    )


def norms() -> Panel:
    return graph(
        "Norm of updates by node",
        "Length of each node's last update. Admission refuses an outlier as norm_outlier.",
        "none",
        Query('zk0d_update_norm{node=~"$node"}', "{{node}}"),
        points=True,
        span=6,
    )
