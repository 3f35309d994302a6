"""A coordinator and a contributor by the commands of the docs, where no systemd runs them.

Real processes on loopback, with a real nginx, from relative folders.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import processes
from tests.processes import wait_until
from tests.services.lab import nginx
from zk0d.config.machine import ServerSettings
from zk0d.demo.federation import _free_ports
from zk0d.errors import ExitCode, UnavailableError
from zk0d.machine import gateway
from zk0d.services import foreground, standalone
from zk0d.services.foreground import Chore, Foreground, Program
from zk0d.services.standalone import chores

ZK0BOT = str(Path(sys.executable).parent / "zk0bot")
needs_nginx = pytest.mark.skipif(
    not nginx(), reason="needs nginx (package nginx-light) as the gateway"
)


@dataclass
class Machine:
    """Two folders below one, in which ``zk0bot`` is typed."""

    root: Path
    ends: ExitStack
    started: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    def type(self, *words: str, stdin: str = "", code: int = 0) -> str:
        said = subprocess.run(
            [ZK0BOT, *words],
            cwd=self.root,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert said.returncode == code, said.stderr
        return said.stdout

    def start(self, role: str, *words: str) -> None:
        log = self.ends.enter_context((self.root / f"{role}.log").open("w"))
        command = [ZK0BOT, role, "start", *words, "--folder", role]
        self.started[role] = self.ends.enter_context(
            processes.started(command, cwd=self.root, stdout=log, stderr=subprocess.STDOUT)
        )

    def log(self, role: str) -> str:
        return (self.root / f"{role}.log").read_text()

    def wait(self, role: str, ready: Callable[[], bool], what: str) -> None:
        try:
            wait_until(ready, what, 120)
        except UnavailableError as error:
            raise AssertionError(f"{error.message}\n{self.log(role)[-4000:]}") from None

    def status(self, role: str) -> dict[str, Any]:
        said = subprocess.run(
            [ZK0BOT, role, "status", "--json", "--folder", role],
            cwd=self.root,
            capture_output=True,
            text=True,
        )
        content: dict[str, Any] = json.loads(said.stdout)
        return content

    def services(self, role: str) -> dict[str, tuple[str, str]]:
        found = self.status(role)["services"]
        return {each["name"]: (each["state"], each["status"]) for each in found}

    def edit(self, path: str, *pairs: tuple[str, str]) -> None:
        file = self.root / path
        text = file.read_text()
        for old, new in pairs:
            assert text.count(old) == 1, (old, text)
            text = text.replace(old, new)
        file.write_text(text)


@pytest.fixture
def machine() -> Iterator[Machine]:
    # A socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="zk0d a ") as root, ExitStack() as ends:
        yield Machine(Path(root), ends)


def coordinator(machine: Machine, held_out: Path) -> int:
    """One that runs; its gateway's port."""
    link, presence, gateway = _free_ports(3)
    machine.type("server", "init", "--host", "localhost", "--folder", "server")
    machine.edit(
        "server/server.toml",
        ("\n[superlink]\n", f"\n[superlink]\nport = {link}\npresence-port = {presence}\n"),
        ("\n[gateway]\n", f"\n[gateway]\nport = {gateway}\n"),
        ("\n[evaluator]\n", '\n[evaluator]\ncpu-threads = 1\ndevice = "cpu"\n'),
        ("every key.\n", "every key.\nfetch-models = []\nmetrics.enabled = false\n"),
    )
    with (machine.root / "server/server.toml").open("a") as toml:
        toml.write(f'[[evaluation]]\nname = "held-out"\ndataset-uri = "local:{held_out}"\n')
    machine.start("server")
    machine.wait("server", lambda: listens(gateway), "the gateway")
    return gateway


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def shown_certificate(port: int) -> str:
    return ssl.get_server_certificate(("localhost", port))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@needs_nginx
