"""``zk0d gpu-power``: the power limit that the owner gives the learner's GPU.

It ends at once, so nothing that could be killed stays. What the GPU had before lies on disk before
anything is changed; systemd calls this program again when the unit ends, however it ended.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zk0d.config.machine import ClientSettings
from zk0d.daemon.notify import Notify
from zk0d.errors import ConfigError, UnavailableError, Zk0dError
from zk0d.learning.chosen_gpu import Gpu, chosen_gpu, gpus
from zk0d.learning.nvidia import Trouble, nvml, trouble
from zk0d.machine.hold import boot_id
from zk0d.machine.roles import service
from zk0d.machine.state import read_json, write_json
from zk0d.machine.units import systemctl

log = logging.getLogger("zk0d")

KEY = "limits.gpu-power-watts"
UNIT = f"{service('gpu-power').unit}.service"
#: Where systemd makes the unit's folder.
DEFAULT_STATE = Path("/var/lib/zk0d/gpu-power")
FILE = "before.json"
VERSION = 1
AS_IT_IS = f"the GPU's power limit is as it was ({KEY} is 0)"


@dataclass(frozen=True)
class Before:
    """What a GPU had before it was changed, in milliwatts, and what it was to get.

    Parameters
    ----------
    kept
        Whether its driver kept settings while no program used it (persistence mode).
    """

    uuid: str
    limit: int
    ours: int
    kept: bool


class PowerLimit:
    """Sets the limit of the learner's GPUs, and puts back what they had.

    Parameters
    ----------
    folder
        Where that is noted, with the boot: a boot resets a GPU, so an older note counts no more.
    load, trouble, boot
        NVIDIA's library, why there is none, and this boot; replaced in tests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        load: Callable[[], Any] = nvml,
        trouble: Callable[[], Trouble | None] = trouble,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._file = folder / FILE
        self._load = load
        self._trouble = trouble
        self._boot = boot

    def set(self, devices: Sequence[str], watts: int, environment: Mapping[str, str]) -> str:
        """Give each of the learner's GPUs its limit; 0 puts back what they had.

        Parameters
        ----------
        devices, environment
            The learner's.

        Returns
        -------
        What holds now, in a sentence.

        Raises
        ------
        ConfigError
            If a GPU does not take the limit, or there is none; nothing was changed.
        UnavailableError
            If the driver does not work.
        """
        if watts == 0:
            return self.restore() or AS_IT_IS
        library = self._library(devices, watts)
        chosen = [chosen_gpu(library, device, environment) for device in devices]
        for gpu in chosen:
            check_bounds(library, gpu, watts)
        self.restore()
        befores = [self._before(library, gpu, watts) for gpu in chosen]
        # First on disk: whoever kills this process leaves a note of what is to be put back.
        noted = {
            "version": VERSION,
            "boot": self._boot(),
            "gpus": [asdict(each) for each in befores],
        }
        write_json(self._file, noted, durable=True)
        for gpu, before in zip(chosen, befores, strict=True):
            try:
                if not before.kept:
                    # Without it the driver forgets the limit once no program uses the GPU.
                    library.nvmlDeviceSetPersistenceMode(gpu.handle, library.NVML_FEATURE_ENABLED)
                library.nvmlDeviceSetPowerManagementLimit(gpu.handle, before.ours)
            except library.NVMLError as error:
                self.restore()
                raise _refused(library, gpu, watts, error) from None
        had = ", ".join(f"{before.limit / 1000:g} W" for before in befores)
        return f"{_names(chosen)} may draw {watts} W ({KEY}); before it was {had}"

    def restore(self) -> str:
        """Put back what the GPUs had, if this program changed them; what holds then, or nothing.

        A limit that somebody else has set since stays.

        Raises
        ------
        UnavailableError
            If the driver does not do it; the next start or stop tries again.
        """
        befores = self._noted()
        if not befores:
            self._file.unlink(missing_ok=True)
            return ""
        library = self._load()
        if library is None:
            raise UnavailableError(
                "NVIDIA's driver does not answer, so the GPU's limit of"
                f" {befores[0].limit / 1000:g} W is not put back yet; systemctl restart {UNIT}"
                " tries again."
            )
        there = {gpu.uuid: gpu for gpu in gpus(library)}
        said, failed = [], []
        for before in befores:
            if (gpu := there.get(before.uuid)) is None:
                continue
            watts = f"{before.limit / 1000:g}"
            try:
                if library.nvmlDeviceGetPowerManagementLimit(gpu.handle) == before.ours:
                    library.nvmlDeviceSetPowerManagementLimit(gpu.handle, before.limit)
                    said.append(f"{gpu} may draw {watts} W again")
                if not before.kept:
                    library.nvmlDeviceSetPersistenceMode(gpu.handle, library.NVML_FEATURE_DISABLED)
            except library.NVMLError as error:
                failed.append(
                    f"{gpu}: its limit of {watts} W is not put back ({error}); nvidia-smi -i"
                    f" {gpu.index} -pl {watts} does it, and so does a reboot."
                )
        if failed:  # the others have theirs all the same
            raise UnavailableError(failed[0])
        self._file.unlink(missing_ok=True)
        return "; ".join(said)

    def _noted(self) -> list[Before]:
        """What this boot's GPUs had before; empty if they are as they were."""
        said = read_json(self._file)
        try:
            befores = [Before(**each) for each in said["gpus"]]
            return befores if said["boot"] == self._boot() else []
        except (AttributeError, KeyError, TypeError):
            return []

    def _library(self, devices: Sequence[str], watts: int) -> Any:
        if "cpu" in devices:
            raise ConfigError(
                f"{KEY} is {watts}, and learner.device is 'cpu': no GPU of this machine is used;"
                f" set {KEY} to 0."
            )
        library = self._load()
        if library is None:
            if found := self._trouble():
                raise UnavailableError(
                    f"{KEY}: this machine's NVIDIA GPU cannot be used ({found.cause});"
                    f" {found.cure}."
                )
            raise ConfigError(
                f"{KEY} is {watts}, and this machine shows no NVIDIA GPU; set it to 0."
            )
        return library

    @staticmethod
    def _before(library: Any, gpu: Gpu, watts: int) -> Before:
        try:
            limit = library.nvmlDeviceGetPowerManagementLimit(gpu.handle)
        except library.NVMLError as error:
            raise _refused(library, gpu, watts, error) from None
        return Before(gpu.uuid, limit, watts * 1000, _keeps(library, gpu))


