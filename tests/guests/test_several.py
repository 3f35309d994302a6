"""Two contributors on one machine, as the project's own units on real systemd."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests.environment import make_version, shared_mounts
from tests.guests.lab import Guest, Lab
from tests.guests.test_federation import BOT, START_SECONDS, Fleet, recordings_of

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

ANN, BOB = NAMES = ("ann", "bob")
PYTHON = "/opt/zk0d/current/bin/python"
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


class OneMachine(Fleet):
    """A coordinator, and one guest with both contributors."""

    def _join(self) -> list[Guest]:
        host = self._machine("host", "client")
        for name in NAMES:
            self._let_in(host, "--contributor", name, "--name", name)
        return [host]

    def _start(self) -> None:
        for name in NAMES:
            self.verb("start", name)

    @property
    def host(self) -> Guest:
        return self.nodes[0]

    def verb(self, verb: str, name: str, *options: str) -> str:
        """What a verb of ``zk0bot client`` says."""
        words = [BOT, "client", verb, *options, "--contributor", name]
        return self.host.run(words, timeout=START_SECONDS).stdout

    def wait_online(self, seconds: float = 180) -> None:
        for name in NAMES:
            self.wait_for(self.host, f"zk0d-client@{name}", "online;", seconds)


@pytest.fixture(scope="module")
def fleet(
    lab: Lab, recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OneMachine]:
    made = OneMachine(lab, recordings_of(recordings_folder, tmp_path_factory.mktemp("several")))
    made.wait_online()
    yield made
    made.close()


def test_both_take_part_in_a_run(fleet: OneMachine) -> None:
    run = fleet.start_run()
    fleet.wait_for_end(run)
    nodes = json.loads(fleet.hub.run([BOT, "status", "--json"]).stdout)["nodes"]
    trained = {node["name"] for node in nodes if node["online"] and node["samples"]}
    assert trained == set(NAMES)
    for name in NAMES:
        said = json.loads(fleet.verb("status", name, "--json"))
        assert said["ok"], said["todo"]
        assert {service["name"].partition("@")[2] for service in said["services"]} == {name}
        assert said["trained"]["rounds"], "its own rounds"
        assert said["contributors"] == [other for other in NAMES if other != name]
    alone = fleet.host.run([BOT, "status"], check=False)
    assert "the contributors here have names (ann, bob)" in alone.stderr


def test_the_metrics_are_those_of_each(fleet: OneMachine) -> None:
    seen = set()
    for name in NAMES:
        settings = fleet.host.run([BOT, "config", "show", "client", "--contributor", name]).stdout
        for table in ("supernode", "superexec"):
            port = json.loads(settings)[table]["metrics-port"]
            seen.add(port)
            page = fleet.host.run(f"curl -s http://127.0.0.1:{port}/metrics").stdout
            assert "zk0d_" in page, (name, table)
    assert len(seen) == 4


def test_the_doctor_looks_at_one(fleet: OneMachine) -> None:
    doctor = [BOT, "doctor", "--contributor", ANN, "--json"]
    said = json.loads(fleet.host.run(doctor, check=False, timeout=300).stdout)
    found = {finding["rule"]: finding for finding in said["findings"]}
    for rule in (
        *("units", "exposure", "client.settings", "client.secrets", "client.key"),
        *("client.ports", "client.shared-ports", "client.enrolled", "client.dataset"),
    ):
        assert found[rule]["ok"], found[rule]
    assert f"zk0d-learner@{ANN}.service" in found["exposure"]["evidence"]


def test_neither_reads_what_is_the_others(fleet: OneMachine) -> None:
    """Its key, its credentials, its state, and the socket of its learner."""
    host = fleet.host
    for path in (
        f"/etc/zk0d/clients/{BOB}/node.key",
        f"/run/credentials/zk0d-client@{BOB}.service/node.key",
        f"/var/lib/zk0d/clients/{BOB}/supernode/state.json",
        f"/var/lib/zk0d/clients/{BOB}/learner",
        f"/var/cache/zk0d/clients/{BOB}/learner",
    ):
        assert not host.run(["test", "-e", path], check=False).returncode, path
        for kind in ("node", "app", "learner", "owner", "fetch"):
            read = host.run(["ls", "-l", path], check=False, user=f"zk0d-{kind}-{ANN}")
            got = host.run(["head", "-c1", path], check=False, user=f"zk0d-{kind}-{ANN}")
            assert got.returncode, (kind, path, got.stdout)
            assert "Permission denied" in got.stderr or read.returncode, (kind, path)
    sockets = {name: f"/run/zk0d/clients/{name}/learner.sock" for name in NAMES}
    for name, path in sockets.items():
        tried = host.run([PYTHON, "-c", CONNECT, path], check=False, user=f"zk0d-app-{ANN}")
        assert (tried.returncode == 0) is (name == ANN), tried.stderr
    for name in NAMES:
        pid = host.unit_state(f"zk0d-learner@{name}")["MainPID"]
        assert host.run(f"stat -c %U /proc/{pid}").stdout.strip() == f"zk0d-learner-{name}"


def test_the_shared_sandbox_reaches_both(fleet: OneMachine) -> None:
    for name in NAMES:
        for unit in ("zk0d-client", "zk0d-client-superexec", "zk0d-learner", "zk0d-owner"):
            state = fleet.host.unit_state(f"{unit}@{name}")
            assert "10-sandbox.conf" in state["DropInPaths"], unit
            assert state["ProtectSystem"] == "strict"
            assert state["NoNewPrivileges"] == "yes"


def test_a_stop_of_one_leaves_the_other(fleet: OneMachine) -> None:
    fleet.wait_online()
    before = fleet.host.unit_state(f"zk0d-learner@{BOB}")["MainPID"]
    fleet.verb("stop", ANN)
    for unit in ("client", "client-superexec", "learner", "owner"):
        assert fleet.host.unit_state(f"zk0d-{unit}@{ANN}")["ActiveState"] == "inactive"
        assert fleet.host.unit_state(f"zk0d-{unit}@{BOB}")["ActiveState"] == "active"
    assert fleet.host.unit_state(f"zk0d-learner@{BOB}")["MainPID"] == before
    assert "online;" in fleet.status(fleet.host, f"zk0d-client@{BOB}")
    fleet.host.restart()
    fleet.wait_for(fleet.host, f"zk0d-client@{BOB}", "online;", 180)
    assert fleet.host.unit_state(f"zk0d-client@{ANN}")["ActiveState"] == "inactive"


def test_one_goes_with_all_that_is_its_own(fleet: OneMachine) -> None:
    """Last: it removes one."""
    host = fleet.host
    fleet.verb("remove", ANN, "--yes")
    left = host.run(
        f"find /etc /var/lib/zk0d /var/cache/zk0d /run/zk0d -path '*zk0d*{ANN}*'", check=False
    ).stdout
    assert left == ""
    users = host.run(["getent", "passwd"]).stdout + host.run(["getent", "group"]).stdout
    assert f"-{ANN}:" not in users
    assert f"zk0d-learner-{BOB}:" in users
    assert host.run("ls /srv/recordings/meta").stdout
    assert "online;" in fleet.status(host, f"zk0d-client@{BOB}")
    refused = host.run([BOT, "client", "start", "--contributor", ANN], check=False)
    assert (refused.returncode, "there are bob" in refused.stderr) == (64, True)


VERSIONS = ("0.1.0", "0.1.1")


@pytest.fixture
def installed(
    lab: Lab, recordings_folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guest]:
    """A machine with two versions of zk0d, of which it uses none yet."""
    recordings = recordings_of(recordings_folder, tmp_path_factory.mktemp("upgraded"))
    mounts = {recordings: "/srv/recordings", **shared_mounts()}
    guest = lab.guest("upgraded", mounts=mounts, environment=False)
    for version in VERSIONS:
        make_version(tmp_path / version, version)
        (tmp_path / version / ".zk0d-complete").touch()
        guest.run(["mkdir", "-p", f"/opt/zk0d/{version}"])
        guest.copy_in(tmp_path / version, f"/opt/zk0d/{version}")
    yield guest
    lab.remove(guest)


def test_an_upgrade_restarts_both_and_a_removal_leaves_neither(installed: Guest) -> None:
    old, new = VERSIONS
    release = f"/opt/zk0d/{old}/bin/zk0d-release"
    installed.run("ldconfig")  # libpython3.so, when the interpreter has one
    installed.run(["bash", release, "switch", old])
    installed.run([BOT, "server", "init", "--host", "host"])  # for its authority
    init = [BOT, "client", "init", "--coordinator", "host:9443", "--ca", "/etc/zk0d/tls/ca.crt"]
    for name in NAMES:
        installed.run([*init, "--contributor", name, "--dataset", "local:/srv/recordings"])
        start = [BOT, "client", "start", "--contributor", name]
        installed.run(start, timeout=START_SECONDS)
    learners = [f"zk0d-learner@{name}" for name in NAMES]
    for unit in learners:
        installed.wait_until(f"systemctl is-active {unit}", 180)
    before = {unit: installed.unit_state(unit)["MainPID"] for unit in learners}

    switch = ["bash", release, "switch", new, "--no-drain", "--timeout", "300"]
    said = installed.run(switch, timeout=400).stderr
    assert f"{new} is in use" in said
    for unit in learners:
        state = installed.unit_state(unit)
        assert state["ActiveState"] == "active"
        assert state["MainPID"] != before[unit]

    installed.run(["cp", release, "/root/zk0d-release"])
    installed.run(["bash", "/root/zk0d-release", "uninstall", "--purge"], timeout=120)
    left = installed.run("pgrep -af '[z]k0d [a-z]|[f]lower'", check=False).stdout
    assert left == ""
    places = "/etc/zk0d /var/lib/zk0d /var/cache/zk0d /run/zk0d /opt/zk0d"
    assert installed.run(f"ls -d {places}", check=False).stdout == ""
    kinds = ("systemd", "sysusers.d", "tmpfiles.d")
    folders = " ".join(f"/{above}/{kind}" for above in ("etc", "usr/lib") for kind in kinds)
    assert installed.run(f"find {folders} -name 'zk0d*'").stdout == ""
    accounts = installed.run("getent passwd; getent group").stdout
    assert "zk0d" not in accounts
    assert installed.run("ls /srv/recordings/meta").stdout
