"""A coordinator changes its CA: what each step writes, where it goes on, whom nodes believe."""

from __future__ import annotations

import json
import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zk0d import files
from zk0d.cli.main import app
from zk0d.config.machine import ServerSettings
from zk0d.errors import ConfigError, UsageError, Zk0dError
from zk0d.machine import audit, certificates, rollover
from zk0d.machine.authorities import Authorities
from zk0d.machine.enrolment import Invite, invite_of
from zk0d.machine.keys import fingerprint as key_fingerprint
from zk0d.machine.keys import make_node_key
from zk0d.machine.setup import set_up_client, set_up_server
from zk0d.machine.successor import (
    Successor,
    checked_apart,
    fingerprint,
    pems,
    read_word,
    write_word,
)
from zk0d.services.status import gather


@pytest.fixture
def hub(tmp_path: Path) -> ServerSettings:
    set_up_server(tmp_path / "hub", ["hub"])
    return ServerSettings.load(tmp_path / "hub/server.toml")


def cas(hub: ServerSettings) -> rollover.Cas:
    return rollover.read_cas(hub.superlink.ca, hub.gateway.certificate)


def next_of(hub: ServerSettings) -> Successor:
    following = cas(hub).next
    assert following is not None
    return following


def is_served(hub: ServerSettings, pem: str) -> bool:
    """Whether one who trusts these CAs would take both certificates with their keys."""
    trust = ssl.create_default_context(cadata=pem)
    for holder in (hub.gateway, hub.superlink):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(holder.certificate, holder.key)
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        shows = server.wrap_bio(to_server, to_client, server_side=True)
        looks = trust.wrap_bio(to_client, to_server, server_hostname="localhost")
        try:
            for _ in range(4):
                for side in (looks, shows):
                    try:
                        side.do_handshake()
                    except ssl.SSLWantReadError:
                        continue
        except ssl.SSLError:
            return False
    return True


def test_both_are_trusted_and_the_old_one_signs_until_the_end(hub: ServerSettings) -> None:
    before = cas(hub)
    assert before.next is None
    after = rollover.begin(hub)
    following = next_of(hub)
    assert after.present == before.present
    assert after.shown == following.by == fingerprint(before.present)
    assert is_served(hub, before.present)
    assert not is_served(hub, following.certificate)
    assert hub.superlink.ca.read_text() == before.present + following.certificate
    key = hub.superlink.ca.with_name("ca.next.key")
    assert key.stat().st_mode & 0o777 == 0o600
    # The daily renewal is still the old one's.
    assert certificates.renew(hub.superlink.ca.parent, force=True)
    assert is_served(hub, before.present)
    rollover.finish(hub)
    rollover.end(hub)
    assert cas(hub) == rollover.Cas(following.certificate, None, following.fingerprint)
    assert is_served(hub, following.certificate)
    assert not is_served(hub, before.present)
    assert not key.exists()
    assert certificates.renew(hub.superlink.ca.parent, force=True)
    assert is_served(hub, following.certificate)


