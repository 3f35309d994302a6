"""Figures of NVIDIA GPUs for Prometheus; none where there is no GPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

log = logging.getLogger("zk0d")


def nvml() -> Any:
    """NVIDIA's library, ready; ``None`` without one, or without a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except pynvml.NVMLError as error:
        log.debug("no GPU figures: %s", error)
        return None


class GpuCollector:
    """Reads each GPU at each scrape; a figure that a GPU does not give is left out."""

    def __init__(self, load: Callable[[], Any] = nvml) -> None:
        self._load = load
        self._nvml: Any = None
        self._loaded = False
        self._lock = threading.Lock()  # of scrapes among themselves

    def describe(self) -> list[Metric]:
        """The families without values."""
        return list(self._families())

    def collect(self) -> Iterator[Metric]:
        """The figures, in base units."""
        with self._lock:
            if not self._loaded:
                self._loaded, self._nvml = True, self._load()
        if self._nvml is None:
            return
        temperature, power, memory, busy = self._families()
        n = self._nvml
        for index in range(self._ask(n.nvmlDeviceGetCount) or 0):
            handle, gpu = self._ask(n.nvmlDeviceGetHandleByIndex, index), str(index)
            if handle is None:
                continue
            celsius = self._ask(n.nvmlDeviceGetTemperature, handle, n.NVML_TEMPERATURE_GPU)
            milliwatts = self._ask(n.nvmlDeviceGetPowerUsage, handle)
            held = self._ask(n.nvmlDeviceGetMemoryInfo, handle)
            rates = self._ask(n.nvmlDeviceGetUtilizationRates, handle)
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

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None
