"""Figures of NVIDIA GPUs for Prometheus; none where there is no GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from zk0d.learning.nvidia import nvml

#: A driver that does not answer is asked again after so long.
AGAIN_SECONDS = 60.0


class GpuCollector:
    """Reads each GPU at each scrape; a figure that a GPU does not give is left out."""

    def __init__(
        self, load: Callable[[], Any] = nvml, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._load = load
        self._clock = clock
        self._nvml: Any = None
        self._next_load = float("-inf")
        self._lock = threading.Lock()  # of scrapes among themselves

    def describe(self) -> list[Metric]:
        """The families without values."""
        return list(self._families())

    def collect(self) -> Iterator[Metric]:
        """The figures, in base units."""
        with self._lock:
            if self._nvml is None and self._clock() >= self._next_load:
                self._next_load, self._nvml = self._clock() + AGAIN_SECONDS, self._load()
            n = self._nvml
        if n is None:
            return
        temperature, power, memory, busy = self._families()
        count = self._ask(n, n.nvmlDeviceGetCount)
        if not count:
            self._nvml = None  # the driver went away; a new one must be loaded
            return
        for index in range(count):
            handle, gpu = self._ask(n, n.nvmlDeviceGetHandleByIndex, index), str(index)
            if handle is None:
                continue
            celsius = self._ask(n, n.nvmlDeviceGetTemperature, handle, n.NVML_TEMPERATURE_GPU)
            milliwatts = self._ask(n, n.nvmlDeviceGetPowerUsage, handle)
            held = self._ask(n, n.nvmlDeviceGetMemoryInfo, handle)
            rates = self._ask(n, n.nvmlDeviceGetUtilizationRates, handle)
            if celsius is not None:
                temperature.add_metric((gpu,), celsius)
            if milliwatts is not None:
                power.add_metric((gpu,), milliwatts / 1000)
            if held is not None:
                memory.add_metric((gpu, "used"), held.used)
                memory.add_metric((gpu, "total"), held.total)
            if rates is not None:
                busy.add_metric((gpu,), rates.gpu / 100)
        yield from (family for family in (temperature, power, memory, busy) if family.samples)

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, ...]:
        return (
            GaugeMetricFamily(
                "zk0d_gpu_temperature_celsius", "Temperature of a GPU.", labels=("gpu",)
            ),
            GaugeMetricFamily("zk0d_gpu_power_watts", "Power a GPU draws.", labels=("gpu",)),
            GaugeMetricFamily(
                "zk0d_gpu_memory_bytes",
                "Memory of a GPU: used, and total.",
                labels=("gpu", "kind"),
            ),
            GaugeMetricFamily(
                "zk0d_gpu_utilization_ratio", "Part of the time that a GPU worked.", labels=("gpu",)
            ),
        )

    @staticmethod
    def _ask(library: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except library.NVMLError:
            return None
