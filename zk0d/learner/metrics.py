"""What a learner counts. It has no network: the SuperExec beside it shows these to Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from zk0d.daemon.gpu import GpuCollector
from zk0d.daemon.metrics import Metrics

CONTENT_TYPE = CONTENT_TYPE_LATEST


class LearnerMetrics:
    """The figures of one learner. None of these takes a lock that training waits for.

    Parameters
    ----------
    state
        Where what is counted over restarts is kept; ``None`` keeps nothing.
    """

    def __init__(self, metrics: Metrics, kinds: Iterable[str], state: Path | None = None) -> None:
        self._metrics = metrics
        self._steps = metrics.counter("train_steps", "Optimizer steps taken.")
        # Progress comes for several steps at once: a histogram would be one of means. Of two
        # counters any window gives seconds per step, and the sum is what training cost.
        self._seconds = metrics.counter("train_seconds", "Time spent in optimizer steps.")
        self._bytes = metrics.counter(
            "task_bytes", "Bytes of tasks and their results.", ("direction",)
        )
        self._task_seconds = metrics.counter(
            "task_seconds", "Time spent on tasks, with any result.", ("kind",)
        )
        self._progress = metrics.gauge(
            "learner_last_progress_timestamp_seconds",
            "When a task last began, made progress or ended.",
        )
        self._busy = metrics.gauge("learner_busy", "1 while the learner works on a task.")
        self._loaded = metrics.gauge("policy_loaded", "1 if a policy is loaded.")
        self._frames = metrics.gauge("frames", "Frames of the recordings.", ("dataset",))
        self._episodes = metrics.gauge("episodes", "Episodes of the recordings.", ("dataset",))
        self._tasks = metrics.counter("tasks", "Tasks by result.", ("kind", "result"))
        for kind in kinds:
            self._tasks.labels(kind, "done")
            self._task_seconds.labels(kind)
        self._received, self._sent = self._bytes.labels("received"), self._bytes.labels("sent")
        self._gpus = GpuCollector(folder=state)
        metrics.collect(self._gpus)
        self._step, self._trained, self._began = 0, 0.0, 0.0

    def began(self) -> None:
        """A task begins."""
        self._busy.set(1)
        self._progress.set_to_current_time()
        self._step, self._trained, self._began = 0, 0.0, time.monotonic()

    def received(self, count: int) -> None:
        """Bytes of a task came."""
        self._received.inc(count)

    def sent(self, count: int) -> None:
        """Bytes of a result are sent."""
        self._sent.inc(count)

    def progress(self, event: Mapping[str, Any]) -> None:
        """A task tells how far it is."""
        self._progress.set_to_current_time()
        if "step" not in event:
            return
        self._steps.inc(max(0, event["step"] - self._step))
        self._seconds.inc(max(0.0, event["seconds"] - self._trained))
        self._step, self._trained = event["step"], event["seconds"]

    def ended(self, kind: str, result: str) -> None:
        """A task is over."""
        self._busy.set(0)
        self._progress.set_to_current_time()
        self._task_seconds.labels(kind).inc(time.monotonic() - self._began)
        self._tasks.labels(kind, result).inc()

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Take over what the learner says of itself."""
        self._loaded.set(1 if facts.get("policy") else 0)
        for uri, summary in facts.get("datasets", {}).items():
            self._frames.labels(uri).set(summary["frames"])
            self._episodes.labels(uri).set(summary["episodes"])

    def gpu_failed(self) -> None:
        """Keep what the driver told of a GPU that ends this process."""
        self._gpus.take_xids()

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._metrics.registry)
