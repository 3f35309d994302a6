"""A federation of real processes: SuperLink, SuperNodes, SuperExecs, learners, evaluator."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.cli.build import build_fab_from_files

from tests import hostile, processes
from tests.record.lines import read_lines
from zk0d.config.run import RunSettings
from zk0d.daemon.child import wait_until
from zk0d.demo import federation as demo_federation
from zk0d.demo.federation import Federation, federation
from zk0d.demo.layout import Layout
from zk0d.errors import ChildError, Zk0dError
from zk0d.flower.bundle import CLIENT_APP, SERVER_APP, bundle_toml
from zk0d.flower.control import COMPLETED, FINISHED, Control
from zk0d.record.journal import committed_rounds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TINY = {
    "model-name": "tiny",
    "num-server-rounds": 2,
    "local-steps": 5,
    "batch-size": 8,
    "initial-lr": 2e-3,
    "eval-frames": 40,
}


def layout(folder: Path, recordings: Path, count: int = 2) -> Layout:
    made = Layout.make(folder, count)
    for contributor in made.contributors:
        shutil.copytree(recordings, made.recordings(contributor))
        shutil.copytree(recordings, made.held_out(contributor))
    return made


def finished(running: Federation, run_id: int) -> Any:
    """Wait for a run's end; its state."""
    wait_until(
        lambda: running.state(run_id).status == FINISHED, "the run's end", 180, running.children
    )
    return running.state(run_id)


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


