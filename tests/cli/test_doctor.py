"""What the doctor says: each rule on a machine where it holds and on one where it does not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import site
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import processes
from tests.cli.test_cli import typed
from tests.learner.test_metrics import FakeNvml
from tests.learning.damage import change_info, set_value
from tests.processes import wait_until
from tests.services.lab import lab
from tests.services.test_gpu_power import FakeCard
from tests.services.test_gpu_power import FakeNvml as FakePower
from zk0d.config.machine import ClientSettings, GatewaySettings, ServerSettings, SuperlinkSettings
from zk0d.demo.federation import _free_ports
from zk0d.doctor import client, machine, recordings, server
from zk0d.doctor.finding import Finding, Host, Unchecked, Wrong, rule
from zk0d.errors import ConfigError
from zk0d.federation.nodes import Node
from zk0d.flower.sessions import KeyUse
from zk0d.learning import backbones
from zk0d.learning.nvidia import Trouble
from zk0d.machine import certificates
from zk0d.machine.certificates import Certificates, make_certificates
from zk0d.machine.keys import fingerprint, make_node_key, make_secret, write_private
from zk0d.machine.roles import Role, service
from zk0d.machine.setup import set_up_client, set_up_server
from zk0d.services.presence import PREFIX, Presence

BARE = Host(systemd=False)
SERVICES = {"server": ("zk0d-server",), "client": ("zk0d-client", "zk0d-learner")}


def is_right(finding: Finding, *words: str) -> None:
    assert finding.ok is True, finding
    for word in words:
        assert word in finding.evidence, finding


def is_wrong(finding: Finding, *words: str) -> None:
    """It says what is wrong, by which evidence, and what to do, each in one line."""
    assert finding.ok is False, finding
    for part in (finding.problem, finding.evidence, finding.cure):
        assert part.strip(), finding
        assert "\n" not in part, finding
    for word in words:
        assert word in f"{finding.problem} {finding.evidence} {finding.cure}", finding


def is_unchecked(finding: Finding, *words: str) -> None:
    assert finding.ok is None, finding
    for word in words:
        assert word in finding.problem, finding


# --- a rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "ok", "words"),
    [
        (Wrong("a", "b", "c"), False, "a"),
        (Unchecked("not here"), None, "not here"),
        (ConfigError("node: is wrong."), False, "node: is wrong."),
        (PermissionError(13, "Permission denied", "/a/key"), None, "/a/key may not be read"),
        (IsADirectoryError(21, "Is a directory", "/a"), None, "/a: Is a directory"),
        (ValueError("hush"), None, "ValueError"),
    ],
)
def test_every_error_of_a_rule_is_a_finding(error: Exception, ok: bool | None, words: str) -> None:
    @rule("fragile")
    def fragile() -> str:
        raise error

    found = fragile()
    assert (found.rule, found.ok) == ("fragile", ok)
    assert words in found.problem
    assert "hush" not in str(found)


# --- the machine ---------------------------------------------------------------------------------


def test_python() -> None:
    is_right(machine.python(), sys.executable)
    is_wrong(machine.python((3, 11, 9)), "older than 3.12", "3.11.9")


def test_a_foreign_python_path_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(tmp_path / "own"))
    is_right(machine.python_path({}), "no PYTHONPATH")
    ros = "/opt/ros/jazzy/lib/python3.12/site-packages"
    ignored = {"ZK0D_IGNORED_PYTHONPATH": ros, "ZK0D_IGNORED_PYTHONHOME": ""}
    is_right(machine.python_path(ignored), f"ignored: PYTHONPATH={ros}")
    is_wrong(machine.python_path({"PYTHONPATH": ros}), "other packages may come before", ros)
    (tmp_path / "own").mkdir()
    is_right(machine.python_path({}), f"ignored: {tmp_path}/own")
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    is_wrong(machine.python_path({}), "other packages may come before", f"{tmp_path}/own")


def test_packages() -> None:
    is_right(machine.packages(), f"flwr {metadata.version('flwr')}", "lerobot 0.6.1", "torch")


@pytest.mark.parametrize("package", ["flwr", "torch", "lerobot"])
def test_a_package_of_another_version(package: str) -> None:
    def installed(name: str) -> str:
        return "0.0.1" if name == package else metadata.version(name)

    is_wrong(machine.packages(installed), f"{package} 0.0.1 is installed", "constraints.txt")


def test_a_package_that_is_missing() -> None:
    def installed(name: str) -> str:
        if name == "torch":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    is_wrong(machine.packages(installed), "torch is not installed")


def test_memory(write: Callable[[str, str], Path]) -> None:
    is_right(machine.memory(write("large", "MemTotal:  8388608 kB\n")), "8.0 GiB")
    is_wrong(machine.memory(write("small", "MemTotal:  2097152 kB\n")), "2.0 GiB in all")
    is_unchecked(machine.memory(write("none", "MemFree: 1 kB\n")))


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    seen = []

    def a_disk(free: int) -> Callable[[Path], Any]:
        return lambda at: seen.append(at) or usage._replace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", a_disk(6 * machine.GIB))
    is_right(machine.disk(tmp_path / "not" / "yet"), "6.0 GiB", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", a_disk(4 * machine.GIB))
    is_wrong(machine.disk(tmp_path / "not" / "yet"), "nearly full", "4.0 GiB")
    assert set(seen) == {tmp_path}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program in the place of one of systemd's, which may not be here."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    return put


def test_clock(program: Callable[[str, str], None]) -> None:
    host = Host(systemd=True)
    program("timedatectl", '[ "$*" = "show -p NTPSynchronized" ] && echo NTPSynchronized=yes')
    is_right(machine.clock(host), "NTPSynchronized=yes")
    program("timedatectl", "echo NTPSynchronized=no")
    is_wrong(machine.clock(host), "not synchronized", "timedatectl set-ntp true")
    program("timedatectl", "exit 1")
    is_unchecked(machine.clock(host))
    is_unchecked(machine.clock(BARE), "systemd does not run")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine with systemd and zk0d's units."""
    shipped, changed = tmp_path / "usr", tmp_path / "etc"
    shipped.mkdir()
    changed.mkdir()
    for name in SERVICES["client"]:
        (shipped / f"{name}.service").write_text("[Service]\n")
    return Host(True, SERVICES, shipped, changed, tmp_path / "hub")


