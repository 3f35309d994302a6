"""A round's energy, by a driver that is a stand-in."""

from __future__ import annotations

import pytest
import torch

from zk0d.learner.energy import EnergyMeter

CUDA = torch.device("cuda")


class Driver:
    """NVIDIA's library with one GPU, whose counter (millijoules) the test sets."""

    class NVMLError(Exception):
        pass

    def __init__(self, *counts: int | None) -> None:
        self.counts = list(counts)

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802 - the library's
        if name != "GPU-1":
            raise self.NVMLError
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        count = self.counts.pop(0)
        if count is None:
            raise self.NVMLError
        return count


def test_energy_is_the_difference_of_the_drivers_counter() -> None:
    meter = EnergyMeter(CUDA, library=Driver(5_000, 11_500), name="GPU-1")
    assert meter.joules() == 6.5


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ((None,), "GPU-1"),
        ((5_000, None), "GPU-1"),
        ((5_000, 100), "GPU-1"),
        ((5_000, 6_000), "MIG-1"),
    ],
    ids=["old GPU", "driver gone", "counter began again", "part of a GPU"],
)
def test_energy_that_is_not_counted_is_unknown(counts: tuple[int | None, ...], name: str) -> None:
    assert EnergyMeter(CUDA, library=Driver(*counts), name=name).joules() is None


def test_without_a_gpu_no_driver_is_asked() -> None:
    assert EnergyMeter(torch.device("cpu"), library=Driver(), name="GPU-1").joules() is None
