"""New secrets of a machine, in the place of the old ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from zk0d.cli.main import app
from zk0d.errors import ConfigError
from zk0d.machine import audit, units
from zk0d.machine.keys import renew_secrets
from zk0d.machine.setup import set_up_client, set_up_server


def test_a_coordinators_services_get_new_secrets_together(
    tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    set_up_server(tmp_path, ["hub"])
    files = [tmp_path / "superexec.secret", tmp_path / "control.secret"]
    before = [path.read_bytes() for path in files]
    done = CliRunner().invoke(app, ["server", "renew-secrets", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    after = [path.read_bytes() for path in files]
    assert not set(before) & set(after)
    assert len(set(after)) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert asked == [("try-restart", "zk0d-server.service", "zk0d-server-superexec.service")]
    noted = audit.read(tmp_path / "state/superlink")
    assert [line["kind"] for line in noted] == ["secrets.renewed"]


def test_a_nodes_services_share_its_new_secret(
    tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    set_up_client(tmp_path, "arm", "hub:9443", None)
    before = (tmp_path / "superexec.secret").read_bytes()
    done = CliRunner().invoke(app, ["client", "renew-secrets", "--folder", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "superexec.secret").read_bytes() != before
    assert asked == [("try-restart", "zk0d-client.service", "zk0d-client-superexec.service")]


def test_without_systemd_it_says_when_they_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "by_systemd", lambda folder: False)
    set_up_client(tmp_path, "arm", "hub:9443", None)
    done = CliRunner().invoke(app, ["client", "renew-secrets", "--folder", str(tmp_path)])
    assert "count after a restart: zk0bot client stop, then start" in done.output


def test_a_secret_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no secret here"):
        renew_secrets([tmp_path / "superexec.secret"])
    assert list(tmp_path.iterdir()) == []
