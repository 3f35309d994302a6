"""What a learner counts. It has no network: the SuperExec beside it shows these to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from zk0d.daemon.gpu import GpuCollector
from zk0d.daemon.metrics import Metrics

CONTENT_TYPE = CONTENT_TYPE_LATEST


class LearnerMetrics:
    """The figures of one learner. None of these takes a lock that training waits for."""

    def __init__(self, metrics: Metrics, kinds: Iterable[str]) -> None:
        self._metrics = metrics
        self._steps = metrics.counter("train_steps", "Optimizer steps taken.")
        self._pace = metrics.gauge(
            "train_step_seconds", "Seconds per optimizer step, over the newest ones."
        )
        self._busy = metrics.gauge("learner_busy", "1 while a task is worked on.")
        self._loaded = metrics.gauge("policy_loaded", "1 if a policy is loaded.")
        self._frames = metrics.gauge("frames", "Frames of the recordings.", ("dataset",))
        self._episodes = metrics.gauge("episodes", "Episodes of the recordings.", ("dataset",))
        self._tasks = metrics.counter("tasks", "Tasks by how they ended.", ("kind", "result"))
        for kind in kinds:
            self._tasks.labels(kind, "done").inc(0)
        for gauge in (self._pace, self._busy, self._loaded):
            gauge.set(0)
        metrics.collect(GpuCollector())
        self._step, self._at = 0, 0.0

    def began(self) -> None:
        """A task begins."""
        self._busy.set(1)
        self._step, self._at = 0, time.monotonic()

    def progress(self, event: Mapping[str, Any]) -> None:
        """A task tells how far it is."""
        if "step" not in event:
            return
        now = time.monotonic()
        steps = event["step"] - self._step
        if steps > 0:
            self._steps.inc(steps)
            # Before the first of them policy and caches were loaded.
            if self._step:
                self._pace.set((now - self._at) / steps)
        self._step, self._at = event["step"], now

    def ended(self, kind: str, result: str) -> None:
        """A task is over."""
        self._busy.set(0)
        self._tasks.labels(kind, result).inc()

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Take over what the learner says of itself."""
        self._loaded.set(1 if facts.get("policy") else 0)
        for uri, summary in facts.get("datasets", {}).items():
            self._frames.labels(uri).set(summary["frames"])
            self._episodes.labels(uri).set(summary["episodes"])

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._metrics.registry)