def test_units(host: Host) -> None:
    (host.changed / "zk0d-learner.service.d").mkdir()
    wants = host.changed / "zk0d-client.target.wants"
    wants.mkdir()
    alias = host.changed / "zk0d-client.service"
    alias.symlink_to(host.shipped / "zk0d-client.service")
    is_right(machine.units(host, ["client"]), "2 services")
    is_wrong(machine.units(host, ["client", "server"]), "zk0d-server.service is not installed")
    is_unchecked(machine.units(BARE, ["client"]), "systemd does not run")


def test_a_unit_that_replaces_the_shipped_one(host: Host) -> None:
    shutil.copy(host.shipped / "zk0d-learner.service", host.changed)
    found = machine.units(host, ["client"])
    is_wrong(found, f"{host.changed}/zk0d-learner.service replaces", "systemctl edit zk0d-learner")
    (host.changed / "zk0d-learner.service").unlink()
    (host.changed / "zk0d-client.service").symlink_to("/dev/null")
    is_wrong(machine.units(host, ["client"]), "zk0d-client.service (masked)")


def test_exposure(host: Host, program: Callable[[str, str], None]) -> None:
    said = "→ Overall exposure level for $3: {} OK :-)"
    program("systemd-analyze", f'echo "{said.format(0.9)}"')
    is_right(machine.exposure(host, ["client"]), "zk0d-learner.service 0.9")
    program(
        "systemd-analyze",
        f'case "$3" in *learner*) echo "{said.format(4.2)}";; *) echo "{said.format(0.9)}";; esac',
    )
    is_wrong(machine.exposure(host, ["client"]), "zk0d-learner.service is exposed more", "4.2")
    program("systemd-analyze", "echo Unit not found. >&2; exit 1")
    is_unchecked(machine.exposure(host, ["client"]), "Unit not found.")
    is_unchecked(machine.exposure(BARE, ["client"]), "systemd does not run")


_LISTEN = (
    "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen();"
    " print('listens', flush=True); sys.stdin.read()"
)


