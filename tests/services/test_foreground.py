"""The supervisor where systemd does not run: what its services are told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import hostile
from tests.processes import wait_until
from zk0d.services.foreground import Foreground, Program

TELL = (
    "import json, os, sys, time; print(json.dumps(dict(os.environ)), flush=True); time.sleep(600)"
)


def test_a_service_gets_only_its_own_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hostile.environment(tmp_path / "packages").items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    with Foreground(tmp_path, lambda _: lines.append, restart=False) as services:
        services.start([Program("teller", (sys.executable, "-c", TELL))])
        wait_until(lambda: bool(lines), "its word", 150, services.children)
    hostile.assert_right(json.loads(lines[0]))


def test_a_folder_in_which_a_service_runs_brings_no_packages(tmp_path: Path) -> None:
    folder = hostile.packages(tmp_path / "state")
    lines: list[str] = []
    with Foreground(folder, lambda _: lines.append, restart=False) as services:
        services.start([Program("flower", (sys.executable, "-m", "zk0d.flower.superexec"))])
        wait_until(lambda: not services.children[0].alive, "its end", 150)
        wait_until(lambda: bool(lines), "its word", 150)
    assert "superexec: the first argument is one of" in lines[-1], lines
