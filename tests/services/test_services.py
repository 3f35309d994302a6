"""The services as real processes, behind a real nginx, without systemd."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.record.lines import read_lines
from tests.services.lab import Lab, lab, nginx
from zk0d.config.run import RunSettings
from zk0d.daemon.child import wait_until
from zk0d.flower.control import COMPLETED, FINISHED
from zk0d.machine.keys import fingerprint
from zk0d.record.journal import committed_rounds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not nginx(), reason="needs nginx (package nginx-light) as the gateway"),
]

NAMES = ("left", "right")
TINY = {
    "model-name": "tiny",
    "num-server-rounds": 2,
    "local-steps": 200,
    "batch-size": 8,
    "eval-frames": 40,
}


@pytest.fixture(scope="module")
def running(recordings_folder: Path) -> Iterator[Lab]:
    # A socket's path has at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), recordings_folder) as made,
    ):
        made.start("superlink", "superlink", "--config", str(made.server_toml), watchdog=4.0)
        made.start("evaluator", "evaluator", "--config", str(made.server_toml))
        made.start("exec", "superexec", "server", "--config", str(made.server_toml))
        made.start_gateway()
        for name in NAMES:
            config = str(made.add_node(name))
            made.start(f"{name}-node", "supernode", "--config", config, watchdog=4.0)
            made.start(f"{name}-exec", "superexec", "client", "--config", config)
            made.start(f"{name}-learner", "learner", "--config", config)
        for name in NAMES:
            made.wait_for_status(f"{name}-node", "online", 90)
        yield made


def child_of(running: Lab, service: str, words: str) -> psutil.Process:
    parent = psutil.Process(running.services[service].child.pid)
    return next(c for c in parent.children() if words in " ".join(c.cmdline()))


def test_a_federation_of_services_trains(running: Lab) -> None:
    for service in running.services.values():
        wait_until(lambda told=service.told: told.ready, "READY=1", 60, [service.child])
    with running.control() as control:
        run_id = control.start_run(RunSettings.parse(TINY, where="test"))
        wait_until(
            lambda: control.run(run_id).status == FINISHED,
            "the run's end",
            180,
            [service.child for service in running.services.values()],
        )
        state = control.run(run_id)
    assert state.outcome == COMPLETED, state.details
    assert committed_rounds(running.root / "server" / "runs" / str(run_id)) == [0, 1, 2]
    running.wait_for_status("superlink", "finished, round 2/2, loss")
    running.wait_for_status("superlink", "2 of 2 nodes online")
    assert "STATUS=training step" in " ".join(running.services["left-learner"].told.sent)
    assert "WATCHDOG=1" in running.services["superlink"].told.sent
    assert "WATCHDOG=1" in running.services["left-node"].told.sent


def test_a_killed_server_app_is_gone_on_with_by_itself(running: Lab) -> None:
    settings = {**TINY, "num-server-rounds": 3, "eval-frequency": 0, "keep-rounds": 9}
    with running.control() as control:
        run_id = control.start_run(RunSettings.parse(settings, where="test"))
        folder = running.root / "server" / "runs" / str(run_id)
        wait_until(lambda: 1 in committed_rounds(folder), "round 1", 120)
        apps = psutil.Process(running.services["exec"].child.pid).children(recursive=True)
        app = next(each for each in apps if "serverapp" in " ".join(each.cmdline()))
        app.send_signal(signal.SIGKILL)
        running.wait_for_status("superlink", "going on with it", 120)
        running.wait_for_status("superlink", "finished, round 3/3", 180)
    assert committed_rounds(folder) == [0, 1, 2, 3]
    lines = list(read_lines(folder))
    assert "run.failed" not in {line["kind"] for line in lines}, "a killed app says nothing"
    resumed = next(line for line in lines if line["kind"] == "run.resumed")
    assert resumed["flower_run"] != str(run_id)
    numbers = [line["round"] for line in lines if line["kind"] == "round.committed"]
    assert numbers == [0, 1, 2, 3], "each once"


def zk0bot(running: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "zk0bot"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_drain_lets_the_fit_and_its_reply_out_and_a_resume_brings_the_node_back(
    running: Lab,
) -> None:
    settings = {**TINY, "num-server-rounds": 3, "min-fit-clients": 1, "node-wait": 20.0}
    left = str(running.root / "left")
    with running.control() as control:
        run_id = control.start_run(RunSettings.parse(settings, where="test"))
        folder = running.root / "server" / "runs" / str(run_id)
        running.wait_for_status("left-learner", "training step", 90)
        drained = zk0bot(running, "client", "drain", "--folder", left)
        assert drained.returncode == 0, drained.stderr
        running.wait_for_status("left-node", "drained: zk0bot client resume", 10)
        wait_until(lambda: control.run(run_id).status == FINISHED, "the run's end", 180)
        assert control.run(run_id).outcome == COMPLETED
    committed = [line for line in read_lines(folder) if line["kind"] == "round.committed"]
    taking_part = [{node["node"] for node in line["nodes"]} for line in committed[1:]]
    assert taking_part[0] == set(NAMES), "its update came through"
    assert taking_part[-1] == {"right"}
    lost = [name for line in committed for name in line.get("lost", ())]
    assert lost == [], "it left between two messages"
    state = json.loads((running.root / "left" / "supernode" / "state.json").read_text())
    assert (state["held"], state["left"], state["online"]) == ("drain", True, False)
    assert zk0bot(running, "client", "resume", "--folder", left).returncode == 0
    online = zk0bot(running, "client", "wait-online", "--timeout", "90s", "--folder", left)
    assert online.returncode == 0, online.stderr


def test_a_pause_ends_by_itself(running: Lab) -> None:
    right = str(running.root / "right")
    assert zk0bot(running, "client", "pause", "--for", "5s", "--folder", right).returncode == 0
    running.wait_for_status("right-node", "paused until", 10)
    running.wait_for_status("right-node", "online;", 90)
    assert not (running.root / "right" / "supernode" / "hold.json").exists()


def test_the_gateway_shows_the_fleet_and_the_presence_page_only(running: Lab) -> None:
    trust = ssl.create_default_context(cafile=str(running.certificates.ca))
    with httpx.Client(base_url=f"https://127.0.0.1:{running.gateway}", verify=trust) as client:
        for path in (
            "/v1/control/list-nodes",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/v1/fleet/../control/list-nodes",
            "/v1/fleet/%2e%2e/control/list-nodes",
            "/health",
            "/docs",
            "/zk0d/v1/",
        ):
            assert client.post(path).status_code == 403, path
        key = fingerprint(running.root / "left" / "node.pub")
        known = client.get(f"/zk0d/v1/nodes/{key}").json()
        assert known["enrolled"]
        assert known["online"]
        assert known["since"]
        unknown = client.get(f"/zk0d/v1/nodes/{'0' * 64}").json()
        assert unknown == {"version": 1, "enrolled": False, "online": False}
        assert client.get("/zk0d/v1/nodes/").status_code == 404, "there is no list"
        assert client.post(f"/zk0d/v1/nodes/{key}").status_code == 403, "it is read only"


def test_a_node_that_is_not_enrolled_says_so_and_comes_in_once_it_is(running: Lab) -> None:
    config = running.add_node("late", enrolled=False)
    running.start("late-node", "supernode", "--config", str(config))
    key = fingerprint(running.root / "late" / "node.pub")
    running.wait_for_status("late-node", f"not enrolled (fingerprint {key[:16]}")
    assert running.services["late-node"].told.ready, "waiting is no failed start"
    (running.root / "roster.d" / "late.pub").write_bytes(
        (running.root / "late" / "node.pub").read_bytes()
    )
    running.wait_for_status("late-node", "online", 120)
    # Taken from the roster, it is out again.
    (running.root / "roster.d" / "late.pub").unlink()
    running.wait_for_status("late-node", "not enrolled", 60)
    running.services["late-node"].child.stop()
    running.services.pop("late-node").told.close()


def test_a_killed_superlink_comes_back_with_its_nodes(running: Lab) -> None:
    before = child_of(running, "superlink", "zk0d.flower.superlink")
    before.send_signal(signal.SIGKILL)
    running.wait_for_status("superlink", "ended (signal 9)")
    running.wait_for_status("superlink", "nodes online", 60)
    after = child_of(running, "superlink", "zk0d.flower.superlink")
    assert after.pid != before.pid
    for name in NAMES:
        running.wait_for_status(f"{name}-node", "online", 120)


def test_a_killed_superexec_comes_back(running: Lab) -> None:
    child_of(running, "left-exec", "zk0d.flower.superexec").send_signal(signal.SIGKILL)
    running.wait_for_status("left-exec", "ended (signal 9)")
    running.wait_for_status("left-exec", "ready for work", 60)


def test_a_stopped_supernode_is_seen_from_the_other_side_and_started_again(running: Lab) -> None:
    """Alive, but without a heartbeat: Flower's own health check would call it well."""
    before = child_of(running, "right-node", "zk0d.flower.supernode")
    before.send_signal(signal.SIGSTOP)
    running.wait_for_status("right-node", "was not online: started again", 150)
    running.wait_for_status("right-node", "online;", 150)
    assert child_of(running, "right-node", "zk0d.flower.supernode").pid != before.pid


