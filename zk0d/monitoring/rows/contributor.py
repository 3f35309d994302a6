"""One contributor's machine, from its own services."""

from __future__ import annotations

from zk0d.monitoring.panels import BLUE, GREEN, ORANGE, RED, Panel, Query, graph, number

TITLE = "This machine now"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [online(), held(), contact(), learner(), working(), recordings()]


def online() -> Panel:
    return number(
        "Online",
        "Whether the coordinator counts this node online. That is its word, not this machine's.",
        "none",
        Query('min(zk0d_online{node=~"$node"})'),
        words={"0": ("offline", RED), "1": ("online", GREEN)},
    )


def held() -> Panel:
    return number(
        "Taking part",
        "Whether the owner paused or drained this node (zk0bot client pause, drain, resume).",
        "none",
        Query('max(zk0d_held{node=~"$node"})'),
        words={"0": ("yes", GREEN), "1": ("held", ORANGE)},
    )


def contact() -> Panel:
    return number(
        "Coordinator last answered",
        "Seconds since the coordinator's presence page last answered.",
        "s",
        Query('max(time() - zk0d_coordinator_last_contact_timestamp_seconds{node=~"$node"})'),
        limits=((60, ORANGE), (600, RED)),
    )


def learner() -> Panel:
    return number(
        "Learner",
        "Whether the learner answers. It holds the policy, the recordings and the GPU.",
        "none",
        Query('min(zk0d_learner_up{node=~"$node"})'),
        words={"0": ("gone", RED), "1": ("up", GREEN)},
    )


def working() -> Panel:
    return number(
        "Last progress",
        "Seconds since a task last began, moved or ended here.",
        "s",
        Query('min(time() - zk0d_learner_last_progress_timestamp_seconds{node=~"$node"})'),
        below=BLUE,
    )


def recordings() -> Panel:
    return number(
        "Frames of recordings",
        "What this machine trains on. None of it leaves it.",
        "short",
        Query('sum(zk0d_frames{node=~"$node"})'),
        limits=((1, GREEN),),
        below=RED,
    )


def _total(title: str, text: str, unit: str, expr: str) -> Panel:
    return number(title, text, unit, Query(expr), below=BLUE)


class Cost:
    """The row with what was done, and what it cost."""

    TITLE = "What it did and what it cost, in the time shown"

    @staticmethod
    def panels() -> list[Panel]:
        """Top left to bottom right."""
        return [
            rounds(),
            steps(),
            hours(),
            received(),
            sent(),
            energy(),
            tasks(),
            step_time(),
        ]


def rounds() -> Panel:
    return _total(
        "Rounds trained",
        "Rounds that this machine finished and answered.",
        "short",
        'sum(increase(zk0d_tasks_total{kind="train", result="done", node=~"$node"}[$__range]))',
    )


def steps() -> Panel:
    return _total(
        "Optimizer steps",
        "Steps taken, also those of rounds that came to nothing.",
        "short",
        'sum(increase(zk0d_train_steps_total{node=~"$node"}[$__range]))',
    )


def hours() -> Panel:
    return _total(
        "GPU hours",
        "Hours that the device worked on training tasks; a CPU's where there is no GPU.",
        "h",
        'sum(increase(zk0d_task_seconds_total{kind="train", node=~"$node"}[$__range])) / 3600',
    )


def received() -> Panel:
    return _total(
        "Received",
        "Bytes of the tasks that came: mostly the policy's weights.",
        "bytes",
        'sum(increase(zk0d_task_bytes_total{direction="received", node=~"$node"}[$__range]))',
    )


def sent() -> Panel:
    return _total(
        "Sent",
        "Bytes of the answers that went: updates and counts, no recordings.",
        "bytes",
        'sum(increase(zk0d_task_bytes_total{direction="sent", node=~"$node"}[$__range]))',
    )


def energy() -> Panel:
    return _total(
        "GPU energy",
        "What the GPUs drew in that time, whoever used them: mean power times time.",
        "watth",
        'sum(avg_over_time(zk0d_gpu_power_watts{node=~"$node"}[$__range])) * $__range_s / 3600',
    )


def tasks() -> Panel:
    return graph(
        "Tasks by result",
        "Tasks that ended, by kind and how. Anything but done says why in the learner's log.",
        "short",
        Query('sum by (kind, result) (zk0d_tasks_total{node=~"$node"})', "{{kind}} {{result}}"),
        points=True,
    )


def step_time() -> Panel:
    return graph(
        "Seconds per optimizer step",
        "Mean over five minutes, while this machine trains.",
        "s",
        Query('zk0d:train_step_seconds:mean5m{node=~"$node"}', "{{node}} {{instance}}"),
    )
