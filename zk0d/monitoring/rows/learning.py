"""Whether the policy learns."""

from __future__ import annotations

from zk0d.monitoring.panels import BLUE, GREEN, ORANGE, RED, Panel, Query, graph, number

TITLE = "Does it learn?"


def panels() -> list[Panel]:
    """Top left to bottom right."""
    return [
        run(),
        progress(),
        against_baseline(),
        since_commit(),
        rounds_without_gain(),
        online(),
        policy_loss(),
        train_loss(),
        success(),
        agreement(),
    ]


def run() -> Panel:
    return number(
        "Run",
        "State of the newest run. zk0bot status says why it failed or waits.",
        "none",
        Query(
            'max(1 * zk0d_run_state{state="running"} or 2 * zk0d_run_state{state="finished"}'
            ' or 3 * zk0d_run_state{state="failed"} or 4 * zk0d_run_state{state="stopped"}'
            ' or 5 * zk0d_run_state{state="waiting"}'
            " or 0 * zk0d_run_rounds)"
        ),
        words={
            "0": ("none yet", BLUE),
            "1": ("running", GREEN),
            "2": ("finished", BLUE),
            "3": ("failed", RED),
            "4": ("stopped", ORANGE),
            "5": ("waiting", ORANGE),
        },
    )


def progress() -> Panel:
    return number(
        "Rounds done",
        "Committed rounds as a share of the planned ones.",
        "percentunit",
        Query("max(zk0d_round / (zk0d_run_rounds > 0) or 0 * zk0d_round)"),
        below=BLUE,
    )


def against_baseline() -> Panel:
    return number(
        "Loss against the start",
        "Held-out loss as a share of the loss before training: below 100 % the policy learned,"
        " above it got worse.",
        "percentunit",
        Query("avg(zk0d_policy_loss / zk0d_policy_loss_baseline)"),
        limits=((0.9, ORANGE), (1.0, RED)),
    )


def since_commit() -> Panel:
    return number(
        "Last commit",
        "Time since the last commit. Orange: the run is under way and committed no round for two"
        " hours.",
        "s",
        Query(
            "max(time() - (zk0d_last_round_committed_timestamp_seconds > 0)"
            " or 0 * zk0d_last_round_committed_timestamp_seconds)"
        ),
        limits=((7200, ORANGE),),
    )


def rounds_without_gain() -> Panel:
    return number(
        "Evaluations since the best",
        "Evaluations without a new lowest loss. The alert fires at 5.",
        "short",
        Query("max(zk0d_evaluations_since_best)"),
        limits=((3, ORANGE), (5, RED)),
    )


def online() -> Panel:
    return number(
        "Nodes online",
        "Nodes that the SuperLink counts online now.",
        "short",
        Query('sum(zk0d_nodes{state="online"})', "online"),
        limits=((1, GREEN),),
        below=RED,
    )


def policy_loss() -> Panel:
    return graph(
        "Policy loss by dataset",
        "Loss on the coordinator's held-out recordings; 'start' is the loss before training. The"
        " loss should fall and stay below its start.",
        "none",
        Query("zk0d_policy_loss", "{{dataset}}"),
        Query("zk0d_policy_loss_baseline", "{{dataset}}, start"),
        points=True,
    )


def train_loss() -> Panel:
    return graph(
        "Training loss by node",
        "Each node's mean loss over its last round, on its own recordings. One node far above the"
        " others has harder, or broken, recordings.",
        "none",
        Query('zk0d_train_loss{node=~"$node"}', "{{node}}"),
        points=True,
    )


def success() -> Panel:
    return graph(
        "Success in closed loop",
        "Share of a simulator's episodes in which the policy did the task. Losses are only a proxy"
        " for this.",
        "percentunit",
        Query("zk0d_success_ratio", "{{task}}"),
        points=True,
        limits=((0.5, ORANGE), (0.8, GREEN)),
        below=RED,
    )


def agreement() -> Panel:
    return graph(
        "Agreement of the updates",
        "Norm of the combined update over the mean norm of the nodes' updates, and the cosine of"
        " each node's update and the combined one. Near 1 all pull the same way. At 1/sqrt(nodes)"
        " the updates have nothing in common, below it they cancel: drift-correction helps.",
        "none",
        Query("max(zk0d_update_agreement)", "all"),
        Query('zk0d_update_cosine{node=~"$node"}', "{{node}}"),
        points=True,
        least=None,
    )
