"""Several contributors on one machine: names, folders, ports and users, and how one goes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zk0d.cli.main import app
from zk0d.config.machine import ClientSettings
from zk0d.doctor.finding import Host
from zk0d.errors import ConfigError, UnavailableError, UsageError
from zk0d.machine import contributors, instances, recordings, removal, units
from zk0d.machine.roles import SERVICES, Role
from zk0d.machine.setup import change_client, set_up_client
from zk0d.services.coordinator import Word
from zk0d.services.supernode import SupernodeService

LONGEST_USER = 31


def make(root: Path, name: str, **settings: object) -> Path:
    """Set one up beneath a folder; the folder of its settings."""
    folder = contributors.home(root, name)
    set_up_client(folder, name or "first", "hub:9443", b"a certificate", settings)
    return folder


def ports(folder: Path) -> list[int]:
    settings = ClientSettings.load(folder / "client.toml")
    return [settings.supernode.port, *settings.metrics_ports.values()]


@pytest.mark.parametrize("name", ["a", "ann", "gpu-0", "0", "a" * contributors.LONGEST])
def test_a_name_that_units_and_users_can_have(name: str) -> None:
    assert contributors.check_name(name) == name
    users = [each.user_of(name) for each in SERVICES if Role.CLIENT in each.roles]
    assert max(map(len, users)) <= LONGEST_USER


@pytest.mark.parametrize("name", ["Ann", "a/b", "..", "-a", "a-", "a b", "a@b", "a" * 17, ""])
def test_a_name_that_they_cannot_have(name: str) -> None:
    with pytest.raises(UsageError, match="is not a name; use 1 to 16 of a-z"):
        contributors.check_name(name)


def test_a_folder_says_whose_it_is() -> None:
    root = Path("/etc/zk0d")
    ann = contributors.home(root, "ann")
    assert (contributors.name_of(ann), contributors.root_of(ann)) == ("ann", root)
    assert (contributors.name_of(root), contributors.root_of(root)) == ("", root)
    assert contributors.option(ann) == " --contributor ann"
    assert contributors.option(root) == ""


def test_one_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    assert contributors.existing(tmp_path, "") == tmp_path
    with pytest.raises(UsageError, match="there is none with a name"):
        contributors.existing(tmp_path, "eve")
    for name in ("bob", "ann"):
        make(tmp_path, name)
    assert contributors.existing(tmp_path, "bob") == tmp_path / "clients/bob"
    with pytest.raises(UsageError, match=r"no contributor 'eve'.*there are ann, bob"):
        contributors.existing(tmp_path, "eve")


def test_each_gets_ports_of_its_own(tmp_path: Path) -> None:
    first = make(tmp_path, "")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", instances.FIRST_PORT))
        other.listen()
        ann = make(tmp_path, "ann")
        assert instances.FIRST_PORT not in ports(ann), "something listens there"
    bob = make(tmp_path, "bob")
    assert ports(first) == [9094, 9472, 9473], "as ever"
    taken = [*ports(first), *ports(ann), *ports(bob)]
    assert len(set(taken)) == len(taken) == 9
    before = ports(ann)
    make(tmp_path, "ann")
    assert ports(ann) == before, "what is there is kept"


def test_a_port_of_two_is_one_sentence(tmp_path: Path) -> None:
    first, ann = make(tmp_path, ""), make(tmp_path, "ann")
    for folder in (first, ann):
        instances.check_ports(folder)
    change_client(ann / "client.toml", {"superexec": {"metrics-port": 9472}})
    with pytest.raises(ConfigError) as said:
        instances.check_ports(ann)
    assert said.value.message == (
        f"{ann}/client.toml: superexec.metrics-port: 9472 is also supernode.metrics-port of"
        f" {first}/client.toml; set another number."
    )
    with pytest.raises(ConfigError, match=r"is also superexec\.metrics-port of"):
        instances.check_ports(first)


def test_settings_that_cannot_be_read_are_their_owners_matter(tmp_path: Path) -> None:
    ann, bob = make(tmp_path, "ann"), make(tmp_path, "bob")
    (bob / "client.toml").write_text("wrong = 1\n")
    instances.check_ports(ann)
    assert contributors.names(tmp_path) == ["ann", "bob"]


def test_users_are_those_of_the_services() -> None:
    lines = [line.split() for line in instances.accounts("ann").splitlines()]
    made = {words[1] for words in lines if words[0] == "u"}
    assert made == {each.user_of("ann") for each in SERVICES if Role.CLIENT in each.roles}
    members = [tuple(words[1:]) for words in lines if words[0] == "m"]
    assert members == [("zk0d-learner-ann", "zk0d-fetch-ann")]


def test_one_goes_and_the_others_stay(tmp_path: Path) -> None:
    first, ann, bob = (make(tmp_path, name) for name in ("", "ann", "bob"))
    with pytest.raises(UsageError, match="the contributor without a name"):
        removal.remove(first)
    removal.remove(ann)
    assert not ann.exists()
    assert contributors.names(tmp_path) == ["bob"]
    assert (first / "node.key").exists()
    assert (bob / "node.key").exists()


@pytest.mark.parametrize("name", ["", "ann"])
def test_what_a_node_asks_for_names_its_contributor(tmp_path: Path, name: str) -> None:
    """Otherwise its owner would send another node's request."""
    folder = make(tmp_path, name)
    settings = ClientSettings.load(folder / "client.toml")
    service = SupernodeService(settings)
    service._key = "k" * 64
    said = service._offline(Word(answer={"enrolled": False})).status
    assert f"zk0bot node request{contributors.option(folder)} to the coordinator" in said


