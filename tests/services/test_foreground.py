"""The supervisor where systemd does not run: what its services are told."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests import hostile
from tests.processes import wait_until
from tests.services.lab import lab
from zk0d.machine.roles import Role
from zk0d.services.foreground import Foreground, Program
from zk0d.services.standalone import programs

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


#: A service of a few lines: it is ready at once, later, or never, and then says that it lives.
SERVICE = """
import sys, time
from zk0d.daemon.notify import Notify
how, notify = sys.argv[1], Notify()
print(notify.watchdog_seconds, flush=True)
if how == "asks for time":
    notify.extend_start(600)
if how in ("lives", "falls silent"):
    notify.ready()
while True:
    if how == "lives":
        notify.alive()
    time.sleep(0.02)
"""


#: A busy machine takes seconds until a service says anything.
ASKED_WITHIN = 5.0


def service(how: str, starts_within: float = 0.0, watchdog: float = 0.0) -> Program:
    argv = (sys.executable, "-c", SERVICE, how)
    return Program(how, argv, starts_within=starts_within, watchdog=watchdog)


@pytest.mark.slow
def test_a_service_without_progress_is_started_again(tmp_path: Path) -> None:
    """As systemd does it by the units' WatchdogSec and TimeoutStartSec."""
    listed = [
        service("falls silent", watchdog=0.5, starts_within=600.0),
        service("never ready", watchdog=600.0, starts_within=0.5),
        # Either would end these within the time that the two above need.
        service("lives", watchdog=30.0, starts_within=600.0),
        service("asks for time", watchdog=600.0, starts_within=ASKED_WITHIN),
        service("is not watched"),
    ]
    lines: dict[str, list[str]] = {each.name: [] for each in listed}
    with Foreground(tmp_path, lambda name: lines[name].append, restart=True) as services:
        services.start(listed)

        def started_again() -> bool:
            services.look()
            return all(len(lines[each.name]) > 2 for each in listed[:2])

        began = time.monotonic()
        wait_until(started_again, "two starts more", 150, interval=0.02)
        over = began + 2 * ASKED_WITHIN
        wait_until(lambda: started_again() and time.monotonic() > over, "its time to be over", 150)
        starts = {seen.name: seen.restarts for seen in services.seen()}
        ends = {name: process.child.last_end for name, process in services.processes.items()}
    assert {name for name, count in starts.items() if count} == {"falls silent", "never ready"}
    reasons = {name: end.reason for name, end in ends.items() if end is not None}
    assert reasons == {"falls silent": "watchdog", "never ready": "start took too long"}
    assert set(lines["lives"]) == {"30.0"}
    assert set(lines["is not watched"]) == {"None"}


def test_a_silent_service_is_left_alone_where_none_is_started_again(tmp_path: Path) -> None:
    lines: list[str] = []
    with Foreground(tmp_path, lambda _: lines.append, restart=False) as services:
        services.start([service("falls silent", watchdog=1e-6)])
        services.wait_until_ready()
        services.look()
        assert services.ready
    assert lines == ["None"]


@pytest.mark.slow
def test_a_real_service_that_hangs_is_started_again(tmp_path: Path) -> None:
    with lab(tmp_path, Path("/nothing")) as made:
        found = {each.name: each for each in programs(Role.SERVER, made.server_toml)}
        watched = replace(found["superlink"], watchdog=4.0)
        said: list[str] = []
        with Foreground(tmp_path, lambda _: said.append, restart=True) as services:
            services.start([watched])
            services.wait_until_ready()
            [process] = services.processes.values()
            pid = process.child.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)

            def is_another() -> bool:
                services.look()
                return process.child.pid not in (pid, None) and services.ready

            wait_until(is_another, "another process", 150)
            assert process.child.last_end is not None
            assert process.child.last_end.reason == "watchdog", said
