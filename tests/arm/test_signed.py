"""A release that was pulled: its signature before a try, and its counts after it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.arm.policies import write_policy
from zk0d.arm.tries import Tries, weights_sha256
from zk0d.cli.main import app
from zk0d.config.machine import ClientSettings
from zk0d.errors import ConfigError
from zk0d.machine import release_key
from zk0d.release.manifest import FILE, Release, ReleaseFile, SignedRelease, is_of_layout
from zk0d.release.pulled import check_whole

runner = CliRunner()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's settings, with release 7/30 of its coordinator."""
    coordinator, home = tmp_path / "coordinator", tmp_path / "policies"
    folder = write_policy(home / "7" / "checkpoint_round_30")
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name, content = path.relative_to(folder).as_posix(), path.read_bytes()
            assert is_of_layout(name)
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(ReleaseFile(path=name, size=len(content), sha256=sha256))
    release = Release(run="7", round=30, policy="act", passed=True, files=tuple(files))
    key = release_key.own_key(coordinator)
    (folder / FILE).write_text(SignedRelease.of(release, key).model_dump_json())
    release_key.pin(home, release_key.public_half(key))
    (tmp_path / "client.toml").write_text(f'name = "ann"\npolicies = "{home}"\n')
    return tmp_path


def checked(node: Path) -> str:
    folder = node / "policies" / "7" / "checkpoint_round_30"
    return check_whole(folder, "7/30", ClientSettings.load(node / "client.toml"))


def test_a_release_as_it_was_signed_passes(node: Path) -> None:
    assert checked(node) == ""


def test_a_file_that_was_changed_is_refused(node: Path) -> None:
    file = node / "policies/7/checkpoint_round_30/policy_postprocessor.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(ConfigError, match=r"policy_postprocessor\.json is not as the coordinator"):
        checked(node)
    (node / "policies" / "release.pub").unlink()
    with pytest.raises(ConfigError, match="is not as the coordinator"):
        checked(node)


def test_another_key_is_refused_and_a_missing_key_is_a_notice(node: Path) -> None:
    other = release_key.public_half(release_key.own_key(node / "another"))
    (node / "policies" / "release.pub").write_text(f"{other}\n")
    with pytest.raises(ConfigError, match="another key signed it") as refused:
        checked(node)
    assert refused.value.reason == "wrong_signature"
    (node / "policies" / "release.pub").unlink()
    assert "knows no key" in checked(node)


def test_counts_are_shown_with_the_release(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(node / "state"))
    words = ["--folder", str(node)]
    listed = runner.invoke(app, ["policy", "list", "--here", *words])
    assert "tried" not in listed.output
    folder = node / "policies" / "7" / "checkpoint_round_30"
    for succeeded in (True, True, False):
        Tries.of_user().add(weights_sha256(folder), "latest", "so101_follower", succeeded=succeeded)
    listed = runner.invoke(app, ["policy", "list", "--here", *words])
    assert "tried 3, 2 succeeded" in listed.output
    shown = runner.invoke(app, ["policy", "show", "7/30", *words])
    assert "on so101_follower: tried 3, 2 succeeded: 67%" in shown.output
    assert "zk0bot policy try 7/30 --robot-config FILE" in shown.output
    told = json.loads(runner.invoke(app, ["policy", "show", "7/30", "--json", *words]).output)
    assert told["tries"] == [{"robot_type": "so101_follower", "tried": 3, "succeeded": 2}]
    told = json.loads(runner.invoke(app, ["policy", "list", "--here", "--json", *words]).output)
    assert told["releases"][0]["tries"][0]["tried"] == 3
