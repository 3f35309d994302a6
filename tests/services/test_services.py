"""The services as real processes, behind a real nginx, without systemd: they train.

What befalls those that need no learner is in ``test_outages.py``.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.processes import wait_until, words_of
from tests.record.lines import read_lines
from tests.running.lab import LOOK_SECONDS, flwr_run
from tests.services.lab import Lab, lab, nginx, zk0bot
from zk0d.config.run import RunSettings
from zk0d.daemon.line import LineBook
from zk0d.flower.control import COMPLETED, FINISHED, Control
from zk0d.record.journal import committed_rounds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("services"),
    pytest.mark.skipif(not nginx(), reason="needs nginx (package nginx-light) as the gateway"),
]

NAMES = ("left", "right")
TINY = {
    "model-name": "tiny",
    "num-server-rounds": 2,
    "local-steps": 20,
    "batch-size": 8,
    "eval-frames": 40,
}
#: The first run begins by itself; the next one would only after the last test.
AUTORUN = """\
[autorun]
min-nodes = 2
settle-seconds = 1
pause-minutes = 6000
"""


@pytest.fixture(scope="module")
def running(recordings_folder: Path) -> Iterator[Lab]:
    # A socket's path has at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), recordings_folder) as made,
    ):
        table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in TINY.items())
        text = made.server_toml.read_text()
        made.server_toml.write_text(f"{text}\n{AUTORUN}run = {{ {table} }}\n")
        configs = {name: str(made.add_node(name)) for name in NAMES}
        # These load torch for seconds; the rest starts meanwhile.
        made.start("evaluator", "evaluator", "--config", str(made.server_toml))
        for name, config in configs.items():
            made.start(f"{name}-learner", "learner", "--config", config)
        made.start("superlink", "superlink", "--config", str(made.server_toml), watchdog=4.0)
        made.start("exec", "superexec", "server", "--config", str(made.server_toml))
        made.start_gateway()
        for name, config in configs.items():
            made.start(f"{name}-node", "supernode", "--config", config, watchdog=4.0)
            made.start(f"{name}-exec", "superexec", "client", "--config", config)
        for name in NAMES:
            made.wait_for_status(f"{name}-node", "online", 90)
        yield made


def finished(control: Control, run_id: int) -> None:
    """Wait for a run's end."""
    wait_until(
        lambda: control.run(run_id).status == FINISHED,
        "the run's end",
        180,
        interval=LOOK_SECONDS,
    )


def test_a_federation_of_services_trains_by_itself(running: Lab) -> None:
    """With ``[autorun]``, so nobody starts the run."""
    for service in running.services.values():
        wait_until(lambda told=service.told: told.ready, "READY=1", 120, [service.child])  # type: ignore[misc]
    running.wait_for_status("superlink", "finished, round 2/2, loss", 180)
    running.wait_for_status("superlink", "the next run begins after")
    assert "2 of 2 nodes online" in running.services["superlink"].told.status
    (run,) = (running.root / "server" / "runs").iterdir()
    with running.control() as control:
        state = control.run(int(run.name))
    assert state.outcome == COMPLETED, state.details
    assert committed_rounds(run) == [0, 1, 2]
    # nginx carried what was large, for each node in each round.
    carried = (running.root / "access.log").read_text().splitlines()
    assert sum('"GET /zk0d/v1/down/' in line and '" 200 ' in line for line in carried) >= 4
    assert sum('"PUT /zk0d/v1/up/' in line and '" 201 ' in line for line in carried) >= 4
    assert not [path for path in (running.root / "server/transfer").rglob("*") if path.is_file()]
    # Each ClientApp counted what it moved, and the last one did not begin anew.
    rounds = [line for line in read_lines(run) if line["kind"] == "round.committed"]
    for name in NAMES:
        days = LineBook(running.root / name / "exec").read().days.values()
        told = [node for line in rounds for node in line.get("nodes", ()) if node["node"] == name]
        assert len(told) == 2
        for way in ("down", "up"):
            moved = sum(getattr(day, way) for day in days)
            assert moved == sum(node[f"bytes_{way}"] for node in told), (name, way)
    assert "STATUS=training step" in " ".join(running.services["left-learner"].told.sent)
    assert "WATCHDOG=1" in running.services["superlink"].told.sent
    assert "WATCHDOG=1" in running.services["left-node"].told.sent