@pytest.mark.parametrize("written", range(1, 4))
def test_a_beginning_that_was_cut_off_continues(
    hub: ServerSettings, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file was the last."""
    _cut_off(monkeypatch, written, lambda: rollover.begin(hub))
    assert is_served(hub, cas(hub).present)
    assert rollover.begin(hub) == rollover.begin(hub)
    following = next_of(hub)
    assert following.fingerprint in hub_fingerprints(hub)
    rollover.finish(hub)
    assert is_served(hub, following.certificate)


@pytest.mark.parametrize("written", range(1, 6))
def test_an_end_that_was_cut_off_continues(
    hub: ServerSettings, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollover.begin(hub)
    following = next_of(hub)
    _cut_off(monkeypatch, written, lambda: rollover.finish(hub))
    assert next_of(hub) == following, "it is seen that it is not done"
    rollover.finish(hub)
    assert is_served(hub, following.certificate)
    assert certificates.renew(hub.superlink.ca.parent, force=True)
    assert is_served(hub, following.certificate)
    rollover.end(hub)
    with pytest.raises(UsageError, match="no change of the CA is under way"):
        rollover.finish(hub)


def test_a_next_ca_is_taken_back(hub: ServerSettings) -> None:
    folder = hub.superlink.ca.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    rollover.begin(hub)
    taken = next_of(hub).fingerprint
    assert rollover.cancel(hub) == taken
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    # Another change goes all the way.
    rollover.begin(hub)
    following = next_of(hub)
    assert following.fingerprint != taken
    rollover.finish(hub)
    rollover.end(hub)
    assert is_served(hub, following.certificate)


@pytest.mark.parametrize("written", range(1, 4))
def test_a_beginning_that_was_cut_off_is_taken_back(
    hub: ServerSettings, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.superlink.ca.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    _cut_off(monkeypatch, written, lambda: rollover.begin(hub))
    rollover.cancel(hub)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("cut_off", ["ca.next.json", "ca.next.key"])
def test_taking_it_back_can_be_repeated(
    hub: ServerSettings, cut_off: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hub.superlink.ca.parent
    before = {path: path.read_bytes() for path in folder.iterdir()}
    rollover.begin(hub)
    unlink = Path.unlink

    def cut(path: Path, missing_ok: bool = False) -> None:
        if path.name == cut_off:
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut)
        with pytest.raises(KeyboardInterrupt):
            rollover.cancel(hub)
    assert is_served(hub, cas(hub).present)
    rollover.cancel(hub)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("written", range(1, 7))
def test_a_next_ca_that_is_used_is_not_taken_back(
    hub: ServerSettings, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the end was cut off: nodes may know the next CA alone then."""
    rollover.begin(hub)
    following = next_of(hub)
    _cut_off(monkeypatch, written, lambda: rollover.finish(hub))
    with pytest.raises(UsageError, match="--finish has begun to use the next CA"):
        rollover.cancel(hub)
    assert next_of(hub) == following
    rollover.finish(hub)
    rollover.end(hub)
    assert is_served(hub, following.certificate)
    with pytest.raises(UsageError, match="none was begun, or --finish has ended it"):
        rollover.cancel(hub)


def test_none_is_taken_back_where_none_was_begun(hub: ServerSettings) -> None:
    code, said = renew_ca(hub, "--cancel")
    assert code != 0
    assert "no change of the CA is under way" in said
    link = hub.superlink
    link.state.mkdir(parents=True)
    audit.AuditLog(link.state).append("node.online", "test", node="n", key="k")
    renew_ca(hub, "--begin")
    taken = next_of(hub).fingerprint
    code, said = renew_ca(hub, "--cancel")
    assert code == 0, said
    assert "the next CA is taken back" in said
    assert "no change of it is under way" in said
    noted = [line for line in audit.read(link.state) if line["kind"].startswith("ca.")]
    assert [(line["kind"], line["ca"]) for line in noted] == [
        ("ca.begun", taken),
        ("ca.cancelled", taken),
    ]


def hub_fingerprints(hub: ServerSettings) -> set[str]:
    return set(map(fingerprint, pems(hub.superlink.ca.read_text())))


def _cut_off(monkeypatch: pytest.MonkeyPatch, written: int, work: Callable[[], object]) -> None:
    """Do ``work`` until so many files were written."""
    done = 0

    class Cut(Exception):
        pass

    def counted(real):  # type: ignore[no-untyped-def]
        def write(*args: object, **more: object) -> None:
            nonlocal done
            if done == written:
                raise Cut
            done += 1
            real(*args, **more)

        return write

    with monkeypatch.context() as patch:
        for module in (rollover, certificates):
            patch.setattr(module, "write_file", counted(files.write_file))
        patch.setattr(rollover, "rename", counted(files.rename))
        try:
            work()
        except Cut:
            return
    assert done == written, "there are more steps than this"


def test_an_invite_has_both_during_the_overlap(hub: ServerSettings, tmp_path: Path) -> None:
    rollover.begin(hub)
    read = Invite.from_line(invite_of(hub).to_line())
    assert read.authorities == hub.superlink.ca.read_bytes()
    set_up_client(tmp_path / "arm", "arm", read.address, read.authorities)
    known = Authorities.read(tmp_path / "arm/tls/ca.crt", tmp_path)
    assert next_of(hub).fingerprint in known
    rollover.finish(hub)
    assert Invite.from_line(invite_of(hub).to_line()).next == ""


def test_a_node_follows_and_drops_the_first_one(hub: ServerSettings, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    shutil.copy(hub.superlink.ca, ca)
    first = Authorities.read(ca, tmp_path)
    rollover.begin(hub)
    following = next_of(hub)
    both = first.with_next(following)
    both.keep(tmp_path)
    assert Authorities.read(ca, tmp_path) == both
    assert both.pem == first.pem + following.certificate
    alone = both.settle(following.fingerprint)
    alone.keep(tmp_path)
    read = Authorities.read(ca, tmp_path)
    assert read.pem == following.certificate
    assert following.by not in read
    # A second change: the third CA is named by the second.
    rollover.finish(hub)
    rollover.end(hub)
    rollover.begin(hub)
    third = next_of(hub)
    read.with_next(third).keep(tmp_path)
    assert Authorities.read(ca, tmp_path).pem == following.certificate + third.certificate
    # Another invite: what followed the old one is nothing.
    other = certificates.make_certificates(tmp_path / "other", ["hub"]).ca
    shutil.copy(other, ca)
    assert Authorities.read(ca, tmp_path).pem == other.read_text()


def test_a_node_drops_what_was_taken_back(hub: ServerSettings, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    shutil.copy(hub.superlink.ca, ca)
    first = Authorities.read(ca, tmp_path)
    rollover.begin(hub)
    both = first.with_next(next_of(hub))
    assert both.until(first.first) == first
    assert both.until(next_of(hub).fingerprint) == both
    # After a change that was finished, the way to the present one stays known.
    alone = both.settle(next_of(hub).fingerprint)
    rollover.finish(hub)
    rollover.end(hub)
    rollover.begin(hub)
    taken = alone.with_next(next_of(hub))
    assert taken.until(alone.first) == alone
    alone.keep(tmp_path)
    assert Authorities.read(ca, tmp_path).pem == alone.pem
    # Who joined with an invite of that time has both from root's file, which stays.
    shutil.copy(hub.superlink.ca, ca)
    (tmp_path / "fresh").mkdir()
    joined = Authorities.read(ca, tmp_path / "fresh")
    assert joined.until(joined.first) == joined


def test_a_stranger_names_no_ca(hub: ServerSettings, tmp_path: Path) -> None:
    make_node_key(tmp_path / "node.key")
    ours = hub.superlink.ca.read_text()
    key, pem = certificates.authority(hub.superlink.ca.parent)
    stranger, _ = certificates.authority(
        certificates.make_certificates(tmp_path / "other", ["hub"]).ca.parent
    )
    _, made = certificates.make_authority()
    server = hub.superlink.certificate.read_text()
    good = Successor.of(made, pem, key)
    word = checked_apart(good, ours, tmp_path / "node.key")
    assert read_word(word, tmp_path / "node.pub") == fingerprint(made)
    for bad in (
        Successor.of(made, pem, stranger),
        Successor(certificates.make_authority()[1], good.by, good.signature),
        Successor.of(server, pem, key),
        Successor(made, good.by, "not base64"),
    ):
        with pytest.raises(ConfigError, match="is not named by ours"):
            checked_apart(bad, ours, tmp_path / "node.key")
    for content in (None, {}, {**good.to_json(), "certificate": ours * 9}, {"certificate": 1}):
        with pytest.raises(ConfigError, match="cannot be read"):
            Successor.read(content)


def test_a_word_is_the_nodes_own(tmp_path: Path) -> None:
    for name in ("node", "other"):
        make_node_key(tmp_path / f"{name}.key")
    word = write_word(tmp_path / "node.key", "a" * 64)
    assert read_word(word, tmp_path / "node.pub") == "a" * 64
    for text, public in ((word, "other"), (word.replace("a", "b", 1), "node"), ("x", "node")):
        with pytest.raises(ConfigError, match="not its own"):
            read_word(text, tmp_path / f"{public}.pub")


def renew_ca(hub: ServerSettings, *words: str) -> tuple[int, str]:
    folder = hub.superlink.ca.parents[1]
    done = CliRunner().invoke(app, ["server", "renew-ca", *words, "--folder", str(folder)])
    why = done.exception.message if isinstance(done.exception, Zk0dError) else ""
    return done.exit_code, done.output + why


def test_it_waits_for_nodes_that_were_online_lately(
    hub: ServerSettings, tmp_path: Path, asked: list[tuple[str, ...]]
) -> None:
    link = hub.superlink
    link.state.mkdir(parents=True)
    keys = {}
    for name in ("here", "away", "gone", "never"):
        make_node_key(tmp_path / f"{name}.key")
        shutil.copy(tmp_path / f"{name}.pub", link.roster / f"{name}.pub")
        keys[name] = key_fingerprint(tmp_path / f"{name}.pub")
    log = audit.AuditLog(link.state)
    for name in ("here", "away", "gone"):
        log.append("node.online", "test", node=name, key=keys[name])
    for name in ("away", "gone"):
        log.append("node.offline", "test", node=name, key=keys[name])
    lines = [json.loads(line) for line in (link.state / audit.AUDIT).read_text().splitlines()]
    lines[-1]["time"] = time.time() - rollover.LATELY_SECONDS - 60
    (link.state / audit.AUDIT).write_text("".join(json.dumps(line) + "\n" for line in lines))

    assert "no change of it is under way" in renew_ca(hub)[1]
    assert renew_ca(hub, "--finish")[0] != 0
    code, said = renew_ca(hub, "--begin")
    assert code == 0, said
    assert "node here: does not have it yet\n" in said
    assert "node gone: does not have it, and was not online in the last 30 days" in said
    following = next_of(hub)
    renew_ca(hub, "--begin")
    assert next_of(hub) == following, "a repeat makes no other CA"
    code, said = renew_ca(hub, "--finish")
    assert code != 0
    assert "the next CA is not on away, here yet" in said
    assert not asked
    rollover.keep_who_has(link.state, following.fingerprint, {keys["here"]: 1.0})
    assert "node here: has the next CA" in renew_ca(hub)[1]
    assert "is not on away yet" in renew_ca(hub, "--finish")[1]
    code, said = renew_ca(hub, "--finish", "--force")
    assert code == 0, said
    assert asked == [
        (
            "try-restart",
            "zk0d-gateway.service",
            "zk0d-server.service",
            "zk0d-server-superexec.service",
        )
    ]
    assert is_served(hub, following.certificate)
    noted = [line for line in audit.read(link.state) if line["kind"].startswith("ca.")]
    assert [line["kind"] for line in noted] == ["ca.begun", "ca.finished"]
    assert noted[-1]["missed"] == ["away"]
    assert "no change of it is under way" in renew_ca(hub)[1]


def test_options_that_do_not_belong_together(hub: ServerSettings) -> None:
    for words in (
        ("--begin", "--finish"),
        ("--begin", "--cancel"),
        ("--finish", "--cancel"),
        ("--force",),
        ("--begin", "--force"),
        ("--cancel", "--force"),
    ):
        assert "--force belongs to --finish" in renew_ca(hub, *words)[1]


def test_the_status_says_who_lacks_it(
    hub: ServerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, link = hub.superlink.ca.parents[1], hub.superlink
    make_node_key(tmp_path / "arm.key")
    shutil.copy(tmp_path / "arm.pub", link.roster / "arm.pub")
    assert gather(["server"], folder)["next_ca"] is None
    rollover.begin(hub)
    assert gather(["server"], folder)["next_ca"] == {"have": [], "lack": ["arm"]}
    done = CliRunner().invoke(app, ["server", "status", "--folder", str(folder)])
    assert "next CA: 0 of 1 nodes have it, not arm (zk0bot server renew-ca)" in done.output