def test_a_service_serves_at_the_port_of_its_settings(tmp_path: Path) -> None:
    ann = make(tmp_path, "ann")
    settings = ClientSettings.load(ann / "client.toml")
    service = SupernodeService(settings)
    service.metrics.serve()
    try:
        with socket.create_connection(("127.0.0.1", settings.supernode.metrics_port), timeout=10):
            pass
        with pytest.raises(UnavailableError, match=r"metrics-port of supernode: .* another port"):
            SupernodeService(settings).metrics.serve()
    finally:
        service.metrics.close()


def test_the_doctor_looks_where_the_units_of_a_contributor_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(units, "has_systemd", lambda: True)
    host = Host.of(Path("/etc/zk0d/clients/ann"))
    assert host.systemd
    assert host.hub == Path("/var/cache/zk0d/clients/ann/hub")
    assert host.fetch == "zk0d-fetch@ann"
    assert "zk0d-learner@ann" in host.services[Role.CLIENT]
    assert Host.of(Path("/etc/zk0d")) == Host(systemd=True)
    assert not Host.of(Path("/home/ann/clients/ann")).systemd


def test_recordings_are_hidden_from_the_services_of_their_contributor() -> None:
    """Two may hide theirs from the coordinator's service, which neither owns."""
    hidden = {name: dict(recordings.networked(name)) for name in ("", "ann", "bob")}
    assert hidden["ann"]["zk0d-client@ann.service"] == recordings.NAME
    assert hidden[""]["zk0d-client.service"] == recordings.NAME
    publish = [each["zk0d-publish.service"] for each in hidden.values()]
    assert publish == [recordings.NAME, f"{recordings.NAME}-ann", f"{recordings.NAME}-bob"]


def test_recordings_never_go(tmp_path: Path) -> None:
    ann = make(tmp_path, "ann")
    data = ann / "recordings"
    data.mkdir()
    change_client(ann / "client.toml", {"dataset-uri": f"local:{data}"})
    with pytest.raises(UsageError, match=r"these recordings lie in .* move them first"):
        removal.remove(ann)
    assert data.exists()
    assert (ann / "node.key").exists()


def test_verbs_with_the_option_mean_that_contributor(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_text("a certificate")
    root = tmp_path / "z"  # a path of a socket has few bytes
    run, there = CliRunner(), ["--folder", str(root)]
    init = ["client", "init", "--coordinator", "hub:9443", "--ca", str(ca), *there]
    assert run.invoke(app, [*init, "--name", "first"]).exit_code == 0
    made = run.invoke(app, [*init, "--contributor", "ann", "--device", "cuda:1"])
    assert made.exit_code == 0
    settings = ClientSettings.load(root / "clients/ann/client.toml")
    assert settings.learner.device == "cuda:1"
    assert settings.name.endswith("-ann")
    assert ClientSettings.load(root / "client.toml").learner.device == "auto"

    mine = [*there, "--contributor", "ann"]
    asked = run.invoke(app, ["node", "request", *mine])
    assert f"name: {settings.name}" in asked.output
    settings.supernode.state.mkdir(parents=True)
    assert run.invoke(app, ["client", "pause", *mine]).exit_code == 0
    held = [path.relative_to(root) for path in root.rglob("hold*")]
    assert held
    assert {path.parts[:2] for path in held} == {("clients", "ann")}
    assert "it takes part again" in run.invoke(app, ["client", "resume", *mine]).output
    said = run.invoke(app, ["status", *there])
    assert "other contributors here: ann (zk0bot status --contributor NAME)" in said.output
    said = run.invoke(app, ["status", *mine])
    assert "zk0bot client start --contributor ann" in said.output

    assert isinstance(run.invoke(app, ["client", "remove", *mine]).exception, UsageError)
    assert run.invoke(app, ["client", "remove", "--yes", *mine]).exit_code == 0
    assert isinstance(run.invoke(app, ["status", *mine]).exception, UsageError)
    assert (root / "client.toml").exists()
