"""How else this machine is used: its battery, its sessions, other programs, other work on its GPU.

Each function looks once. What cannot be told counts as :data:`None`, and its caller decides.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import psutil

from zk0d.learning.nvidia import nvml

POWER = Path("/sys/class/power_supply")
_LOGIND = (
    *("busctl", "--json=short", "--auto-start=no", "--timeout=2", "get-property"),
    *("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"),
    "IdleHint",
)
_SECONDS = 5.0
#: A desktop holds less of a GPU's memory for its windows; a game or a renderer more.
DESKTOP_BYTES = 2**30


def on_battery(folder: Path = POWER) -> bool:
    """Whether this machine runs on a battery of its own: not on one of a mouse, nor while charged.

    A machine without a battery never does.
    """
    batteries, mains = [], []
    for supply in folder.iterdir() if folder.is_dir() else ():
        kind, scope = _line(supply / "type"), _line(supply / "scope")
        if kind == "Battery" and scope != "Device":
            batteries.append(_line(supply / "status"))
        elif kind in ("Mains", "USB", "Wireless") and scope != "Device":
            mains.append(_line(supply / "online") == "1")
    return "Discharging" in batteries and not any(mains)


def running(names: Collection[str]) -> str:
    """A program of these names that runs, in upper case or lower; empty if there is none.

    A name is that of the program's file, or of the process where that is another.
    """
    wanted = {name.lower(): name for name in names}
    for process in psutil.process_iter(["name", "exe"]) if wanted else ():
        for found in (process.info["name"], Path(process.info["exe"] or "").name):
            if found and found.lower() in wanted:
                return wanted[found.lower()]
    return ""


def is_idle() -> bool | None:
    """Whether all sessions are idle, by logind's word: its own are so after five minutes.

    A machine to which nobody is logged in is idle. ``None`` if logind cannot be asked.
    """
    try:
        said = subprocess.run(_LOGIND, capture_output=True, timeout=_SECONDS, check=True).stdout
        return json.loads(said)["data"] is True
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return None


def gpu_programs(
    is_own: Callable[[psutil.Process], bool], load: Callable[[], Any] = nvml
) -> Iterator[str]:
    """Programs, not our own, that compute on a GPU or hold more of it than a desktop does."""
    library = load()
    if library is None:
        return
    try:
        handles = [
            library.nvmlDeviceGetHandleByIndex(index)
            for index in range(library.nvmlDeviceGetCount())
        ]
    except library.NVMLError:
        return
    for handle in handles:
        for ask, least in (
            (library.nvmlDeviceGetComputeRunningProcesses, 0),
            (library.nvmlDeviceGetGraphicsRunningProcesses, DESKTOP_BYTES),
        ):
            try:
                found = ask(handle)
            except library.NVMLError:
                continue
            for each in found:
                # A driver that does not tell how much says nothing, or the largest number.
                if least and not least <= (each.usedGpuMemory or 0) < 2**60:
                    continue
                try:
                    process = psutil.Process(each.pid)
                    if not is_own(process):
                        yield process.name()
                except psutil.Error:  # it ended, or is another container's
                    continue


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
