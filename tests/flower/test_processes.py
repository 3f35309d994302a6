"""Apps forked from a process that is ready. The app here is a stand-in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import processes
from tests.processes import wait_until
from zk0d.flower.processes import IDLE_SECONDS, App, Forks, FreshProcesses, Starter

#: It writes what it got into a file, and ends as it is told; without a word it stays.
APP = """\
import json, os, signal, sys, time
from pathlib import Path
from zk0d.flower.processes import serve

def run():
    folder, name, end, *_ = sys.argv[1:]
    def leave(*_):
        Path(folder, name + " was stopped").touch()
        os._exit(0)
    signal.signal(signal.SIGTERM, leave)
    token = Path(sys.argv[sys.argv.index("--token-file") + 1]).read_text()
    told = {"token": token, "parent": os.getppid(), "words": Path("/proc/self/cmdline").read_text()}
    Path(folder, name + ".part").write_text(json.dumps(told))
    Path(folder, name + ".part").rename(Path(folder, name))
    while end == "stay":
        time.sleep(0.05)  # a signal just before a sleep is handled after it
    if end == "fault":
        raise ValueError("a fault of the app")
    sys.exit(int(end))

if sys.argv[1] == "--forks":
    serve(int(sys.argv[2]), run)
run()
"""
TOKEN = "token-that-nobody-may-see"
#: A SuperExec that starts an app and is killed.
PARENT = """\
import sys, time
from zk0d.flower.processes import Forks
forks = Forks([sys.executable, sys.argv[1]])
print(forks.start([sys.argv[2], "app", "stay"], "t").pid, flush=True)
time.sleep(600)
"""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    (tmp_path / "app.py").write_text(APP)
    return [sys.executable, str(tmp_path / "app.py")]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def forks(program: list[str], clock: Clock) -> Iterator[Forks]:
    made = Forks(program, clock)
    yield made
    made.close()


@pytest.fixture(params=["forks", "fresh"])
def starter(request: pytest.FixtureRequest, program: list[str]) -> Iterator[Starter]:
    made: Starter = Forks(program) if request.param == "forks" else FreshProcesses(program)
    yield made
    made.close()


def told(folder: Path, name: str) -> dict[str, Any]:
    wait_until((folder / name).exists, f"{name}'s word", 30)
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def status_of(starter: Starter, app: App) -> int:
    def ended() -> bool:
        starter.look()
        return app.poll() is not None

    wait_until(ended, "the app's end", 30)
    status = app.poll()
    assert status is not None
    return status


@pytest.mark.parametrize(
    ("end", "status"), [("0", 0), ("3", 3), ("fault", 1), ("stay", -signal.SIGKILL)]
)
def test_an_app_gets_its_arguments_and_token_and_its_end_is_known(
    starter: Starter, tmp_path: Path, end: str, status: int
) -> None:
    app = starter.start([str(tmp_path), "app", end], TOKEN)
    said = told(tmp_path, "app")
    assert said["token"] == TOKEN
    assert TOKEN not in said["words"]
    if end == "stay":
        assert app.poll() is None
        os.kill(app.pid, signal.SIGKILL)
    assert status_of(starter, app) == status
    assert not psutil.pid_exists(app.pid), "it was reaped"


def test_several_apps_come_from_one_process(forks: Forks, tmp_path: Path) -> None:
    apps = [forks.start([str(tmp_path), name, "stay"], TOKEN) for name in "abc"]
    assert len({told(tmp_path, name)["parent"] for name in "abc"}) == 1
    assert len({app.pid for app in apps}) == 3
    os.kill(apps[1].pid, signal.SIGTERM)
    assert status_of(forks, apps[1]) == 0
    assert [app.poll() for app in apps] == [None, 0, None]


def test_when_the_process_that_forks_dies_its_apps_die_and_the_next_one_starts(
    forks: Forks, tmp_path: Path
) -> None:
    first = forks.start([str(tmp_path), "first", "stay"], TOKEN)
    parent = told(tmp_path, "first")["parent"]
    os.kill(parent, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(first.pid), "the app's end", 30)
    second = forks.start([str(tmp_path), "second", "0"], TOKEN)
    assert told(tmp_path, "second")["parent"] != parent
    assert first.poll() == -signal.SIGKILL
    assert status_of(forks, second) == 0


def test_the_process_that_forks_ends_when_nothing_came_for_a_while(
    forks: Forks, clock: Clock, tmp_path: Path
) -> None:
    app = forks.start([str(tmp_path), "app", "stay"], TOKEN)
    parent = psutil.Process(told(tmp_path, "app")["parent"])
    clock.now = 2 * IDLE_SECONDS
    forks.look()
    assert parent.is_running(), "an app works"
    os.kill(app.pid, signal.SIGTERM)
    status_of(forks, app)
    forks.look()
    assert not parent.is_running()
    again = forks.start([str(tmp_path), "again", "0"], TOKEN)
    assert status_of(forks, again) == 0


def test_closing_ends_every_process(starter: Starter, tmp_path: Path) -> None:
    apps = [starter.start([str(tmp_path), name, "stay"], TOKEN) for name in "ab"]
    parents = {told(tmp_path, name)["parent"] for name in "ab"} - {os.getpid()}
    starter.close()
    assert not [pid for pid in (*parents, *(app.pid for app in apps)) if psutil.pid_exists(pid)]
    assert [(tmp_path / f"{name} was stopped").exists() for name in "ab"] == [True, True]


def test_nothing_outlives_a_killed_superexec(program: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, program[1], str(tmp_path)]
    with processes.started(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        forking = told(tmp_path, "app")["parent"]
        parent.kill()
        wait_until(
            lambda: not psutil.pid_exists(pid) and not psutil.pid_exists(forking), "their end", 30
        )
    # It would have told Flower that its task was stopped, and nobody would get the message again.
    assert not (tmp_path / "app was stopped").exists()
