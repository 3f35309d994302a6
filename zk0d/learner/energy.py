"""What a round takes of a GPU's energy, by the driver's own counter."""

from __future__ import annotations

from typing import Any

import torch

from zk0d.learning.nvidia import nvml


def _uuid(device: torch.device) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


class EnergyMeter:
    """Counts from when it is made. What other programs do on the GPU counts, too.

    Parameters
    ----------
    library, name
        NVIDIA's library and the GPU's name in it; replaced in tests.
    """

    def __init__(
        self, device: torch.device, *, library: Any = None, name: str | None = None
    ) -> None:
        self._nvml: Any = None
        self._handle: Any = None
        self._began: float | None = None
        if device.type != "cuda":
            return
        self._nvml = library or nvml()
        if self._nvml is None:
            return
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(name or _uuid(device))
        except self._nvml.NVMLError:  # a part of a GPU (MIG) has no counter of its own
            return
        self._began = self._count()

    def joules(self) -> float | None:
        """Since it began; ``None`` without an NVIDIA GPU that counts."""
        now = self._count() if self._began is not None else None
        if now is None or self._began is None or now < self._began:
            return None  # a driver that was loaded again counts from 0
        return now - self._began

    def _count(self) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except self._nvml.NVMLError:
            return None