@contextmanager
def listening(port: int, *words: str) -> Iterator[None]:
    """A process that listens at a port and whose command line has these words."""
    with processes.started(
        [sys.executable, "-c", _LISTEN, str(port), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listens\n"
        yield


def test_ports() -> None:
    (port,) = _free_ports(1)
    uses = [("superlink.port", port, service("superlink"))]
    is_right(machine.ports(uses), f"superlink.port {port} is free")
    with listening(port, "-m", "zk0d.flower.superlink", "--host"):
        is_right(machine.ports(uses), f"{port} is held by our service")
    with listening(port, "--password", "planted-secret"):
        found = machine.ports(uses)
    is_wrong(found, f"127.0.0.1:{port} is held by another program", "python")
    assert "planted-secret" not in str(found)


def test_a_holder_that_only_root_sees(tmp_path: Path) -> None:
    (port,) = _free_ports(1)
    with listening(port):
        found = machine.ports([("supernode.port", port, service("supernode"))], processes=tmp_path)
    is_unchecked(found, f"only root sees the program that holds supernode.port {port}")


def test_ports_are_those_of_the_role() -> None:
    keys = {key: port for key, port, _ in machine.port_uses(ServerSettings())}
    assert keys == {
        "superlink.port": 8000,
        "superlink.presence-port": 9480,
        "gateway.port": 9443,
        "metrics of superlink": 9470,
        "metrics of server-superexec": 9471,
    }
    quiet = ClientSettings.parse({"name": "a", "metrics": {"enabled": False}}, where="test")
    assert [key for key, _, _ in machine.port_uses(quiet)] == ["supernode.port"]


def test_a_real_service_holds_its_port(tmp_path: Path) -> None:
    """The command line that the supervisor's own commands give is the rightful one."""
    from zk0d.flower import commands

    made = commands.supernode("h:1", tmp_path, tmp_path, tmp_path, 1, tmp_path, tmp_path)
    (_, _, rightful), *_ = machine.port_uses(ClientSettings(name="a"))
    (port,) = _free_ports(1)
    with listening(port, *made.argv):
        is_right(machine.ports([("supernode.port", port, rightful)]), "held by our service")


def test_secrets(tmp_path: Path) -> None:
    path = tmp_path / "superexec.secret"
    files = {"supernode.secret": path}
    is_wrong(machine.secrets(BARE, files), "supernode.secret", "is missing")
    make_secret(path)
    is_right(machine.secrets(BARE, files), "0600")
    path.chmod(0o640)
    is_wrong(machine.secrets(BARE, files), "its mode is 0640", f"chmod 600 {path}")
    path.chmod(0o600)
    path.write_text("")
    is_wrong(machine.secrets(BARE, files), "is empty")


def test_a_secret_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    make_node_key(path)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    found = machine.secrets(Host(systemd=True), {"supernode.key": path})
    is_wrong(found, "belongs to another user", f"chown root:root {path}")


def in_the_hub_cache(cache: Path, name: str, *files: str) -> None:
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    for file in files:
        path = folder / "snapshots" / "abc" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


def test_models(tmp_path: Path, write: Callable[[str, str], Path]) -> None:
    cache, name = tmp_path / "cache", "who/model"
    is_wrong(machine.models(BARE, {}, [name], cache), name, "zk0d fetch")
    in_the_hub_cache(cache, name, "config.json")
    is_wrong(machine.models(BARE, {}, [name], cache), "no config.json with weights")
    in_the_hub_cache(tmp_path / "whole", name, "config.json", "model.safetensors")
    is_right(machine.models(BARE, {}, [name, "tiny"], tmp_path / "whole"), name)
    is_wrong(machine.models(BARE, {"mine": tmp_path / "mine"}, [], cache), "models.mine")
    write("mine/config.json", "{}")
    is_wrong(machine.models(BARE, {"mine": tmp_path / "mine"}, [], cache), "model.safetensors")
    write("mine/model.safetensors", "")
    is_right(machine.models(BARE, {"mine": tmp_path / "mine"}, ["mine"], cache), "mine in")


def test_under_systemd_models_are_where_fetch_puts_them(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    is_wrong(machine.models(host, {}, ["who/model"]), "systemctl start zk0d-fetch")
    in_the_hub_cache(host.hub / "models", "who/model", "config.json", "model.safetensors")
    is_right(machine.models(host, {}, ["who/model"]), str(host.hub))


def test_a_backbone_to_fetch_is_on_this_machine_and_whole(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_HOME", raising=False)
    is_wrong(machine.models(host, {}, ["resnet18"]), "resnet18", "systemctl start zk0d-fetch")
    file = backbones.path("resnet18", host.hub / "torch")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"torn")
    is_wrong(machine.models(host, {}, ["resnet18"]), "is missing or not whole")
    digits = hashlib.sha256(b"torn").hexdigest()[:8]
    monkeypatch.setattr(backbones, "_digits", lambda backbone: digits)
    is_right(machine.models(host, {}, ["resnet18"]), f"resnet18 in {host.hub}")


def test_settings(write: Callable[[str, str], Path], tmp_path: Path) -> None:
    right = machine.settings(write("client.toml", 'name = "a"\n'), ClientSettings)
    is_right(right, "is valid")
    missing = machine.settings(tmp_path / "server.toml", ServerSettings)
    is_wrong(missing, "is missing", "zk0bot server init")
    typo = machine.settings(write("client.toml", 'name = "a"\nmodles = 1\n'), ClientSettings)
    is_wrong(typo, "unknown key 'modles'", "did you mean 'models'", "zk0bot config check client")


# --- recordings ----------------------------------------------------------------------------------


def test_dataset(recordings_folder: Path) -> None:
    found = recordings.dataset(BARE, f"local:{recordings_folder}")
    is_right(found, "v3.0", "6 episodes", "30 frames per second", "top", "no license is named")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info: info.update(codebase_version="v2.1"), "zk0bot data convert"),
        (lambda info: info.update(total_episodes=0), "holds no episodes"),
        (lambda info: info.pop("fps"), "'fps': Field required"),
        (
            lambda info: [info["features"].pop(k) for k in [*info["features"]] if "images" in k],
            "has no camera",
        ),
    ],
)
def test_a_dataset_that_is_wrong(
    copied_recordings: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    change_info(copied_recordings, change)
    is_wrong(recordings.dataset(BARE, f"local:{copied_recordings}"), "dataset-uri", words)


def test_a_dataset_that_is_not_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_LEROBOT_HOME", raising=False)
    is_wrong(recordings.dataset(BARE, "local:/nothing"), "/nothing is not a LeRobot dataset")
    is_wrong(recordings.dataset(BARE, None), "dataset-uri is missing")
    found = recordings.dataset(host, "who/what", "evaluation.a.dataset-uri")
    is_wrong(found, "evaluation.a.dataset-uri", str(host.hub), "systemctl start zk0d-fetch")


def test_a_license(copied_recordings: Path) -> None:
    uri = f"local:{copied_recordings}"
    (copied_recordings / "README.md").write_text("---\nlicense: apache-2.0\n---\nArm.\n")
    is_right(recordings.dataset(BARE, uri), "license apache-2.0")
    change_info(copied_recordings, lambda info: info.update(license="cc-by-4.0"))
    is_right(recordings.dataset(BARE, uri), "license cc-by-4.0")


@pytest.mark.slow
@pytest.mark.long
def test_values(copied_recordings: Path) -> None:
    uri = f"local:{copied_recordings}"
    is_right(recordings.dataset_values(BARE, uri, {}), "in 6 episodes, 0 not finite")
    is_wrong(recordings.dataset_values(BARE, uri, {"wrist": "top"}), "[cameras] names 'wrist'")
    set_value(copied_recordings, "action", 3, float("nan"))
    is_wrong(recordings.dataset_values(BARE, uri, {}), "1 of", "first episode 0, frame 3")
    is_right(recordings.dataset_values(BARE, uri, {}, 1), "1 not finite")
    is_unchecked(recordings.dataset_values(BARE, uri, {}, seconds=0.01), "was not read within")


def test_without_lerobot_values_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zk0d.learning.recordings", None)
    assert "does not load" in recordings._read("local:/nothing", {})["unchecked"]


# --- a contributor -------------------------------------------------------------------------------


def test_key(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    is_wrong(client.key(path), "has no key", "zk0bot node keygen")
    own = make_node_key(path)
    is_right(client.key(path), "P-384", own)
    make_node_key(tmp_path / "other.key")
    shutil.copy(tmp_path / "other.pub", tmp_path / "node.pub")
    is_wrong(client.key(path), "is not the public half", own[:16])


def test_a_wrong_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    path.write_text("planted-secret")
    is_wrong(client.key(path), "cannot be used")
    assert "planted-secret" not in str(client.key(path))
    path.unlink()
    write_private(
        path,
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    is_wrong(client.key(path), "is not a P-384 key", "secp256r1")


class GpuThatIsNotHere(FakeNvml):
    """Stands for NVIDIA's library on a machine with two GPUs."""

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"NVIDIA Example {handle}"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:  # noqa: N802
        return 13020


def torch_sees(count: int) -> Callable[[], dict[str, Any]]:
    return lambda: {"version": "2.11.0", "cuda": "13.0", "count": count}


def test_gpu() -> None:
    found = client.gpu("auto", GpuThatIsNotHere, ask_torch=torch_sees(2))
    is_right(found, "NVIDIA Example 1", "driver 580.1", "CUDA 13.2", "torch 2.11.0 for CUDA 13.0")
    is_right(client.gpu("cuda:1", GpuThatIsNotHere, ask_torch=torch_sees(2)))
    is_right(client.gpu("cpu", GpuThatIsNotHere), "not used")
    is_wrong(
        client.gpu("auto", GpuThatIsNotHere, ask_torch=torch_sees(0)), "PyTorch cannot use the GPU"
    )
    is_wrong(
        client.gpu("cuda:2", GpuThatIsNotHere, ask_torch=torch_sees(2)), "PyTorch sees 2 GPU(s)"
    )


def no_gpu(device: str, **more: Any) -> Finding:
    return client.gpu(device, lambda: None, trouble=lambda: None, **more)


def test_a_gpu_that_cannot_be_used_is_wrong_unless_the_cpu_is_asked_for() -> None:
    """By a fake: a driver that was upgraded on a machine that nobody rebooted."""
    upgraded = Trouble("its driver was upgraded", "reboot this machine")

    def found(device: str) -> Finding:
        return client.gpu(device, lambda: None, trouble=lambda: upgraded)

    for device in ("auto", "cuda"):
        is_wrong(found(device), "NVIDIA GPU cannot be used", "driver was upgraded", "reboot")
    is_right(found("cpu"), "its driver was upgraded", "not used, since learner.device is 'cpu'")


def test_no_gpu_is_wrong_only_where_one_is_asked_for() -> None:
    is_right(no_gpu("auto"), "no NVIDIA GPU")
    is_wrong(no_gpu("cuda"), "learner.device is 'cuda'", "driver")
    evaluator = no_gpu("cuda", user="evaluator")
    is_wrong(evaluator, "evaluator.device is 'cuda'", "set evaluator.device to 'auto'")


def test_the_power_limit_that_the_owner_set_holds(
    host: Host, program: Callable[[str, str], None]
) -> None:
    """By a fake card, and a systemctl that says what the unit said."""
    card = FakeCard(limit=250_000)
    program("systemctl", "echo the driver does not let root set it")

    def found(watts: int, device: str = "auto", host: Host = host) -> Finding:
        settings = ClientSettings.parse(
            {"name": "a", "limits": {"gpu-power-watts": watts}, "learner": {"device": device}},
            where="test",
        )
        library = FakePower([card])
        return client.gpu_power(host, settings, lambda: library, dict)

    is_right(found(250), "GPU 0 (RTX 4090) may draw 250 W")
    is_wrong(found(300), "may draw 250 W, and limits.gpu-power-watts is 300", "does not let root")
    is_wrong(found(90), "takes 100 to 480 W")
    is_wrong(found(250, "cpu"), "it is to use cpu")
    is_wrong(found(250, host=BARE), "has no effect here", "zk0d-gpu-power.service")


@pytest.mark.slow
def test_the_visible_gpus_are_those_of_torch() -> None:
    import torch

    found = client._ask_torch()
    assert found["version"] == torch.__version__
    assert found["count"] == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_name() -> None:
    is_right(client.coordinator_name("localhost:9443"), "127.0.0.1")
    is_wrong(client.coordinator_name("nobody.invalid:9443"), "nobody.invalid is not known")
    is_wrong(client.coordinator_name(""), "coordinator.address is missing")


@contextmanager
def serving(
    files: Certificates | None, presence: Presence | None = None, ahead: float = 0.0
) -> Iterator[str]:
    """A gateway with a presence page, over TLS if there are certificates; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            key = self.path.removeprefix(f"{PREFIX}/nodes/")
            body = json.dumps((presence or Presence()).of(key)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(time.time() - ahead)

        def log_message(self, *_: object) -> None:
            return None

    class Gateway(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not trust it goes away."""

    gateway = Gateway(("127.0.0.1", 0), Handler)
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        gateway.socket = context.wrap_socket(
            gateway.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=gateway.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{gateway.server_port}"
    finally:
        gateway.shutdown()
        gateway.server_close()
        thread.join()


@pytest.fixture
def tls(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "tls", ["127.0.0.1", "localhost"])


def test_gateway(tls: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", ["127.0.0.1"])
    elsewhere = make_certificates(tmp_path / "elsewhere", ["hub"])
    with serving(tls) as address:
        is_right(client.gateway(address, tls.ca, tmp_path), "TLSv1.3", "good for 397 days")
        is_wrong(client.gateway(address, other.ca, tmp_path), "is not trusted", "a new invite")
        is_wrong(
            client.gateway(address, tmp_path / "none", tmp_path), f"{tmp_path / 'none'} is missing"
        )
        is_wrong(client.gateway(address, tls.key, tmp_path), "no certificate")
    is_wrong(client.gateway(address, tls.ca, tmp_path), f"{address} cannot be reached")
    with serving(elsewhere) as address:
        is_wrong(client.gateway(address, elsewhere.ca, tmp_path), "not valid for '127.0.0.1'")
    with serving(None) as address:
        is_wrong(client.gateway(address, tls.ca, tmp_path), "does not speak TLS")
    is_unchecked(client.gateway("", tls.ca, tmp_path), "coordinator.address is missing")


def test_a_gateway_that_never_answers(tls: Certificates, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        is_wrong(client.gateway(address, tls.ca, tmp_path, seconds=0.1), "cannot be reached")


def test_a_gateway_with_an_expired_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "SERVER_DAYS", 0)
    over = make_certificates(tmp_path / "over", ["127.0.0.1"])
    with serving(over) as address:
        is_wrong(client.gateway(address, over.ca, tmp_path), "certificate has expired")


def node_settings(folder: Path, address: str, ca: Path) -> ClientSettings:
    return ClientSettings.parse(
        {
            "name": "left",
            "coordinator": {"address": address, "ca": ca},
            "supernode": {"key": folder / "node.key"},
        },
        where="test",
    )


def test_enrolled(tls: Certificates, tmp_path: Path) -> None:
    own = make_node_key(tmp_path / "node.key")
    presence = Presence()
    with serving(tls, presence) as address:
        settings = node_settings(tmp_path, address, tls.ca)
        is_wrong(client.enrolled(settings), "does not know this node's key", "zk0bot node request")
        presence.update([Node(1, own, "left", True, 0.0)], None, {})
        is_right(client.enrolled(settings), own[:16], "online")
        presence.update([Node(1, own, "left", True, 0.0)], None, {own: KeyUse(("a", "b"), True)})
        is_wrong(client.enrolled(settings), "another machine uses this node's key", "client stop")
        presence.update([Node(1, own, "left", True, 0.0)], None, {})
        # The public half says whom to ask for where the key may not be read.
        (tmp_path / "node.key").unlink()
        is_right(client.enrolled(settings), own[:16])
        (tmp_path / "node.pub").unlink()
        is_unchecked(client.enrolled(settings), "this node's key is not known")
    make_node_key(tmp_path / "node.key")
    is_unchecked(client.enrolled(settings), "does not answer (connection refused)")
    is_unchecked(client.enrolled(node_settings(tmp_path, "", tls.ca)), "address is missing")


def test_clock_at_coordinator(tls: Certificates, tmp_path: Path) -> None:
    make_node_key(tmp_path / "node.key")
    for ahead, wrong in ((0, False), (60, True), (-100, False), (-600, True)):
        with serving(tls, ahead=ahead) as address:
            found = client.clock_at_coordinator(node_settings(tmp_path, address, tls.ca))
        if wrong:
            way = "ahead of" if ahead > 0 else "behind"
            is_wrong(found, f"s {way} the coordinator's", "set-ntp")
        else:
            is_right(found)


# --- a coordinator -------------------------------------------------------------------------------


def link(files: Certificates, **more: Any) -> SuperlinkSettings:
    return SuperlinkSettings(ca=files.ca, certificate=files.certificate, key=files.key, **more)


def test_certificates(tls: Certificates) -> None:
    is_right(server.ca(link(tls)), "good for 3650 days")
    is_right(server.certificate(link(tls)), "for localhost, 127.0.0.1", "good for 397 days")
    is_right(server.chain(link(tls), link(tls)), "is signed by")
    is_right(server.certificate_key(link(tls)))


@pytest.mark.parametrize(
    ("look", "broken", "key"),
    [
        (server.ca, "ca", "superlink.ca"),
        (server.certificate, "certificate", "superlink.certificate"),
        (server.certificate_key, "key", "superlink.key"),
    ],
)
def test_a_missing_or_damaged_certificate(
    tls: Certificates, look: Callable[[SuperlinkSettings], Finding], broken: str, key: str
) -> None:
    path: Path = getattr(tls, broken)
    path.write_text("planted-secret")
    is_wrong(look(link(tls)), key, str(path))
    assert "planted-secret" not in str(look(link(tls)))
    path.unlink()
    is_wrong(look(link(tls)), key, str(path))


def test_a_wrong_ca_is_named(tls: Certificates) -> None:
    settings = SuperlinkSettings(ca=tls.certificate)
    is_wrong(server.ca(settings), "is not the certificate of a certificate authority")


@pytest.mark.parametrize(("days", "words"), [(0, "has expired"), (10, "expires in 10 days")])
def test_a_certificate_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, words: str
) -> None:
    monkeypatch.setattr(certificates, "SERVER_DAYS", days)
    made = make_certificates(tmp_path / "tls", ["127.0.0.1"])
    is_wrong(server.certificate(link(made)), "superlink.certificate", words, "server renew-ca")
    theirs = GatewaySettings(certificate=made.certificate, key=made.key)
    is_wrong(server.certificate(theirs), "gateway.certificate", words, "zk0bot server renew")


def test_a_ca_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "CA_DAYS", 10)
    made = make_certificates(tmp_path / "tls", ["127.0.0.1"])
    is_wrong(server.ca(link(made)), "superlink.ca", "expires in 10 days")


def test_a_certificate_for_another_host(tmp_path: Path) -> None:
    made = make_certificates(tmp_path / "tls", ["hub"])
    is_wrong(server.certificate(link(made)), "is not for 127.0.0.1", "it names hub")


def test_certificates_that_do_not_belong_together(tls: Certificates, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", ["127.0.0.1"])
    strange = link(Certificates(other.ca, tls.certificate, tls.key))
    is_wrong(server.chain(strange, strange), "not signed by")
    mixed = link(Certificates(tls.ca, tls.certificate, other.key))
    is_wrong(server.certificate_key(mixed), "is not the key of", "superlink.key")


def test_the_gateways_certificate(tls: Certificates, tmp_path: Path) -> None:
    own = GatewaySettings(certificate=tls.certificate, key=tls.key)
    is_right(server.certificate(own), "localhost")
    is_right(server.certificate_key(own))
    is_right(server.chain(link(tls), own), "is signed by")
    forged = make_certificates(tmp_path / "forged", ["hub"])
    theirs = GatewaySettings(certificate=forged.certificate, key=tls.key)
    is_right(server.certificate(theirs), "for hub")
    is_wrong(server.certificate_key(theirs), "gateway.key")
    # By a CA of the same name.
    is_wrong(server.chain(link(tls), theirs), "gateway.certificate", "not signed by")


def test_roster(tmp_path: Path) -> None:
    folder = tmp_path / "roster.d"
    is_wrong(server.roster(folder), "there is no folder", "mkdir")
    folder.mkdir()
    is_right(server.roster(folder), "0 keys", "no node may join yet")
    make_node_key(tmp_path / "node.key")
    shutil.copy(tmp_path / "node.pub", folder / "left.pub")
    is_right(server.roster(folder), "1 keys", "left")
    shutil.copy(tmp_path / "node.pub", folder / "right.pub")
    is_wrong(server.roster(folder), "left.pub and right.pub are the same key")
    (folder / "right.pub").write_text("ssh-nonsense")
    is_wrong(server.roster(folder), "right.pub is not a node's key")


def test_a_superlink_that_does_not_answer(tls: Certificates, tmp_path: Path) -> None:
    (port,) = _free_ports(1)
    secret = tmp_path / "control.secret"
    make_secret(secret)
    found = server.nodes(link(tls, port=port, roster=tmp_path, control_secret=secret))
    is_wrong(found, f"127.0.0.1:{port} gives a wrong answer or none", "zk0bot server start")
    is_unchecked(server.nodes(SuperlinkSettings(ca=tmp_path / "none")), "CA certificate")


@pytest.mark.slow
def test_nodes_of_a_superlink(recordings_folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), recordings_folder) as made,
    ):
        made.add_node("left")
        running = made.start("superlink", "superlink", "--config", str(made.server_toml))
        wait_until(
            lambda: "0 of 1 nodes" in running.told.status, "the roster", 150, [running.child]
        )
        settings = ServerSettings.load(made.server_toml)
        is_right(server.nodes(settings.superlink), "1 nodes", "0 online")
        is_right(machine.ports(machine.port_uses(settings)), "superlink.port", "our service")
        another = Path(root) / "another"
        another.mkdir()
        make_node_key(another / "right.key")
        changed = settings.superlink.model_copy(update={"roster": another})
        is_wrong(server.nodes(changed), "not let in: right", "let in, but not in the roster: left")


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def folder(tls: Certificates, recordings_folder: Path, tmp_path: Path) -> Path:
    """Settings of both roles, with keys, in one folder, and nothing that runs."""
    uri, quiet = f"local:{recordings_folder}", {"enabled": False}
    link_port, presence_port, node_port, gateway_port = _free_ports(4)
    set_up_server(
        tmp_path,
        ["127.0.0.1"],
        {
            "fetch-models": [],
            "metrics": quiet,
            "superlink": {"port": link_port, "presence-port": presence_port},
            "gateway": {"port": gateway_port},
            "evaluation": [{"name": "held-out", "dataset-uri": uri}],
        },
    )
    set_up_client(
        tmp_path,
        "left",
        f"127.0.0.1:{gateway_port}",
        tls.ca.read_bytes(),
        {
            "dataset-uri": uri,
            "fetch-models": [],
            "metrics": quiet,
            "supernode": {"port": node_port},
            "learner": {"device": "cpu"},
        },
    )
    return tmp_path


@pytest.fixture
def bare(folder: Path) -> Path:
    """The same without recordings, whose numbers take seconds to read."""
    server, client = (tomllib.loads((folder / f"{role}.toml").read_text()) for role in Role)
    del server["evaluation"], client["dataset-uri"]
    client["learner"]["accept-run-dataset"] = True
    for role, settings in zip(Role, (server, client), strict=True):
        (folder / f"{role}.toml").write_text(tomli_w.dumps(settings))
    return folder


@pytest.mark.slow
def test_each_dataset_of_a_node_is_looked_at(bare: Path, recordings_folder: Path) -> None:
    client = tomllib.loads((bare / "client.toml").read_text())
    client["dataset"] = [{"uri": str(recordings_folder)}, {"uri": "/nothing/here"}]
    (bare / "client.toml").write_text(tomli_w.dumps(client))
    said = typed("zk0bot", "doctor", "client", "--json", "--folder", str(bare))
    found = {each["rule"]: each for each in json.loads(said.stdout)["findings"]}
    assert found["client.dataset.0.dataset-values"]["ok"] is True
    assert found["client.dataset.1.dataset"]["ok"] is False
    assert found["client.dataset.1.dataset"]["problem"].startswith("dataset.1.uri: /nothing/here")


def wrong_rules(said: subprocess.CompletedProcess[str]) -> set[str]:
    return {f["rule"] for f in json.loads(said.stdout)["findings"] if f["ok"] is False}


#: What depends on the machine that tests run on.
OF_THE_MACHINE = {"memory", "clock", "units", "exposure", "server.disk", "client.disk"}


@pytest.mark.slow
def test_both_roles_as_json(folder: Path) -> None:
    said = typed("zk0bot", "doctor", "--json", "--folder", str(folder))
    assert said.returncode == 1, said.stderr
    content = json.loads(said.stdout)
    assert (content["schema_version"], content["ok"]) == (1, False)
    rules = [finding["rule"] for finding in content["findings"]]
    assert len(rules) == len(set(rules))
    assert {"server.evaluation.held-out.dataset-values", "client.dataset-values"} <= {*rules}
    assert set(content["findings"][0]) == {"rule", "ok", "problem", "evidence", "cure"}
    assert wrong_rules(said) - OF_THE_MACHINE == {"server.nodes", "client.gateway"}
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in rules:
        assert f"`{name}`" in page or f".{name.rpartition('.')[2]}`" in page, name


def test_one_role_in_lines(bare: Path) -> None:
    (bare / "node.key").chmod(0o644)
    said = typed("zk0bot", "doctor", "client", "--folder", str(bare))
    assert said.returncode == 1
    lines = said.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("WRONG client.secrets: "))
    assert lines[at + 1] == "      evidence: its mode is 0644, not 0600"
    assert lines[at + 2] == f"      what to do: chmod 600 {bare / 'node.key'}"
    assert any(line.startswith("ok    client.key: ") for line in lines)
    assert any(line.startswith("?     client.enrolled: ") for line in lines)
    assert "server." not in said.stdout
    assert {line[:6] for line in lines} <= {"ok    ", "WRONG ", "?     ", "      "}


def test_nothing_wrong_is_0(bare: Path, tls: Certificates) -> None:
    presence = Presence()
    presence.update([Node(1, fingerprint(bare / "node.pub"), "left", True, 0.0)], None, {})
    with serving(tls, presence) as address:
        path = bare / "client.toml"
        text = path.read_text()
        before = ClientSettings.load(path).coordinator.address
        path.write_text(text.replace(before, address))
        said = typed("zk0bot", "doctor", "client", "--json", "--folder", str(bare))
    wrong = wrong_rules(said)
    assert wrong <= OF_THE_MACHINE
    assert said.returncode == bool(wrong)
    assert json.loads(said.stdout)["ok"] is not bool(wrong)


@pytest.mark.slow
def test_a_secret_is_never_printed(bare: Path) -> None:
    secrets = [
        *(bare / "superexec.secret").read_text().split(),
        *(bare / "tls" / "server.key").read_text().splitlines()[1:-1],
        *(bare / "tls" / "ca.key").read_text().splitlines()[1:-1],
        *(bare / "node.key").read_text().splitlines()[1:-1],
    ]
    for mode in (0o600, 0o666):
        (bare / "node.key").chmod(mode)
        (bare / "superexec.secret").chmod(mode)
        for how in ([], ["--json"]):
            said = typed("zk0bot", "doctor", *how, "--folder", str(bare))
            assert not [secret for secret in secrets if secret in said.stdout + said.stderr]
    for name in ("node.key", "superexec.secret", "tls/server.key", "tls/ca.crt"):
        (bare / name).write_text("planted-secret")
    for how in ([], ["--json"]):
        said = typed("zk0bot", "doctor", *how, "--folder", str(bare))
        assert said.returncode == 1
        assert "planted-secret" not in said.stdout + said.stderr
        assert "Traceback" not in said.stdout + said.stderr


@pytest.mark.slow
def test_before_anything_is_set_up(tmp_path: Path) -> None:
    said = typed("zk0bot", "doctor", "--json", "--folder", str(tmp_path))
    assert said.returncode == 1
    assert wrong_rules(said) - OF_THE_MACHINE == {"server.settings", "client.settings"}
    (tmp_path / "client.toml").write_text("name = 3\n")
    said = typed("zk0bot", "doctor", "--json", "--folder", str(tmp_path))
    assert wrong_rules(said) - OF_THE_MACHINE == {"client.settings"}
    assert "'name' is wrong" in said.stdout
    assert not said.stderr or os.geteuid() != 0
    assert [*tmp_path.iterdir()] == [tmp_path / "client.toml"], "nothing is left behind"
    assert typed("zk0bot", "doctor", "nobody").returncode == 64


@pytest.mark.slow
def test_the_package_works_without_torch(bare: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'lerobot', 'transformers'): sys.modules[name] = None\n"
        f"sys.argv = ['zk0bot', 'doctor', '--json', '--folder', {str(bare)!r}]\n"
        "from zk0d.cli.main import main\nmain()\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert said.returncode == 1, said.stderr
    assert wrong_rules(said) - OF_THE_MACHINE == {"server.nodes", "client.gateway"}
