"""Which of this machine's NVIDIA GPUs a learner uses, without PyTorch and without CUDA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zk0d.errors import ConfigError, UnavailableError


@dataclass(frozen=True)
class Gpu:
    """A GPU as NVIDIA's library names it; ``index`` is nvidia-smi's."""

    index: int
    handle: Any
    name: str
    uuid: str

    def __str__(self) -> str:
        return f"GPU {self.index} ({self.name})"


def gpus(library: Any) -> list[Gpu]:
    """Every GPU, in the order of nvidia-smi; :class:`UnavailableError` if one does not answer."""
    found = []
    for index in range(library.nvmlDeviceGetCount()):
        try:
            handle = library.nvmlDeviceGetHandleByIndex(index)
            name, uuid = library.nvmlDeviceGetName(handle), library.nvmlDeviceGetUUID(handle)
        except library.NVMLError as error:
            raise UnavailableError(
                f"GPU {index} of this machine does not answer ({error}); see nvidia-smi and"
                " journalctl -k, and reboot this machine."
            ) from None
        found.append(Gpu(index, handle, _text(name), _text(uuid)))
    return found


def chosen_gpu(library: Any, device: str, environment: Mapping[str, str]) -> Gpu:
    """The GPU of one of the learner's devices.

    Parameters
    ----------
    device
        'auto', 'cuda' or 'cuda:N'.
    environment
        The learner's: ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` count.

    Raises
    ------
    ConfigError
        If there is no such GPU, or it is not known which one CUDA means.
    UnavailableError
        If a GPU does not answer.
    """
    there = gpus(library)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    words = None if visible is None else [word.strip() for word in visible.split(",")]
    number = int(device.partition(":")[2] or 0)
    if words is not None and number < len(words) and words[number].startswith("GPU-"):
        # The library's own name of it, which may be cut short.
        named = [gpu for gpu in there if gpu.uuid.startswith(words[number])]
        if len(named) == 1:
            return named[0]
    elif words is None or (number < len(words) and words[number].isdigit()):
        index = number if words is None else int(words[number])
        if index < len(there):
            _check_order(there, environment)
            return there[index]
    among = "" if visible is None else f" among CUDA_VISIBLE_DEVICES ('{visible}')"
    raise ConfigError(
        f"the learner is to use '{device}', and this machine has no such whole GPU{among}; it has"
        f" {', '.join(map(str, there))}."
    )


def _check_order(there: list[Gpu], environment: Mapping[str, str]) -> None:
    """CUDA counts the fastest GPU as the first, which only CUDA itself knows."""
    alike = len({gpu.name for gpu in there}) <= 1
    if alike or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return
    raise ConfigError(
        f"learner.device: this machine's GPUs differ ({', '.join(map(str, there))}), and CUDA"
        " counts them by their speed; let it count as nvidia-smi does: systemctl edit zk0d-learner"
        " and write [Service] and Environment=CUDA_DEVICE_ORDER=PCI_BUS_ID."
    )


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