def test_an_unreachable_coordinator_is_waited_for(running: Lab) -> None:
    gateway = running.others[0]
    gateway.stop()
    node = child_of(running, "left-node", "zk0d.flower.supernode").pid
    running.wait_for_status("left-node", "waiting for the coordinator 127.0.0.1")
    assert "(connection refused): nothing to do here" in running.services["left-node"].told.status
    running.others.clear()
    running.start_gateway()
    running.wait_for_status("left-node", "online", 120)
    assert child_of(running, "left-node", "zk0d.flower.supernode").pid == node, "no restart"


def test_a_database_that_grew_too_large_is_made_anew_from_the_roster(running: Lab) -> None:
    service = running.services.pop("superlink")
    service.child.stop(20)
    service.told.close()
    database = running.root / "superlink" / "superlink.db"
    before = database.stat().st_ino
    text = running.server_toml.read_text()
    running.server_toml.write_text(
        text.replace("[superlink]\n", "[superlink]\ndatabase-limit-mib = 0.001\n")
    )
    running.start("superlink", "superlink", "--config", str(running.server_toml))
    running.wait_for_status("superlink", "the database was too large", 60)
    running.wait_for_status("superlink", "2 of 2 nodes online", 120)
    assert database.stat().st_ino != before
    for name in NAMES:
        running.wait_for_status(f"{name}-node", "online;", 120)


def test_with_autorun_a_run_begins_by_itself(running: Lab) -> None:
    service = running.services.pop("superlink")
    service.child.stop(20)
    service.told.close()
    runs = running.root / "server" / "runs"
    before = {path.name for path in runs.glob("*")}
    settings = {**TINY, "num-server-rounds": 1, "local-steps": 5}
    table = ", ".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    running.server_toml.write_text(
        running.server_toml.read_text().replace("database-limit-mib = 0.001\n", "")
        + f"[autorun]\nmin-nodes = 2\nsettle-seconds = 1\nrun = {{ {table} }}\n"
    )
    running.start("superlink", "superlink", "--config", str(running.server_toml))
    running.wait_for_status("superlink", "finished, round 1/1", 180)
    running.wait_for_status("superlink", "the next run begins after", 30)
    (new,) = {path.name for path in runs.iterdir()} - before
    assert committed_rounds(runs / new) == [0, 1]


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
