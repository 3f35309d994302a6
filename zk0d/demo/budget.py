"""The run settings with which each simulated task is learned: ``docs/results.md``."""

from __future__ import annotations

from typing import Any, NamedTuple

_STEPS: dict[str, dict[str, Any]] = {
    "soreach": {
        "num-server-rounds": 12,
        "local-steps": 40,
        "initial-lr": 4e-3,
        "eval-rollouts": 20,
    },
    # Grasping takes more precision than touching, so a wider policy, more samples, more rounds.
    "so101": {
        "model-name": "tiny-wide",
        "num-server-rounds": 50,
        "local-steps": 60,
        "batch-size": 64,
        "eval-frequency": 10,
        "eval-rollouts": 10,
    },
}
#: It shows that a policy trains, no more: with a ResNet a step on a CPU costs twenty times as much.
_SHORT: dict[str, Any] = {
    "model-name": "tiny",
    "num-server-rounds": 6,
    "local-steps": 20,
    "batch-size": 8,
    "eval-frequency": 4,
    "initial-lr": 3e-4,
    "warmup-steps": 20,
}
#: What a policy changes of them.
_POLICIES: dict[str, dict[str, Any]] = {
    "act": _SHORT,
    "diffusion": _SHORT,
    "multi_task_dit": _SHORT,
    "xvla": _SHORT,
}


class Episodes(NamedTuple):
    """How many a contributor records, and in how many of each region a policy is measured."""

    recorded: int
    driven: int


#: Physics and pictures make an episode of so101 take seconds where soreach's takes a tenth of one.
EPISODES = {"soreach": Episodes(150, 100), "so101": Episodes(100, 50)}


def run_values(task: str, policy: str = "smolvla") -> dict[str, Any]:
    """Run settings with which the tiny ``policy`` learns ``task``."""
    return {
        "policy": policy,
        "model-name": "tiny",
        "batch-size": 32,
        "initial-lr": 2e-3,
        "weight-decay": 0.01,
        "eval-frequency": 4,
        **_STEPS[task],
        **_POLICIES.get(policy, {}),
    }
