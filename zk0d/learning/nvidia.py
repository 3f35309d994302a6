"""NVIDIA's GPUs of this machine, without PyTorch: their library, and why none can be used."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("zk0d")

PCI, DRIVER, DEVICES = Path("/sys/bus/pci/devices"), Path("/proc/driver/nvidia"), Path("/dev")
_VENDOR, _DISPLAY = "0x10de", "0x03"  #: of a PCI device: NVIDIA; the class of display controllers
_GIVEN_AWAY = "vfio-pci"  #: the driver of a device that belongs to a virtual machine
_CONTAINER_SIGNS = ("/run/.containerenv", "/.dockerenv", "/run/systemd/container")


@dataclass(frozen=True)
class Trouble:
    """Why an NVIDIA GPU cannot be used, and what to do."""

    cause: str
    cure: str


def nvml() -> Any:
    """NVIDIA's library, ready; ``None`` without one, or without a GPU."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml if pynvml.nvmlDeviceGetCount() else None
    except pynvml.NVMLError as error:
        log.debug("no GPU figures: %s", error)
        return None


def trouble() -> Trouble | None:
    """Why PyTorch sees no GPU on a machine that has one of NVIDIA's; ``None`` if it has none."""
    import pynvml

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):  # somebody asks for the CPU
        return None
    status, said = pynvml.NVML_SUCCESS, ""
    try:
        pynvml.nvmlInit()
        there = pynvml.nvmlDeviceGetCount() > 0
    except pynvml.NVMLError as error:
        status, said, there = error.value, str(error), False
    if status == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return Trouble(
            "its driver was upgraded, and the kernel still runs the old one", "reboot this machine"
        )
    if there:
        chosen = f" (CUDA_VISIBLE_DEVICES is '{hidden}')" if hidden else ""
        return Trouble(
            f"its driver works, and this PyTorch does not use it{chosen}",
            "zk0bot doctor says which driver and which CUDA; install a driver that is as new as"
            " PyTorch's CUDA, or a PyTorch that is not for the CPU alone",
        )
    if not _has_card():
        return None
    if _is_the_hosts():
        log.warning("this container was given no GPU of its host's: computing on the CPU")
        return None
    if status == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND and not DRIVER.exists():
        return Trouble("no driver of NVIDIA's is installed", "install one (docs/fleet.md)")
    if status in (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND):
        return Trouble(
            "a part of its driver is missing or not loaded",
            "reboot this machine; if that does not help, install the driver again, and see why the"
            " kernel does not load it (journalctl -k)",
        )
    return Trouble(
        f"its driver says: {said or 'there is no GPU'}",
        "see nvidia-smi and journalctl -k, and reboot this machine",
    )


def _has_card() -> bool:
    return any(map(_is_ours, PCI.glob("*"))) or DRIVER.exists()


def _is_ours(device: Path) -> bool:
    """Whether a PCI device is an NVIDIA GPU that no virtual machine was given."""
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    if vendor != _VENDOR or not kind.startswith(_DISPLAY):
        return False
    return (device / "driver").resolve().name != _GIVEN_AWAY


def _is_the_hosts() -> bool:
    """Whether this is a container that was given no GPU: it sees its host's cards all the same."""
    if any(DEVICES.glob("nvidia*")):
        return False
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(map(os.path.exists, _CONTAINER_SIGNS))