@pytest.fixture(scope="module")
def running(
    recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("federation") / "lab"
    with federation(layout(folder, recordings_folder), cpu_threads=1) as started:
        yield started


def zk0bot_run(running: Federation, *more: str) -> int:
    settings = " ".join(f"{key}={value}" for key, value in TINY.items())
    said = subprocess.run(
        [
            str(BIN / "zk0bot"),
            "run",
            *("-c", settings),
            *("--superlink", running.control.address),
            *("--ca", str(running.certificates.ca)),
            *("--secret", str(running.layout.coordinator / "control.secret")),
            *more,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(said.stdout)


def test_zk0bot_run_trains_on_real_processes(running: Federation) -> None:
    run_id = zk0bot_run(running)
    state = finished(running, run_id)
    assert state.outcome == COMPLETED
    folder = running.layout.runs / str(run_id)
    lines = list(read_lines(folder))
    assert committed_rounds(folder) == [0, 1, 2]
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert [node["node"] for node in committed[-1]["nodes"]] == ["contributor-a", "contributor-b"]
    assert committed[-1]["evaluation"]["loss"] < committed[0]["evaluation"]["loss"]
    assert [dataset["name"] for dataset in committed[0]["evaluation"]["datasets"]] == ["a", "b"]


def flwr_run(running: Federation, home: Path) -> subprocess.CompletedProcess[str]:
    (home / "config.toml").write_text(
        "[superlink.lab]\n"
        f'address = "{running.control.address}"\n'
        f'root-certificates = "{running.certificates.ca}"\n'
    )
    overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in TINY.items())
    return subprocess.run(
        [str(BIN / "flwr"), "run", ".", "lab", "--run-config", overrides, "--format", "json"],
        cwd=ROOT,
        env={**os.environ, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )


def test_who_does_not_know_the_control_secret_starts_nothing(
    running: Federation, tmp_path: Path
) -> None:
    """Any other user of the coordinator, a worker of its gateway included."""
    before = len(running.control.runs())
    said = flwr_run(running, tmp_path)
    assert "403" in said.stdout + said.stderr
    wrong = tmp_path / "wrong.secret"
    wrong.write_text("f" * 64)
    with (
        Control(running.control.address, running.certificates.ca, wrong) as control,
        pytest.raises(Zk0dError, match="this is not its control secret; run zk0bot on"),
    ):
        control.nodes()
    assert len(running.control.runs()) == before


def test_flwr_run_from_a_checkout_means_the_same(tmp_path: Path, recordings_folder: Path) -> None:
    made = layout(tmp_path / "lab", recordings_folder)
    with federation(made, cpu_threads=1, open_control=True) as running:
        said = flwr_run(running, tmp_path)
        assert said.returncode == 0, said.stdout + said.stderr
        run_id = int(json.loads(said.stdout)["run-id"])
        assert finished(running, run_id).outcome == COMPLETED
        assert committed_rounds(running.layout.runs / str(run_id)) == [0, 1, 2]


def test_a_bundles_code_never_runs(running: Federation, tmp_path: Path) -> None:
    """Neither in a known place nor through a task type that Flower would start for it."""
    proof = tmp_path / "it-ran"
    code = (
        f"import socket, subprocess\nopen({str(proof)!r}, 'w').close()\n"
        f"subprocess.run(['touch', {str(proof)!r}])\n"
        "socket.create_server(('127.0.0.1', 0))\napp = None\n"
    )
    alien = bundle_toml().replace('fab-include = ["pyproject.toml"]', 'fab-include = ["*.*"]')
    for ours in (SERVER_APP, CLIENT_APP):
        alien = alien.replace(ours, "alien:app")
    # And a way to run while it is installed, or in the place of modules that we import.
    alien += '\n[build-system]\nrequires = []\nbuild-backend = "alien"\nbackend-path = ["."]\n'
    names = ("alien.py", "setup.py", "sitecustomize.py", "conftest.py", "zk0d/__init__.py")
    bundle, _ = build_fab_from_files(
        {"pyproject.toml": alien.encode(), **dict.fromkeys(names, code.encode())}
    )
    assert all(name.encode() in bundle for name in names)
    settings = RunSettings.parse(TINY, where="test")
    run_id = running.control.start_run(settings, bundle)
    assert finished(running, run_id).outcome == COMPLETED, "the installed apps ran in its place"
    assert committed_rounds(running.layout.runs / str(run_id)) == [0, 1, 2]
    assert not proof.exists()
    for name in ("superexec", "contributor-a-superexec"):
        said = (running.layout.logs / f"{name}.log").read_text()
        assert "this run's bundle brings code (alien.py, alien:app" in said
        assert "none of it runs, the installed app does" in said
    server = (running.layout.logs / "superexec.log").read_text()
    assert server.count("bundle brings code") == 1, "not of our own bundle"


def test_no_token_is_on_a_command_line(running: Federation) -> None:
    run_id = zk0bot_run(running)
    seen: set[str] = set()

    def over() -> bool:
        for child in running.children:
            for process in psutil.Process(child.pid).children(recursive=True):
                try:
                    seen.add(" ".join(process.cmdline()))
                except psutil.Error:
                    continue
        return bool(running.state(run_id).status == FINISHED)

    wait_until(over, "the run's end", 180, running.children)
    apps = [line for line in seen if "zk0d.flower.apps" in line]
    assert {line.split("zk0d.flower.apps ")[1].split()[0] for line in apps} == {
        "serverapp",
        "clientapp",
    }
    assert not [line for line in apps if "--token " in line or "--token=" in line]
    assert not [line for line in seen if "flwr-clientapp" in line or "flwr-serverapp" in line]


def test_a_failed_run_says_why(running: Federation) -> None:
    settings = RunSettings.parse({**TINY, "model-name": "nobody/nothing"}, where="test")
    run_id = running.start_run(settings)
    state = finished(running, run_id)
    with pytest.raises(Zk0dError, match="could not be fetched from the hub"):
        running.raise_if_failed(state)
    last = list(read_lines(running.layout.runs / str(run_id)))[-1]
    assert last["kind"] == "run.failed"
    assert last["reason"] == "hub_unreachable"


def test_a_full_disk_ends_the_run_and_keeps_what_is_committed(running: Federation) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    runs = running.layout.runs
    size = 1_400_000  # two committed rounds of the tiny policy and not three
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(runs)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        settings = RunSettings.parse(
            {**TINY, "num-server-rounds": 6, "keep-rounds": 9}, where="test"
        )
        run_id = running.start_run(settings)
        state = finished(running, run_id)
        with pytest.raises(Zk0dError, match="No space left on device"):
            running.raise_if_failed(state)
        folder = runs / str(run_id)
        kept = committed_rounds(folder)
        assert kept == list(range(len(kept)))
        assert kept, "what was committed is there"
        assert not list((folder / "rounds").glob(".*")), "and nothing half-written"
        committed = [line for line in read_lines(folder) if line["kind"] == "round.committed"]
        assert [line["round"] for line in committed] in (kept, kept[:-1])
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_the_nodes_work_after_all_that(running: Federation) -> None:
    run_id = zk0bot_run(running, "--rounds", "1")
    assert finished(running, run_id).outcome == COMPLETED


def test_a_learner_that_dies_is_named_and_nothing_is_left(
    recordings_folder: Path, tmp_path: Path
) -> None:
    made = layout(tmp_path / "lab", recordings_folder)
    with (
        pytest.raises(ChildError, match="contributor-b-learner was killed by signal 9"),
        federation(made, cpu_threads=1) as started,
    ):
        run_id = started.start_run(
            RunSettings.parse({**TINY, "num-server-rounds": 50, "node-wait": 20.0}, where="test")
        )
        folder = started.layout.runs / str(run_id)
        wait_until(lambda: 1 in committed_rounds(folder), "the first round", 120)
        started.services.processes["contributor-b-learner"].child.signal(signal.SIGKILL)
        finished(started, run_id)
    assert processes_of(tmp_path) == []


def test_bad_recordings_end_the_start(recordings_folder: Path, tmp_path: Path) -> None:
    made = layout(tmp_path / "lab", recordings_folder)
    shutil.rmtree(made.recordings(made.contributors[1]) / "meta")
    with (
        pytest.raises(ChildError, match=r"contributor-b-learner ended with status 69.*info\.json"),
        federation(made, cpu_threads=1),
    ):
        pass
    assert processes_of(tmp_path) == []


def test_a_port_that_is_taken(
    recordings_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layout(tmp_path / "lab", recordings_folder)
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_demo_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
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

        wait_until(training, "the first round", 180)
        assert len(processes_of(folder)) >= 9
        assert hostile.assert_right_below(demo.pid) >= 9
        demo.send_signal(number)
        began = time.monotonic()
        _, said = demo.communicate(timeout=60)
        wait_until(lambda: processes_of(folder) == [], "the last process's end", 30)
        assert time.monotonic() - began < 60
    if number == signal.SIGKILL:
        return
    assert demo.returncode == 130
    assert "interrupted; every process of the demo was stopped" in said
    assert "Traceback" not in said


def test_a_whole_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    said = processes.run(
        [
            str(BIN / "zk0bot"),
            "demo",
            *("--folder", str(folder)),
            *("--demonstrations", "8"),
            *("--rounds", "2"),
            *("--episodes", "4"),
            *("-c", "local_steps=10"),
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
        "federated",
        "everything in one place",
        "everything, double steps",
    }
    assert summary["success"]["federated"]["optimizer_steps"] == 20
    assert summary["success"]["everything, double steps"]["optimizer_steps"] == 40
    for row in summary["success"].values():
        assert 0.0 <= row["region_a"] <= 1.0
    assert (folder / "chart.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / summary["run"] / "journal.jsonl").exists()
    assert processes_of(folder) == []
