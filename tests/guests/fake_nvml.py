"""A fake of NVIDIA's library for a guest, mounted there in the place of pynvml: one card in a file.

Only a process with CAP_SYS_ADMIN may change it, as the driver has it. A boot resets it.
"""

# ruff: noqa: N802 - the library's names

import json
import pathlib
import time

FOLDER = pathlib.Path("/run/fake-gpu")  #: in memory, so a boot empties it
USUAL = pathlib.Path("/srv/fake-usual")  #: milliwatts after a boot
CARD, HOLD, WAITS = FOLDER / "card.json", FOLDER / "hold", FOLDER / "waits"
CAP_SYS_ADMIN = 21

NVML_SUCCESS = 0
NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION = 3, 4
NVML_FEATURE_DISABLED, NVML_FEATURE_ENABLED = 0, 1


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"error {value}")
        self.value = value


def _card() -> dict[str, int]:
    if CARD.exists():
        return json.loads(CARD.read_text())
    return {"limit": int(USUAL.read_text()), "kept": 0}


def _change(**facts: int) -> None:
    status = pathlib.Path("/proc/self/status").read_text()
    (rights,) = [line.split()[1] for line in status.splitlines() if line.startswith("CapEff")]
    if not int(rights, 16) >> CAP_SYS_ADMIN & 1:
        raise NVMLError(NVML_ERROR_NO_PERMISSION)
    CARD.write_text(json.dumps({**_card(), **facts}))


def nvmlInit() -> None:
    pass


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(handle: int) -> str:
    return "Fake"


def nvmlDeviceGetUUID(handle: int) -> str:
    return "GPU-fake"


def nvmlDeviceGetPowerManagementLimit(handle: int) -> int:
    return _card()["limit"]


def nvmlDeviceGetPowerManagementLimitConstraints(handle: int) -> list[int]:
    return [100_000, 480_000]


def nvmlDeviceGetPersistenceMode(handle: int) -> int:
    return _card()["kept"]


def nvmlDeviceSetPersistenceMode(handle: int, mode: int) -> None:
    _change(kept=mode)


def nvmlDeviceSetPowerManagementLimit(handle: int, limit: int) -> None:
    while HOLD.exists():  # the test kills whoever waits here
        WAITS.touch()
        time.sleep(0.1)
    _change(limit=limit)
