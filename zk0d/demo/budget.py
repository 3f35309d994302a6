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
#: A ResNet's step on a CPU takes twenty times as long as the tiny SmolVLA's, and learns more.
_ACT: dict[str, Any] = {
    "num-server-rounds": 12,
    "local-steps": 20,
    "batch-size": 16,
    "initial-lr": 1e-3,
    "warmup-steps": 20,
}
_DIFFUSION: dict[str, Any] = {
    **_ACT,
    "local-steps": 50,
    "initial-lr": 2e-3,
    "warmup-steps": 50,
}
#: It shows that a policy trains, no more.
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
    "act": _ACT,
    "diffusion": _DIFFUSION,
    "multi_task_dit": _SHORT,
    "xvla": _SHORT,
}


class Episodes(NamedTuple):
    """How many a contributor records, and in how many of each region a policy is measured."""

    recorded: int
    driven: int


#: Physics and pictures make an episode of so101 take seconds where soreach's takes a tenth of one.
EPISODES = {"soreach": Episodes(150, 100), "so101": Episodes(100, 50)}


#: Pixels of a recorded picture's side; a ResNet's work grows with their square.
PICTURES = {"act": 48, "diffusion": 48}
USUAL_PICTURES = 96
#: What larger ones change: over these, ACT learns nothing at the rate above.
_LARGER: dict[str, dict[str, Any]] = {"act": {"initial-lr": 3e-4}}


def picture_side(policy: str) -> int:
    """Pixels of a side of the pictures with which the tiny ``policy`` learns in the demo."""
    return PICTURES.get(policy, USUAL_PICTURES)


def run_values(task: str, policy: str = "smolvla", side: int | None = None) -> dict[str, Any]:
    """Run settings with which the tiny ``policy`` learns ``task``.

    Parameters
    ----------
    side
        Pixels of a side of the recorded pictures; by default the demo's.
    """
    larger = side is not None and side > picture_side(policy)
    return {
        "policy": policy,
        "model-name": "tiny",
        "batch-size": 32,
        "initial-lr": 2e-3,
        "weight-decay": 0.01,
        "eval-frequency": 4,
        **_STEPS[task],
        **_POLICIES.get(policy, {}),
        **(_LARGER.get(policy, {}) if larger else {}),
    }