def _names(listed: Sequence[Gpu]) -> str:
    return " and ".join(map(str, listed))


def check_bounds(library: Any, gpu: Gpu, watts: int) -> None:
    """Refuse with :class:`ConfigError` a limit that this GPU does not take."""
    try:
        least, most = library.nvmlDeviceGetPowerManagementLimitConstraints(gpu.handle)
    except library.NVMLError as error:
        raise _refused(library, gpu, watts, error) from None
    if not least <= watts * 1000 <= most:
        raise ConfigError(
            f"{KEY} is {watts}, and {gpu} takes {least / 1000:g} to {most / 1000:g} W; choose a"
            " limit between them, or 0."
        )


def _keeps(library: Any, gpu: Gpu) -> bool:
    try:
        mode = library.nvmlDeviceGetPersistenceMode(gpu.handle)
    except library.NVMLError:  # a system without such a mode
        return True
    return bool(mode == library.NVML_FEATURE_ENABLED)


def _refused(library: Any, gpu: Gpu, watts: int, error: Any) -> Zk0dError:
    if error.value == library.NVML_ERROR_NOT_SUPPORTED:
        return ConfigError(
            f"{KEY} is {watts}, and the driver sets no limit for {gpu}, as for most laptops; set"
            f" {KEY} to 0, and use limits.power-share."
        )
    if error.value == library.NVML_ERROR_NO_PERMISSION:
        return ConfigError(
            f"{KEY} is {watts}, and the driver does not let root set it for {gpu} here, as in a"
            f" container; set the limit on the host (nvidia-smi -pl {watts}) and {KEY} to 0."
        )
    return UnavailableError(
        f"{KEY}: the driver did not set {watts} W for {gpu} ({error}); nvidia-smi and"
        " journalctl -k say more."
    )


def learners_environment() -> dict[str, str]:
    """What the learner's unit has in its environment, a person's drop-ins included."""
    unit = f"{service('learner').unit}.service"
    said = systemctl("show", unit, "--property=Environment", "--value").stdout
    return dict(word.split("=", 1) for word in shlex.split(said) if "=" in word)


def run(config: Path, restore: bool = False) -> None:
    """Set the limit that the settings name, or put back what the GPU had; then end."""
    notify = Notify()
    limit = PowerLimit(Path(os.environ.get("STATE_DIRECTORY", DEFAULT_STATE)))
    try:
        if restore:  # whatever the settings say, or whether they can be read
            said = limit.restore()
        else:
            settings = ClientSettings.load(config)
            watts = settings.limits.gpu_power_watts
            said = limit.set(
                settings.learner.all_devices, watts, learners_environment() if watts else {}
            )
    except Zk0dError as error:
        notify.status(error.message)
        raise
    if said:
        notify.status(said)
        log.info("%s", said)


def without_unit(settings: ClientSettings) -> str:
    """What a person is told where the unit does not run; empty if nothing is asked of it."""
    if not settings.limits.gpu_power_watts:
        return ""
    return (
        f"{KEY} has no effect here: only the system's service {UNIT} may set it, by the machine's"
        " own client.toml; set it to 0, and use limits.power-share."
    )