def test_the_run_of_a_killed_server_app_is_resumed(running: Lab) -> None:
    settings = {**TINY, "num-server-rounds": 3, "eval-frequency": 0, "keep-rounds": 9}
    with running.control() as control:
        run_id = control.start_run(RunSettings.parse(settings, where="test"))
        folder = running.root / "server" / "runs" / str(run_id)
        wait_until(lambda: 1 in committed_rounds(folder), "round 1", 120)
        apps = psutil.Process(running.services["exec"].child.pid).children(recursive=True)
        app = next(each for each in apps if "serverapp" in words_of(each))
        app.send_signal(signal.SIGKILL)
        running.wait_for_status("superlink", "resuming it", 120)
        running.wait_for_status("superlink", "finished, round 3/3", 180)
    assert committed_rounds(folder) == [0, 1, 2, 3]
    lines = list(read_lines(folder))
    assert "run.failed" not in {line["kind"] for line in lines}, "a killed app says nothing"
    resumed = next(line for line in lines if line["kind"] == "run.resumed")
    assert resumed["flower_run"] != str(run_id)
    numbers = [line["round"] for line in lines if line["kind"] == "round.committed"]
    assert numbers == [0, 1, 2, 3], "each once"


def test_a_drain_lets_the_fit_and_its_reply_out_and_a_resume_brings_the_node_back(
    running: Lab,
) -> None:
    settings = {
        **TINY,
        "num-server-rounds": 3,
        "local-steps": 200,
        "min-fit-clients": 1,
        "node-wait": 20.0,
    }
    left = str(running.root / "left")
    # Else the last run's words would be taken for this one's.
    running.wait_for_status("left-learner", "ready, waiting for a round", 60)
    try:
        with running.control() as control:
            run_id = control.start_run(RunSettings.parse(settings, where="test"))
            folder = running.root / "server" / "runs" / str(run_id)
            running.wait_for_status("left-learner", "training step", 90)
            drained = zk0bot("client", "drain", "--folder", left)
            assert drained.returncode == 0, drained.stderr
            running.wait_for_status("left-node", "drained: zk0bot client resume", 10)
            finished(control, run_id)
            assert control.run(run_id).outcome == COMPLETED
        state = json.loads((running.root / "left" / "supernode" / "state.json").read_text())
        assert (state["held"], state["left"], state["online"]) == ("drain", True, False)
    finally:  # later tests need both nodes
        resumed = zk0bot("client", "resume", "--folder", left)
    assert resumed.returncode == 0, resumed.stderr
    online = zk0bot("client", "wait-online", "--timeout", "300s", "--folder", left)
    assert online.returncode == 0, online.stderr
    committed = [line for line in read_lines(folder) if line["kind"] == "round.committed"]
    taking_part = [{node["node"] for node in line["nodes"]} for line in committed[1:]]
    assert taking_part[0] == set(NAMES), list(read_lines(folder))  # its update came through
    assert taking_part[-1] == {"right"}
    lost = [name for line in committed for name in line.get("lost", ())]
    assert lost == [], "it left between two messages"


def test_flwr_run_from_a_checkout_means_the_same(running: Lab, tmp_path: Path) -> None:
    """For development: with a Control API that asks for no secret."""
    running.restart_superlink(("[superlink]\n", "[superlink]\nopen-control = true\n"))
    running.wait_for_status("superlink", "2 of 2 nodes online", 120)
    said = flwr_run(f"127.0.0.1:{running.link}", running.certificates.ca, tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr
    run_id = int(json.loads(said.stdout)["run-id"])
    with running.control() as control:
        finished(control, run_id)
        assert control.run(run_id).outcome == COMPLETED
    assert committed_rounds(running.root / "server" / "runs" / str(run_id)) == [0, 1, 2]


def test_stopping_leaves_no_process(running: Lab) -> None:
    """Last: it ends the module's services."""
    below = [
        child
        for service in running.services.values()
        for child in psutil.Process(service.child.pid).children(recursive=True)
    ]
    assert len(below) >= 6
    for service in running.services.values():
        service.child.signal(signal.SIGTERM)
    for service in running.services.values():
        assert service.child.wait(60) == 0, service.child.name
        assert "STOPPING=1" in service.told.sent
    assert [process for process in below if process.is_running()] == []
