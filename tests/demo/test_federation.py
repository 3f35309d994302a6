"""How a demo ends: as a whole, at a fault, and at a signal. Of its processes none is left.

Stand-ins (``stand_in.py``) show what happens to processes; one real demo is killed.
What a federation does is in tests/running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests import hostile, processes
from tests.demo import stand_in
from tests.processes import wait_until
from tests.running.lab import layout
from zk0d.demo import federation as demo_federation
from zk0d.demo.federation import federation
from zk0d.demo.layout import Layout
from zk0d.errors import ChildError
from zk0d.record.journal import committed_rounds

BIN = Path(sys.executable).parent
#: ``zk0bot demo`` whose services are stand-ins, so that it needs no recordings and no run ends.
DEMO = """\
import sys
from types import SimpleNamespace
from zk0d.demo import main
from zk0d.demo.federation import Federation
main._make_recordings = lambda *_: None
Federation.start_run = lambda *_: 1
Federation.state = lambda *_: SimpleNamespace(status="running")
sys.executable = sys.argv.pop(1)
from zk0d.cli.main import app
app()
"""


def processes_of(folder: Path) -> list[psutil.Process]:
    """Every process that works on ``folder``."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) or str(folder) in process.cwd():
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


@pytest.mark.slow
def test_a_learner_that_dies_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(stand_in.install(tmp_path / "bin")))
    with (
        pytest.raises(ChildError, match="contributor-b-learner was killed by signal 9"),
        federation(Layout.make(tmp_path / "lab", 2), cpu_threads=1) as started,
    ):
        assert len(processes_of(tmp_path)) == 2 * len(started.children) == 18
        started.services.processes["contributor-b-learner"].child.signal(signal.SIGKILL)
        wait_until(lambda: False, "its end", 150, started.children)
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_bad_recordings_end_the_start(
    recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = stand_in.install(tmp_path / "bin", real="learner *contributor-b*")
    monkeypatch.setattr(sys, "executable", str(python))
    made = layout(tmp_path / "lab", recordings_folder)
    shutil.rmtree(made.recordings(made.contributors[1]) / "meta")
    with (
        pytest.raises(ChildError, match=r"contributor-b-learner ended with status 69.*info\.json"),
        federation(made, cpu_threads=1),
    ):
        pass
    assert processes_of(tmp_path) == []


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = stand_in.install(tmp_path / "bin", real="superlink *")
    monkeypatch.setattr(sys, "executable", str(python))
    made = Layout.make(tmp_path / "lab", 2)
    free = demo_federation._free_ports
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(demo_federation, "_free_ports", lambda n: [port, *free(n - 1)])
        with (
            pytest.raises(ChildError, match=f"superlink ended with status 69.*{port}"),
            federation(made, cpu_threads=1),
        ):
            pass
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["run", "start"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_says_so_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals, stage: str
) -> None:
    folder, python = tmp_path / "demo", stand_in.install(tmp_path / "bin")
    if stage == "start":
        python.with_name("never-ready").touch()
    command = [sys.executable, "-c", DEMO, str(python), "demo", "--folder", str(folder)]
    with processes.started(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        # At its start the others wait for the SuperLink.
        count = 2 * (9 if stage == "run" else 4)

        def under_way() -> bool:
            assert demo.poll() is None, demo.communicate()
            return len(processes_of(folder)) > count

        wait_until(under_way, "its services", 150)
        demo.send_signal(number)
        _, said = demo.communicate(timeout=60)
        wait_until(lambda: processes_of(folder) == [], "the last process's end", 150)
    assert demo.returncode == 130
    assert "interrupted; every process of the demo was stopped" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [
        *(str(BIN / "zk0bot"), "demo", "--folder", str(folder)),
        *("--demonstrations", "4", "--rounds", "50"),
    ]
    with processes.started(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=hostile.environment(tmp_path / "packages"),
    ) as demo:

        def training() -> bool:
            assert demo.poll() is None, demo.communicate()
            return any(
                1 in committed_rounds(run) for run in (folder / "coordinator/runs").glob("*")
            )

        wait_until(training, "the first round", 500)
        assert len(processes_of(folder)) >= 9
        assert hostile.assert_right_below(demo.pid) >= 9
        demo.kill()
        demo.communicate(timeout=60)
        wait_until(lambda: processes_of(folder) == [], "the last process's end", 150)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_whole_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    said = processes.run(
        [
            str(BIN / "zk0bot"),
            "demo",
            *("--folder", str(folder)),
            *("--demonstrations", "8"),
            *("--rounds", "2"),
            *("--episodes", "1"),
            *("-c", "local_steps=10"),
            *("-c", "eval_rollouts=2"),
        ],
        text=True,
    )
    assert said.returncode == 0, said.stderr
    for words in ("round 2/2", "nodes 2/2", "policy loss", "A alone", "federated", "chart.png"):
        assert words in said.stdout, words
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["schema_version"] == 1
    assert summary["rounds"] == 2
    assert set(summary["success"]) == {
        "A alone",
        "B alone",
        "plain averaging",
        "federated",
        "everything in one place",
        "everything, double steps",
    }
    assert summary["success"]["federated"]["optimizer_steps"] == 20
    assert summary["success"]["plain averaging"]["optimizer_steps"] == 20
    assert summary["success"]["everything, double steps"]["optimizer_steps"] == 40
    for row in summary["success"].values():
        assert 0.0 <= row["region_a"] <= 1.0
    assert (folder / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / summary["run"] / "journal.jsonl").exists()
    assert processes_of(folder) == []
