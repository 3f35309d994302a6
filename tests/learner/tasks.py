"""Tasks as a coordinator sends them."""

from __future__ import annotations

from typing import Any

from zk0d.config.run import run_settings
from zk0d.federation.messages import Train
from zk0d.federation.update import Payload
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.statistics import Statistics


def train_task(
    spec: Any,
    weights: Payload,
    statistics: Statistics,
    run: dict[str, Any] | None = None,
    **changes: Any,
) -> Train:
    """A round's task; ``run`` are settings of the run, ``changes`` fields of the task."""
    settings = run_settings({"local-steps": 2, "batch-size": 4, "weight-decay": 0.0, **(run or {})})
    facts: dict[str, Any] = {
        "run": "1",
        "round": 1,
        "spec": spec,
        "base": weights.manifest.sha256,
        "statistics": statistics,
        "statistics_sha256": statistics.sha256,
        "training": settings.training,
        "evaluation": settings.evaluation,
        "first_step": 0,
        "schedule": CosineSchedule(peak=1e-3, end=1e-4, warmup_steps=0, total_steps=10),
        "seed": 0,
        "proximal_mu": 0.0,
        "deadline_seconds": 60.0,
        **changes,
    }
    return Train.model_validate(facts)
