"""What else a machine is used for, by real files and programs where there are any here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.processes import started, wait_until
from zk0d.daemon import usage


@pytest.mark.parametrize(
    ("supplies", "discharges"),
    [
        ({}, False),
        ({"AC": {"type": "Mains", "online": "1"}}, False),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Charging"}}, False),
        # A mouse's own, and a laptop that draws from both.
        ({"hid-1": {"type": "Battery", "scope": "Device", "status": "Discharging"}}, False),
        (
            {
                "AC": {"type": "Mains", "online": "1"},
                "BAT0": {"type": "Battery", "status": "Discharging"},
            },
            False,
        ),
        (
            {
                "AC": {"type": "Mains", "online": "0"},
                "BAT1": {"type": "Battery", "status": "Discharging"},
            },
            True,
        ),
    ],
)
def test_a_battery(tmp_path: Path, supplies: dict[str, dict[str, str]], discharges: bool) -> None:
    for name, files in supplies.items():
        for file, text in files.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_text(f"{text}\n")
    assert usage.on_battery(tmp_path) is discharges
    assert not usage.on_battery(tmp_path / "none")


def test_a_program_that_runs_is_found_by_its_name(tmp_path: Path) -> None:
    name = "a-long-name-of-a-robots-program"
    program = tmp_path / name
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    assert usage.running([name]) == ""
    with started([program, "600"]):
        wait_until(lambda: usage.running(["no-such", name.upper()]) == name.upper(), "it", 60)
        assert usage.running([]) == ""


LOGIND = """#!/bin/sh
test "$1 $5" = "--json=short org.freedesktop.login1" || exit 1
echo '{"type":"b","data":HINT}'
"""


@pytest.mark.parametrize(("hint", "idle"), [("false", False), ("true", True), ("}", None)])
def test_sessions_are_idle_by_logind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hint: str, idle: bool | None
) -> None:
    """logind is a stand-in here; the guests' tests ask a real one."""
    fake = tmp_path / "busctl"
    fake.write_text(LOGIND.replace("HINT", hint))
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert usage.is_idle() is idle


def test_without_logind_it_is_not_known_whether_a_machine_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert usage.is_idle() is None


# ruff: noqa: N802 - the library's own names
class FakeNvml:
    """Stands for NVIDIA's library, with one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, compute: dict[int, int], graphics: dict[int, int | None]) -> None:
        self._compute, self._graphics = compute, graphics

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return self._of(self._compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        return self._of(self._graphics)

    @staticmethod
    def _of(programs: Any) -> list[Any]:
        return [SimpleNamespace(pid=p, usedGpuMemory=size) for p, size in programs.items()]


def test_programs_on_the_gpu_are_those_that_compute_or_hold_much() -> None:
    with started(["/bin/sleep", "600"]) as other:
        # The programs that tie it to this one come before it.
        name = "sleep"
        wait_until(lambda: psutil.Process(other.pid).name() == name, "it", 60)

        def found(own: bool = False, **programs: Any) -> list[str]:
            library = FakeNvml(programs.get("compute", {}), programs.get("graphics", {}))
            return list(usage.gpu_programs(lambda process: own, lambda: library))

        assert found(compute={other.pid: 1}) == [name]
        assert found(own=True, compute={other.pid: 1}) == []
        assert found(graphics={other.pid: 300 * 2**20}) == [], "a desktop's windows"
        assert found(graphics={other.pid: 3 * 2**30}) == [name]
        assert found(graphics={other.pid: None}) == []
        assert found(compute={2**22 + 5: 1}) == [], "it has ended"
    assert list(usage.gpu_programs(lambda process: False, lambda: None)) == []