def test_an_ordinary_invite_leads_to_a_round(machine: Machine, recordings_folder: Path) -> None:
    gateway = coordinator(machine, recordings_folder)
    invite = machine.type("server", "invite", "--folder", "server").strip()
    request = machine.type("client", "join", invite, "--name", "left", "--folder", "client")
    (machine.root / "request.txt").write_text(request)
    machine.type("node", "approve", "request.txt", "--yes", "--folder", "server")
    (port,) = _free_ports(1)
    machine.edit(
        "client/client.toml",
        ("\n[supernode]\n", f"\n[supernode]\nport = {port}\npresence-interval = 1.0\n"),
        ("\n[learner]\n", '\n[learner]\ncpu-threads = 1\ndevice = "cpu"\n'),
        ('name = "left"\n', 'name = "left"\nfetch-models = []\nmetrics.enabled = false\n'),
    )
    (machine.root / "recordings").symlink_to(recordings_folder)
    machine.start("client", "recordings")
    try:
        machine.type("client", "wait-online", "--timeout", "2m", "--folder", "client")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{machine.log('client')}\n{machine.log('server')}") from None

    settings = "model-name=tiny num-server-rounds=1 local-steps=2 batch-size=4 min-fit-clients=1"
    told = machine.type("run", "--follow", "-c", settings, "--folder", "server")
    assert "round 1 is committed, 1 nodes" in told

    services = machine.services("server")
    assert set(services) == {"superlink", "server-superexec", "evaluator", "gateway"}
    assert {state for state, _ in services.values()} == {"running"}
    assert services["gateway"][1] == f"nodes reach the SuperLink at port {gateway}"
    assert machine.status("server")["ok"]
    assert machine.status("client")["ok"]
    kept = {path.name for path in machine.root.iterdir()}
    assert kept == {
        *("server", "client", "recordings", "request.txt", "server.log", "client.log")
    }, "everything is in the two folders"
    assert "renew" in machine.log("server")
    assert "the certificate is valid for more than 30 days" in machine.log("server")

    # A new certificate is shown at once, and the node stays.
    before = shown_certificate(gateway)
    machine.type("server", "renew", "--force", "--folder", "server")
    wait_until(lambda: shown_certificate(gateway) != before, "the new certificate", 150)
    machine.type("client", "wait-online", "--timeout", "2m", "--folder", "client")

    machine.type("client", "stop", "--folder", "client")
    machine.type("server", "stop", "--folder", "server")
    for process in machine.started.values():
        assert process.wait(30) == 0
    assert not listens(gateway)


@pytest.mark.slow
@needs_nginx
def test_nothing_is_left_of_a_coordinator_that_was_killed(
    machine: Machine, recordings_folder: Path
) -> None:
    gateway = coordinator(machine, recordings_folder)
    started = psutil.Process(machine.started["server"].pid)

    def has_workers() -> bool:
        """nginx has processes of its own, soon after it listens."""
        children = started.children(recursive=True)
        return any("worker process" in processes.words_of(each) for each in children)

    wait_until(has_workers, "nginx's workers", 150)
    below = started.children(recursive=True)
    started.kill()
    wait_until(lambda: not any(map(lives, below)), "their end", 150)
    assert not listens(gateway)


@needs_nginx
@pytest.mark.skipif(os.geteuid() != 0, reason="whoever runs this is an ordinary user already")
def test_nginx_needs_no_rights() -> None:
    """Started as nobody, from a folder of nobody's."""
    nobody = 65534
    with tempfile.TemporaryDirectory(prefix="zk0d-") as root:
        folder = Path(root) / "hub"
        subprocess.run([ZK0BOT, "server", "init", "--host", "localhost", "--folder", folder])
        (port,) = _free_ports(1)
        toml = folder / "server.toml"
        toml.write_text(toml.read_text().replace("[gateway]", f"[gateway]\nport = {port}"))
        settings = ServerSettings.load(toml)
        gateway.configure(folder, settings)
        for path in (Path(root), *Path(root).rglob("*")):
            os.chown(path, nobody, nobody)
        how = {"user": nobody, "group": nobody, "extra_groups": [], "cwd": root}
        argv = standalone.gateway(folder, settings).argv
        with processes.started(argv, stderr=subprocess.PIPE, text=True, **how) as process:
            wait_until(lambda: listens(port) or process.poll() is not None, "nginx", 150)
            assert process.poll() is None, process.communicate()[1]
            assert psutil.Process(process.pid).uids().effective == nobody
            process.terminate()
            assert process.communicate(timeout=20)[1] == "", "it complains of nothing"


