"""From an invite to a node that may join, as people type it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.cli.test_cli import typed
from zk0d.cli.main import app
from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.machine.keys import fingerprint

pytestmark = pytest.mark.slow

INIT = ("server", "init", "--host", "hub.example", "--folder")
JOIN = ("--name", "left", "--contact", "ann@example.org", "--folder")


def quick(*arguments: str) -> str:
    """As typed, in this process; its output."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    folder = tmp_path / "hub"
    quick(*INIT, str(folder))
    return folder


@pytest.fixture
def node(hub: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "node"
    invite = quick("server", "invite", "--folder", str(hub)).strip()
    asked = quick("client", "join", invite, *JOIN, str(folder))
    (tmp_path / "request").write_text(f"Hello,\n\n> {asked}\nAnn")
    return folder


def test_a_contributor_types_an_invite_and_nothing_else(tmp_path: Path) -> None:
    hub, node = tmp_path / "hub", tmp_path / "node"
    made = typed("zk0bot", *INIT, str(hub))
    assert made.returncode == 0, made.stderr
    invite = typed("zk0bot", "server", "invite", "--folder", str(hub))
    assert invite.stdout.count("\n") == 1
    joined = typed("zk0bot", "client", "join", invite.stdout.strip(), *JOIN, str(node))
    assert joined.returncode == 0, joined.stderr
    settings = ClientSettings.load(node / "client.toml")
    assert settings.coordinator.address == "hub.example:9443"
    assert settings.dataset_uri is None, "zk0bot client start asks for it"
    assert (node / "tls/ca.crt").read_text() == (hub / "tls/ca.crt").read_text()
    assert (node / "node.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("typed_as", ["{}", "local:{}", "arm"])
def test_a_dataset_named_at_joining_is_written_whole(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed_as: str
) -> None:
    """As ``client start`` takes it, also relative to where it is typed."""
    folder, node = tmp_path / "arm", tmp_path / "node"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    invite = quick("server", "invite", "--folder", str(hub)).strip()
    quick("client", "join", invite, *JOIN, str(node), "--dataset", typed_as.format(folder))
    written = tomllib.loads((node / "client.toml").read_text())
    assert written["dataset-uri"] == f"local:{folder}"


def test_approve_list_show_remove(hub: Path, node: Path, tmp_path: Path) -> None:
    request, on_hub = str(tmp_path / "request"), ("--folder", str(hub))
    unasked = typed("zk0bot", "node", "approve", request, *on_hub)
    assert unasked.returncode == 64
    assert "add --yes" in unasked.stderr
    assert not list((hub / "roster.d").iterdir())
    done = typed("zk0bot", "node", "approve", request, "--yes", *on_hub)
    assert done.returncode == 0, done.stderr
    key = fingerprint(node / "node.pub")
    assert fingerprint(hub / "roster.d/left.pub") == key
    again = typed("zk0bot", "node", "approve", request, "--yes", *on_hub)
    assert (again.returncode, "approved already, as 'left'" in again.stderr) == (64, True)
    assert key[:16] in typed("zk0bot", "node", "list", *on_hub).stdout
    shown = typed("zk0bot", "node", "show", "left", *on_hub).stdout
    assert key in shown
    assert "ann@example.org" in shown
    assert typed("zk0bot", "node", "remove", "left", *on_hub).returncode == 0
    assert not (hub / "roster.d/left.pub").exists()
    gone = typed("zk0bot", "node", "remove", "left", *on_hub)
    assert (gone.returncode, "there is no node 'left'" in gone.stderr) == (64, True)


def test_a_rotation_overlaps(hub: Path, node: Path, tmp_path: Path) -> None:
    on_hub, key = ("--folder", str(hub)), node / "node.key"
    typed("zk0bot", "node", "approve", str(tmp_path / "request"), "--yes", *on_hub)
    old = fingerprint(node / "node.pub")
    assert typed("zk0bot", "node", "keygen", "--next", "--key", str(key)).returncode == 0
    asked = typed("zk0bot", "node", "request", "--next", "--folder", str(node))
    (tmp_path / "next").write_text(asked.stdout)
    refused = typed("zk0bot", "node", "approve", str(tmp_path / "next"), "--yes", *on_hub)
    assert "if it is the same node with a new key, add --rotate" in refused.stderr
    early = typed("zk0bot", "node", "rotate", "left", *on_hub)
    assert (early.returncode, "node 'left' has one key" in early.stderr) == (64, True)
    done = typed("zk0bot", "node", "approve", "--rotate", str(tmp_path / "next"), "--yes", *on_hub)
    assert done.returncode == 0, done.stderr
    from zk0d.machine.roster import node_name, read_roster

    both = read_roster(hub / "roster.d")
    assert len(both) == 2
    assert {node_name(path) for path in both.values()} == {"left"}
    assert typed("zk0bot", "node", "switch", "--key", str(key)).returncode == 0
    new = fingerprint(node / "node.pub")
    assert new != old
    assert set(both) == {old, new}
    assert typed("zk0bot", "node", "rotate", "left", *on_hub).returncode == 0
    assert set(read_roster(hub / "roster.d")) == {new}
    assert sorted(path.name for path in node.glob("node*")) == ["node.key", "node.pub"]


def test_another_nodes_name_is_refused(hub: Path, node: Path, tmp_path: Path) -> None:
    on_hub = ("--folder", str(hub))
    typed("zk0bot", "node", "approve", str(tmp_path / "request"), "--yes", *on_hub)
    other = tmp_path / "other"
    invite = typed("zk0bot", "server", "invite", *on_hub).stdout.strip()
    asked = typed("zk0bot", "client", "join", invite, "--name", "left", "--folder", str(other))
    (tmp_path / "stolen").write_text(asked.stdout)
    said = typed("zk0bot", "node", "approve", str(tmp_path / "stolen"), "--yes", *on_hub)
    assert said.returncode == 64
    assert "there is a node 'left' with another key" in said.stderr


def test_the_gateways_configuration_follows_its_settings(hub: Path) -> None:
    text = (hub / "gateway.conf").read_text()
    assert "listen 9443 ssl" in text
    assert "location / { return 403; }" in text
    toml = hub / "server.toml"
    toml.write_text(toml.read_text().replace("[gateway]", "[gateway]\nport = 9555"))
    from zk0d.machine.gateway import configure

    settings = ServerSettings.load(toml)
    assert configure(hub, settings)
    assert "listen 9555 ssl" in (hub / "gateway.conf").read_text()
    assert not configure(hub, settings), "nothing changed"


def test_own_certificates_need_no_ca_of_ours(tmp_path: Path) -> None:
    """As from Let's Encrypt: nodes trust the system's authorities."""
    from zk0d.machine.certificates import make_certificates

    own = make_certificates(tmp_path / "own", ["robots.example.org"])
    folder = tmp_path / "hub"
    made = typed(
        *("zk0bot", "server", "init", "--host", "robots.example.org", "--folder", str(folder)),
        *("--certificate", str(own.certificate), "--key", str(own.key)),
    )
    assert made.returncode == 0, made.stderr
    invite = typed("zk0bot", "server", "invite", "--folder", str(folder))
    assert invite.stderr == "robots.example.org:9443, certificate of a public CA\n"
    node = tmp_path / "node"
    joined = typed(
        *("zk0bot", "client", "join", "-", "--name", "a", "--folder", str(node)),
        input=invite.stdout,
    )
    assert joined.returncode == 0, joined.stderr
    assert (node / "tls/ca.crt").is_symlink()


def test_a_certificate_is_renewed_in_time(hub: Path) -> None:
    from cryptography import x509

    def serial() -> int:
        pem = (hub / "tls/server.crt").read_bytes()
        return x509.load_pem_x509_certificate(pem).serial_number

    before = serial()
    said = typed("zk0bot", "server", "renew", "--folder", str(hub))
    assert "valid for more than 30 days" in said.stdout
    assert serial() == before
    said = typed("zk0bot", "server", "renew", "--force", "--folder", str(hub))
    assert said.stdout == "the certificate is renewed\n", said.stderr
    assert serial() != before
    assert (hub / "tls/server.key").stat().st_mode & 0o777 == 0o600


def test_every_step_is_in_the_audit_log(hub: Path, node: Path, tmp_path: Path) -> None:
    state = hub / "state/superlink"
    on_hub = ("--folder", str(hub))
    typed("zk0bot", "node", "approve", str(tmp_path / "request"), "--yes", *on_hub)
    typed("zk0bot", "node", "remove", "left", *on_hub)
    shown = typed("zk0bot", "audit", "show", *on_hub).stdout
    assert "node.approved" in shown
    assert "node.removed" in shown
    fine = typed("zk0bot", "audit", "verify", *on_hub)
    assert (fine.returncode, fine.stdout.startswith("2 entries, nothing wrong; head 2:")) == (
        0,
        True,
    )
    log = state / "audit.jsonl"
    log.write_text(log.read_text().replace("node.removed", "node.praised"))
    wrong = typed("zk0bot", "audit", "verify", *on_hub)
    assert wrong.returncode == 1
    assert "line 2 was edited" in wrong.stderr
