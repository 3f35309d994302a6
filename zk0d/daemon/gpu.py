"""Figures of NVIDIA GPUs for Prometheus; none where there is no GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zk0d.daemon.xid import XidCounter
from zk0d.learning.nvidia import nvml

#: A driver that does not answer is asked again after so long.
AGAIN_SECONDS = 60.0
#: A process that has to end waits so long for a scrape.
LAST_SECONDS = 2.0
#: Why a GPU's clocks are lower than they could be, by names of NVIDIA's library.
SLOWED = {
    "power": ("SwPowerCap",),
    "thermal": ("SwThermalSlowdown", "HwThermalSlowdown"),
    "hardware": ("HwSlowdown", "HwPowerBrakeSlowdown"),
}
#: Of a memory's rows, in the order of NVIDIA's library.
ROWS = ("corrected", "uncorrected", "pending", "failed")


class GpuCollector:
    """Reads each GPU at each scrape; a figure that a GPU does not give is left out.

    Parameters
    ----------
    load, clock
        NVIDIA's library, and seconds; replaced in tests.
    folder
        Where the count of Xids is kept over restarts; ``None`` keeps none.
    """

    def __init__(
        self,
        load: Callable[[], Any] = nvml,
        clock: Callable[[], float] = time.monotonic,
        folder: Path | None = None,
    ) -> None:
        self._load = load
        self._clock = clock
        self._xids = XidCounter(folder)
        self._nvml: Any = None
        self._next_load = float("-inf")
        self._lock = threading.Lock()  # of scrapes among themselves

    def describe(self) -> list[Metric]:
        """The families without values."""
        return list(_Families().all)

    def collect(self) -> Iterator[Metric]:
        """The figures, in base units."""
        with self._lock:
            if self._nvml is None and self._clock() >= self._next_load:
                self._next_load, self._nvml = self._clock() + AGAIN_SECONDS, self._load()
                if self._nvml is not None:
                    self._xids.watch(self._nvml)
            n = self._nvml
            self._xids.take()
        if n is None:
            return
        count = self._ask(n, n.nvmlDeviceGetCount)
        if not count:
            self._nvml = None  # the driver went away; a new one must be loaded
            return
        families = _Families()
        for gpu in sorted({*map(str, range(count)), *self._xids.gpus}):
            for xid, times in self._xids.counts(gpu):
                families.xids.add_metric((gpu, str(xid)), times)
        for index in range(count):
            handle = self._ask(n, n.nvmlDeviceGetHandleByIndex, index)
            if handle is not None:
                self._look(n, handle, str(index), families)
        yield from (family for family in families.all if family.samples)

    def take_xids(self) -> None:
        """Keep what the driver has told, before this process ends because of it."""
        if self._lock.acquire(timeout=LAST_SECONDS):  # a scrape may hang at a broken GPU
            try:
                self._xids.take()
            finally:
                self._lock.release()

    def _look(self, n: Any, handle: Any, gpu: str, families: _Families) -> None:
        celsius = self._ask(n, n.nvmlDeviceGetTemperature, handle, n.NVML_TEMPERATURE_GPU)
        milliwatts = self._ask(n, n.nvmlDeviceGetPowerUsage, handle)
        limit = self._ask(n, n.nvmlDeviceGetEnforcedPowerLimit, handle)
        held = self._ask(n, n.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(n, n.nvmlDeviceGetUtilizationRates, handle)
        reasons = self._ask(n, n.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:  # a driver before 535 calls it otherwise
            reasons = self._ask(n, n.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        rows = self._ask(n, n.nvmlDeviceGetRemappedRows, handle)
        if celsius is not None:
            families.temperature.add_metric((gpu,), celsius)
        if milliwatts is not None:
            families.power.add_metric((gpu,), milliwatts / 1000)
        if limit is not None:
            families.limit.add_metric((gpu,), limit / 1000)
        if held is not None:
            families.memory.add_metric((gpu, "used"), held.used)
            families.memory.add_metric((gpu, "total"), held.total)
        if rates is not None:
            families.busy.add_metric((gpu,), rates.gpu / 100)
        if reasons is not None:
            for reason, names in SLOWED.items():
                bits = [getattr(n, f"nvmlClocksEventReason{name}") for name in names]
                families.slowed.add_metric((gpu, reason), any(reasons & bit for bit in bits))
        if rows is not None:
            for kind, value in zip(ROWS, rows, strict=True):
                families.rows.add_metric((gpu, kind), value)
        for kind, counter in (("boot", n.NVML_VOLATILE_ECC), ("life", n.NVML_AGGREGATE_ECC)):
            uncorrected = n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED
            errors = self._ask(n, n.nvmlDeviceGetTotalEccErrors, handle, uncorrected, counter)
            if errors is not None:
                families.ecc.add_metric((gpu, kind), errors)

    @staticmethod
    def _ask(library: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except library.NVMLError:
            return None


class _Families:
    """What a scrape shows, still without values."""

    def __init__(self) -> None:
        gauge = GaugeMetricFamily
        self.temperature = gauge(
            "zk0d_gpu_temperature_celsius", "Temperature of a GPU.", labels=("gpu",)
        )
        self.power = gauge("zk0d_gpu_power_watts", "Power a GPU draws.", labels=("gpu",))
        self.limit = gauge(
            "zk0d_gpu_power_limit_watts", "Power that a GPU may draw.", labels=("gpu",)
        )
        self.memory = gauge(
            "zk0d_gpu_memory_bytes",
            "Memory of a GPU: used, and total.",
            labels=("gpu", "kind"),
        )
        self.busy = gauge(
            "zk0d_gpu_utilization_ratio", "Part of the time that a GPU worked.", labels=("gpu",)
        )
        self.slowed = gauge(
            "zk0d_gpu_slowed",
            "1 while a GPU's clocks are lowered for its power limit (power), its heat (thermal), or"
            " by the card itself or its power supply (hardware).",
            labels=("gpu", "reason"),
        )
        self.ecc = gauge(
            "zk0d_gpu_ecc_uncorrected_errors",
            "Errors of a GPU's memory that it could not correct: since the boot, and in its life.",
            labels=("gpu", "kind"),
        )
        self.rows = gauge(
            "zk0d_gpu_remapped_rows",
            "Rows of a GPU's memory that were replaced after corrected and uncorrected errors; 1 if"
            " one waits for a reset (pending), or could not be replaced (failed).",
            labels=("gpu", "kind"),
        )
        self.xids = CounterMetricFamily(
            "zk0d_gpu_xid_errors",
            "Errors that a GPU's driver reported, by NVIDIA's number (Xid).",
            labels=("gpu", "xid"),
        )

    @property
    def all(self) -> tuple[Metric, ...]:
        """Every family."""
        return tuple(vars(self).values())
