"""One contributor's machine, from its own services.

An evaluator's figures have the same names; the job tells them apart.
"""

from __future__ import annotations

from zk0d.monitoring.panels import BLUE, GREEN, MINE, ORANGE, RED, Panel, Query, number

TITLE = "This machine now"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [online(), held(), contact(), learner(), working(), recordings()]


def online() -> Panel:
    return number(
        "Online",
        "Whether the coordinator counts this node online.",
        "none",
        Query(f"min(zk0d_online{{{MINE}}})"),
        words={"0": ("offline", RED), "1": ("online", GREEN)},
    )


def held() -> Panel:
    return number(
        "Taking part",
        "Whether the owner paused or drained this node (zk0bot client pause, drain, resume).",
        "none",
        Query(f"max(zk0d_held{{{MINE}}})"),
        words={"0": ("yes", GREEN), "1": ("held", ORANGE)},
    )


def contact() -> Panel:
    return number(
        "Coordinator last answered",
        "Seconds since the coordinator's presence page last answered.",
        "s",
        Query(f"max(time() - zk0d_coordinator_last_contact_timestamp_seconds{{{MINE}}})"),
        limits=((60, ORANGE), (600, RED)),
    )


def learner() -> Panel:
    return number(
        "Learner",
        "Whether the learner answers. It holds the policy, the recordings and the GPU.",
        "none",
        Query(f"min(zk0d_learner_up{{{MINE}}})"),
        words={"0": ("gone", RED), "1": ("up", GREEN)},
    )


def working() -> Panel:
    return number(
        "Last progress",
        "Seconds since a task here last began, made progress or ended.",
        "s",
        Query(f"min(time() - zk0d_learner_last_progress_timestamp_seconds{{{MINE}}})"),
        below=BLUE,
    )


def recordings() -> Panel:
    return number(
        "Frames of recordings",
        "Frames that this machine trains on. None of them leaves it.",
        "short",
        Query(f"sum(zk0d_frames{{{MINE}}})"),
        limits=((1, GREEN),),
        below=RED,
    )
