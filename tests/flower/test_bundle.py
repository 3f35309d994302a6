from __future__ import annotations

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.common.config import get_fab_config

from tests import hostile
from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.daemon.environment import child_environment
from zk0d.errors import ConfigError, UnavailableError
from zk0d.flower import commands
from zk0d.flower.apps import said_by
from zk0d.flower.bundle import build_bundle
from zk0d.flower.control import Control
from zk0d.machine.certificates import make_certificates


def test_the_bundle_holds_settings_and_no_code() -> None:
    bundle = build_bundle()
    assert len(bundle) < 3000
    names = zipfile.ZipFile(io.BytesIO(bundle)).namelist()
    assert "pyproject.toml" in names
    assert not [name for name in names if name.endswith(".py")]


def test_flower_reads_the_bundle() -> None:
    config = get_fab_config(build_bundle())
    assert config["tool"]["flwr"]["app"]["config"] == RunSettings.flat_defaults()


def test_a_bundles_default_leaves_the_setting_to_the_coordinator() -> None:
    bundle = get_fab_config(build_bundle())
    bundle["tool"]["flwr"]["app"]["config"] |= {"seed": 7, "stall-patience": 5}
    said = said_by(bundle, {"keep-rounds": 3})
    assert said == {"seed": 7, "keep-rounds": 3}
    server = ServerSettings.model_validate({"run": {"keep-rounds": 9, "keep-checkpoints": 8}})
    release = server.run_settings(said).release
    assert (release.keep_rounds, release.keep_checkpoints) == (3, 8)


def test_children_get_their_variables_and_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in hostile.environment(tmp_path / "packages").items():
        monkeypatch.setenv(name, value)
    environment = child_environment(FLWR_HOME="/home/flower", EXTRA="1")
    hostile.assert_right(environment)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_HOME"] == "/home/flower"
    assert environment["EXTRA"] == "1"


def test_every_command_is_there_and_closed_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in hostile.environment(tmp_path / "packages").items():
        monkeypatch.setenv(name, value)
    files = make_certificates(tmp_path, ["127.0.0.1"])
    superlink = commands.superlink(
        8000, files, tmp_path / "db", tmp_path / "s", tmp_path, control_secret=tmp_path / "c"
    )
    node = commands.supernode(
        "c:1", files.ca, tmp_path / "k", tmp_path / "s", 9, tmp_path / "n.toml", tmp_path
    )
    beside_link = commands.superexec(
        "server", "127.0.0.1:1", tmp_path / "s", tmp_path, ca=files.ca, poll_seconds=0.5, env={}
    )
    beside_node = commands.superexec(
        "client", "127.0.0.1:1", tmp_path / "s", tmp_path, ca=None, poll_seconds=0.5, env={}
    )
    for command in (superlink, node, beside_link, beside_node):
        assert Path(command.argv[0]).exists()
        hostile.assert_right(command.env)
        assert "--superexec-auth-secret-file" in command.argv
    assert "--enable-supernode-auth" in superlink.argv
    assert superlink.argv[superlink.argv.index("--host") + 1] == "127.0.0.1"
    assert node.argv[node.argv.index("--host") + 1] == "127.0.0.1"
    for command in (superlink, node, beside_link):
        assert "--insecure" not in command.argv
    assert "--insecure" in beside_node.argv, "a SuperNode's own interface is on loopback"
    assert beside_node.env["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] == "0.5"


def test_the_node_config_is_toml_that_flower_reads(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    commands.write_node_config(path, Path('/run/a "b"/learner.sock'))
    assert tomllib.loads(path.read_text()) == {"learner-socket": '/run/a "b"/learner.sock'}


def test_no_superlink_is_a_sentence(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, ["127.0.0.1"])
    with (
        Control("127.0.0.1:1", files.ca) as control,
        pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1 cannot be reached"),
    ):
        control.nodes()
    with pytest.raises(ConfigError, match="CA certificate cannot be read"):
        Control("127.0.0.1:1", tmp_path / "missing.crt")
