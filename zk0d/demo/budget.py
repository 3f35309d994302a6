"""The run settings with which each simulated task is learned: ``docs/how-the-demo-learns.md``."""

from __future__ import annotations

from typing import Any

_STEPS: dict[str, dict[str, Any]] = {
    "soreach": {"num-server-rounds": 16, "local-steps": 60, "eval-rollouts": 20},
    # Grasping takes more precision than touching, and an episode more frames.
    "so101": {"num-server-rounds": 20, "local-steps": 100, "eval-rollouts": 10},
}
# ACT's ResNet costs twenty times as much per step on a CPU; it shows that ACT trains, no more.
_ACT: dict[str, Any] = {
    "policy": "act",
    "num-server-rounds": 6,
    "local-steps": 20,
    "batch-size": 8,
    "initial-lr": 3e-4,
}


def run_values(task: str, policy: str = "smolvla") -> dict[str, Any]:
    """Run settings with which the tiny ``policy`` learns ``task``."""
    return {
        "policy": "smolvla",
        "model-name": "tiny",
        "batch-size": 32,
        "initial-lr": 2e-3,
        "weight-decay": 0.01,
        "eval-frequency": 4,
        **_STEPS[task],
        **(_ACT if policy == "act" else {}),
    }