def test_without_nginx_the_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zk0d.cli import server

    folder = tmp_path / "hub"
    server.init(host=["localhost"], certificate=None, key=None, folder=folder)
    monkeypatch.setattr(standalone, "nginx", lambda: None)
    with pytest.raises(UnavailableError, match=r"nginx is not installed.*apt-get install"):
        server.start(folder)


def test_nginx_is_looked_for_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nginx"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gateway.nginx() == str(program)


# --- what timers do -------------------------------------------------------------------------------


def test_each_role_does_the_work_of_systemds_timers(tmp_path: Path) -> None:
    """The numbers are those of the units."""
    server = {each.program.name: each for each in chores("server", tmp_path / "server.toml")}
    assert set(server) == {"fetch", "publish", "renew"}
    client = chores("client", tmp_path / "client.toml")
    assert [each.program.name for each in client] == ["fetch", "policy-updates"]
    assert server["fetch"].program.argv[1:] == ("fetch", "--server", f"{tmp_path}/server.toml")
    assert server["fetch"].every == float("inf"), "once"
    units = Path(__file__).parents[2] / "systemd"
    timer = (units / "zk0d-publish.timer").read_text()
    assert re.findall(r"=(\d+)min", timer) == [
        str(round(server["publish"].first / 60)),
        str(round(server["publish"].every / 60)),
    ]
    assert "OnCalendar=daily" in (units / "zk0d-renew.timer").read_text()
    assert server["renew"].every == 86400
    fetch = (units / "zk0d-fetch.service").read_text()
    assert f"RestartSec={foreground.RETRY_SECONDS:.0f}" in fetch


def test_a_token_beside_the_settings_reaches_only_its_service(tmp_path: Path) -> None:
    assert chores("client", tmp_path / "client.toml")[0].env == {}
    (tmp_path / "hf.token").write_text("hf_x")
    found = {each.program.name: each.env for each in chores("server", tmp_path / "server.toml")}
    assert found == {
        "fetch": {"HF_TOKEN_PATH": f"{tmp_path}/hf.token"},
        "renew": {},
        "publish": {},  # its settings name the file
    }


@pytest.mark.slow
def test_a_chore_is_done_again_and_a_failed_one_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreground, "RETRY_SECONDS", 0.05)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    lines: dict[str, list[str]] = {}

    def chore(name: str, code: str, every: float, first: float = 0.0) -> Chore:
        lines[name] = []
        program = Program(name, (sys.executable, "-c", code))
        return Chore(program, every, first, {"OF_MY_OWN": "1"})

    say = "import os; print(os.environ['HF_ENDPOINT'], os.environ['OF_MY_OWN'])"
    made = [
        chore("often", say, 0.05),
        chore("once", say, float("inf")),
        chore("later", say, 0.05, first=3600.0),
        chore("passes", f"{say}; raise SystemExit({int(ExitCode.TRY_AGAIN)})", float("inf")),
        chore("waits for a person", f"{say}; raise SystemExit(78)", float("inf")),
        chore("goes on", f"{say}; import time; time.sleep(600)", 0.05),
    ]
    with Foreground(tmp_path, lambda name: lines[name].append, restart=True) as services:
        services.start_chores(made)
        deadline = time.monotonic() + 60
        while len(lines["often"]) < 3 or len(lines["passes"]) < 3 or not lines["goes on"]:
            assert time.monotonic() < deadline, lines
            services.look()
            time.sleep(0.01)
        assert services.ready, "no service waits for them"
        going_on = made[-1].child
    assert going_on is not None
    assert not going_on.alive, "none is left"
    assert set(lines["often"]) == {"https://mirror.example 1"}
    assert {name: len(said) for name, said in lines.items() if name not in ("often", "passes")} == {
        "once": 1,
        "later": 0,
        "waits for a person": 1,
        "goes on": 1,
    }
