"""What people type: it starts fast and its mistakes are sentences."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from typer.main import get_command

from zk0d.cli.main import app
from zk0d.cli.reference import _verbs
from zk0d.demo.federation import _free_ports
from zk0d.machine.certificates import make_certificates
from zk0d.machine.keys import make_secret

BIN = Path(sys.executable).parent
Write = Callable[[str, str], Path]


def typed(*arguments: str, **how: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        timeout=240,
        **how,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("module", ["torch", "flwr", "pydantic", "numpy", "lerobot"])
def test_help_loads_nothing_heavy(module: str) -> None:
    code = (
        "import sys; from zk0d.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_shows_each_word_of_an_option() -> None:
    program = get_command(app)
    lost = []
    for name, command, _ in _verbs(program, click.Context(program, info_name="zk0bot")):
        said = CliRunner().invoke(program, [*name.split()[1:], "--help"], env={"COLUMNS": "160"})
        shown = set(re.findall(r"[^\s│]+", said.output))
        helps = [command.help, *(getattr(each, "help", None) for each in command.params)]
        words = [word for text in helps for word in (text or "").split()]
        lost += [(name, word) for word in words if word not in shown]
    assert not lost


@pytest.mark.slow
def test_every_verb_has_help() -> None:
    for verb in ("demo", "run", "version"):
        said = typed("zk0bot", verb, "--help")
        assert said.returncode == 0
        assert verb in said.stdout
    assert "--seed" in typed("zk0bot", "demo", "--help").stdout


@pytest.mark.slow
def test_a_proxy_does_not_come_between_programs_of_one_machine(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path / "tls", ["127.0.0.1"])
    make_secret(tmp_path / "secret")
    (link,) = _free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        said = typed(
            *("zk0bot", "run", "--superlink", f"127.0.0.1:{link}"),
            *("--ca", str(tls.ca), "--secret", str(tmp_path / "secret")),
            env={**os.environ, "https_proxy": address, "no_proxy": "example.org"},
        )
        assert "cannot be reached (ConnectError" in said.stderr, said.stderr
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_version_names_the_main_packages() -> None:
    said = typed("zk0bot", "version").stdout
    assert {line.split()[0] for line in said.splitlines()} >= {"zk0d", "flwr", "lerobot", "torch"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("zk0bot", "nonsense"),
        ("zk0bot", "demo", "--rounds", "0"),
        ("zk0bot", "demo", "--policy", "pi0"),
        ("zk0d", "nonsense"),
        ("zk0d",),
    ],
)
def test_a_wrong_command_line_ends_with_64(arguments: tuple[str, ...]) -> None:
    said = typed(*arguments)
    assert said.returncode == 64
    assert "Traceback" not in said.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("run", "-c", "lokal-steps=3"), 78, "did you mean 'local-steps'"),
        (("run", "-c", "num-server-rounds=many"), 78, "num-server-rounds"),
        (("run", "--ca", "/nothing/ca.crt"), 78, "CA certificate cannot be read"),
        (("demo", "-c", "lokal-steps=3"), 78, "did you mean 'local-steps'"),
        (("demo", "-c", "min-fit-clients=x"), 78, "min-fit-clients"),
    ],
)
def test_a_users_mistake_is_one_sentence(
    arguments: tuple[str, ...], status: int, sentence: str, tmp_path: Path
) -> None:
    said = typed("zk0bot", *arguments, cwd=tmp_path)
    assert said.returncode == status
    assert sentence in said.stderr
    assert said.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_demo_folder_that_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    said = typed("zk0bot", "demo", "--folder", str(tmp_path))
    assert said.returncode == 64
    assert "is not empty" in said.stderr
    assert (tmp_path / "mine").exists()


@pytest.mark.slow
def test_a_demo_folder_that_cannot_be_made() -> None:
    said = typed("zk0bot", "demo", "--folder", "/proc/demo")
    assert said.returncode == 75
    assert "cannot be written" in said.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        (None, 78, "no such settings file"),
        ("name = 1\n", 78, "'name' is wrong"),
        ('name = "a"\n', 78, "dataset-uri is missing"),
        ('name = "a"\ndataset-uri = "local:/nothing"\n', 69, "there is no folder /nothing"),
        ('name = "a"\ndataset-uri = "who/what"\n', 69, "zk0bot data fetch who/what gets it"),
    ],
)
def test_a_learner_names_its_fault(
    write: Write, tmp_path: Path, text: str | None, status: int, sentence: str
) -> None:
    path = write("client.toml", text) if text else tmp_path / "client.toml"
    said = typed("zk0d", "learner", "--config", str(path))
    assert said.returncode == status
    assert sentence in said.stderr
    assert "Traceback" not in said.stderr


@pytest.mark.slow
def test_a_machine_is_set_up_without_an_invite(tmp_path: Path) -> None:
    server, client = tmp_path / "server", tmp_path / "client"
    made = typed("zk0bot", "server", "init", "--folder", str(server), "--host", "hub")
    assert made.returncode == 0, made.stderr
    for name in ("tls/ca.key", "tls/server.key", "tls/link.key", "control.secret"):
        assert (server / name).stat().st_mode & 0o777 == 0o600
    init = (
        *("zk0bot", "client", "init", "--folder", str(client)),
        *("--name", "left", "--coordinator", "hub:9443", "--dataset", "local:/data"),
        *("--ca", str(server / "tls" / "ca.crt")),
    )
    made = typed(*init)
    assert made.returncode == 0, made.stderr
    for role, folder in (("server", server), ("client", client)):
        assert typed("zk0bot", "config", "check", role, "--folder", str(folder)).returncode == 0
    shown = typed("zk0bot", "config", "show", "client", "--folder", str(client)).stdout
    assert '"address": "hub:9443"' in shown
    draft = tmp_path / "draft"
    draft.write_text("naem = 'left'\n")
    for file, key in (("client", "dataset-uri"), ("server", "gateway"), ("run", "batch-size")):
        schema = json.loads(typed("zk0bot", "config", "schema", file).stdout)
        assert key in schema["properties"]
        assert schema["additionalProperties"] is False
    checked = typed("zk0bot", "config", "check", "client", "--file", str(draft))
    assert checked.returncode == 78
    assert f"{draft}: " in checked.stderr
    node_key = (client / "node.key").read_bytes()
    again = typed(*init)
    assert "is there already and kept" in again.stderr
    assert again.stdout != "", "the request is printed again"
    assert (client / "node.key").read_bytes() == node_key


def test_a_node_key_is_made_once(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    made = typed("zk0bot", "node", "keygen", "--key", str(key))
    assert made.stdout.startswith("fingerprint ")
    assert key.stat().st_mode & 0o777 == 0o600
    again = typed("zk0bot", "node", "keygen", "--key", str(key))
    assert again.returncode == 64
    assert "is there already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("config", "check", "server", "--folder", "/nothing"), 78, "no such settings file"),
        (("server", "init", "--folder", "{}"), 64, "--host is missing"),
        (
            ("server", "init", "--folder", "{}", "--host", "a", "--key", "/k"),
            64,
            "--certificate and --key belong together",
        ),
        (("client", "init", "--folder", "{}"), 64, "--coordinator and --ca are needed"),
        (("client", "join", "nonsense", "--folder", "{}"), 78, "the invite does not begin with"),
        (("node", "approve", "/nothing", "--folder", "{}"), 78, "/nothing: cannot be read"),
    ],
)
def test_a_mistake_in_setting_up_is_one_sentence(
    arguments: tuple[str, ...], status: int, sentence: str, tmp_path: Path
) -> None:
    said = typed("zk0bot", *(word.format(tmp_path) for word in arguments))
    assert said.returncode == status, said.stderr
    assert sentence in said.stderr
    assert said.stderr.count("\n") == 1
