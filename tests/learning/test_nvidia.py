"""Why an NVIDIA GPU cannot be used, by fakes of its library and of the kernel's folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest
import torch

from zk0d.errors import UnavailableError
from zk0d.learning import nvidia
from zk0d.learning.policy import pick_device

CARD = ("0x10de", "0x030000")
Machine = Callable[..., None]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A fake: what the kernel and NVIDIA's library say; no PyTorch sees a GPU there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    pci, proc, dev = (tmp_path / name for name in ("pci", "proc", "dev"))
    for name, folder in (("PCI", pci), ("DRIVER", proc / "nvidia"), ("DEVICES", dev)):
        monkeypatch.setattr(nvidia, name, folder)

    def fake(
        *cards: tuple[str, str],
        error: int | None = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        count: int = 0,
        module: bool = False,
        container: bool = False,
        nodes: bool = False,
        kernel_driver: str = "nvidia",
    ) -> None:
        for number, (vendor, kind) in enumerate(cards):
            device = pci / f"0000:0{number}:00.0"
            device.mkdir(parents=True)
            (device / "vendor").write_text(vendor + "\n")
            (device / "class").write_text(kind + "\n")
            (tmp_path / kernel_driver).mkdir(exist_ok=True)
            (device / "driver").symlink_to(tmp_path / kernel_driver)
        for folder, there in ((proc / "nvidia", module), (dev / "nvidiactl", nodes)):
            if there:
                folder.mkdir(parents=True)
        signs = (str(tmp_path),) if container else ()
        monkeypatch.setattr(nvidia, "_CONTAINER_SIGNS", signs)

        def init() -> None:
            if error is not None:
                raise pynvml.NVMLError(error)

        monkeypatch.setattr(pynvml, "nvmlInit", init)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: count)

    return fake


MISMATCH = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH


@pytest.mark.parametrize(
    ("about", "cause", "cure"),
    [
        ({"error": MISMATCH, "module": True}, "the kernel still runs the old one", "reboot"),
        ({"error": MISMATCH}, "the kernel still runs the old one", "reboot"),
        ({"error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}, "not loaded", "reboot"),
        ({}, "no driver of NVIDIA's is installed", "docs/fleet.md"),
        ({"module": True}, "a part of its driver is missing", "reboot"),
        ({"error": pynvml.NVML_ERROR_GPU_IS_LOST}, "GPU is lost", "reboot"),
        ({"error": None}, "there is no GPU", "nvidia-smi"),
        ({"error": None, "count": 1}, "this PyTorch does not use it", "PyTorch's CUDA"),
        ({"container": True, "nodes": True}, "no driver of NVIDIA's", "install"),
    ],
)
def test_an_existing_gpu_is_never_ignored_silently(
    machine: Machine, about: dict[str, object], cause: str, cure: str
) -> None:
    machine(CARD, **about)
    found = nvidia.trouble()
    assert found is not None
    assert cause in found.cause
    assert cure in found.cure
    with pytest.raises(UnavailableError) as auto:
        pick_device("auto")
    assert found.cause in auto.value.message
    assert found.cure in auto.value.message
    assert "or set device to 'cpu'" in auto.value.message
    with pytest.raises(UnavailableError, match="PyTorch sees none") as asked:
        pick_device("cuda")
    assert found.cure in asked.value.message
    assert pick_device("cpu") == torch.device("cpu"), "what somebody asks for"


@pytest.mark.parametrize(
    ("cards", "about"),
    [
        ([], {}),
        ([], {"error": pynvml.NVML_ERROR_DRIVER_NOT_LOADED}),
        ([("0x8086", "0x030000")], {}),  # another maker's
        ([("0x10de", "0x040300")], {}),  # its sound
        ([CARD], {"kernel_driver": "vfio-pci"}),  # a virtual machine has it
        ([CARD], {"container": True, "module": True}),  # it is the host's
    ],
)
def test_without_a_gpu_auto_is_the_cpu(
    machine: Machine, cards: list[tuple[str, str]], about: dict[str, object]
) -> None:
    machine(*cards, **about)
    assert nvidia.trouble() is None
    assert pick_device("auto") == torch.device("cpu")


def test_hidden_gpus_mean_the_cpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(CARD, error=None, count=1)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with pytest.raises(UnavailableError, match="CUDA_VISIBLE_DEVICES is '3'"):
        pick_device("auto")


def test_learner_and_evaluator_refuse_before_they_serve(machine: Machine) -> None:
    from zk0d.config.machine import ClientSettings, ServerSettings
    from zk0d.learner.contributor import Contributor
    from zk0d.learner.evaluator import CoordinatorEvaluator

    machine(CARD, error=MISMATCH)
    with pytest.raises(UnavailableError, match="reboot this machine"):
        Contributor(ClientSettings(name="left"))
    with pytest.raises(UnavailableError, match="reboot this machine"):
        CoordinatorEvaluator(ServerSettings())


def test_an_unusable_nvidia_library_is_none(machine: Machine) -> None:
    machine(CARD, error=MISMATCH)
    assert nvidia.nvml() is None
    machine(error=None, count=0)
    assert nvidia.nvml() is None
    machine(error=None, count=2)
    assert nvidia.nvml() is pynvml
