from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zk0d.errors import ConfigError
from zk0d.machine.certificates import make_certificates
from zk0d.machine.enrolment import BEGIN, END, INVITE, Invite, Request, ca_fingerprint
from zk0d.machine.keys import make_node_key


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_certificates(tmp_path_factory.mktemp("tls"), ["hub"]).ca.read_text()


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "node.key"
    make_node_key(path)
    return path


@pytest.fixture(scope="module")
def text(key: Path) -> str:
    made = Request.of("left", key.with_suffix(".pub"), "ann@example.org")
    return made.to_text(key)


@pytest.mark.parametrize("address", ["hub:9443", "192.0.2.1:443", "[2001:db8::1]:9443"])
def test_an_invite_is_one_line_and_comes_back(ca: str, address: str) -> None:
    line = Invite(address, ca).to_line()
    assert line.startswith(INVITE)
    assert "\n" not in line
    read = Invite.from_line(f"  {line[:70]}\n {line[70:]}\n")
    assert (read.address, read.fingerprint) == (address, ca_fingerprint(ca))
    assert Invite.from_line(Invite(address, "").to_line()).ca == ""


def test_a_damaged_invite_is_refused(ca: str) -> None:
    line = Invite("hub:9443", ca).to_line()
    for bad in (line[:-9], line[:200] + "x" + line[201:], INVITE, Invite("hub", ca).to_line()):
        with pytest.raises(ConfigError, match="the invite is damaged"):
            Invite.from_line(bad)
    with pytest.raises(ConfigError, match="does not begin with"):
        Invite.from_line("hello")


def test_a_request_comes_back_through_a_mail(text: str) -> None:
    quoted = "Hi!\n" + "\n".join(f"> {line}" for line in text.splitlines()) + "\nAnn"
    wrapped = "\n".join(
        part for line in text.splitlines() for part in (line[:76], line[76:]) if part
    )
    for arrived in (text, quoted, wrapped):
        read = Request.from_text(arrived)
        assert (read.name, read.contact) == ("left", "ann@example.org")


def test_a_request_is_its_keys_owners(text: str, tmp_path: Path) -> None:
    """Nobody asks with a key that is not theirs, or under a name that its owner did not choose."""
    make_node_key(tmp_path / "other.key")
    mine = Request.of("left", tmp_path / "other.pub").key
    theirs = next(line for line in text.splitlines() if line.startswith("key: "))
    for bad in (
        text.replace("name: left", "name: right"),
        text.replace("ann@", "eve@"),
        text.replace(theirs, f"key: {mine}"),
        text.replace("fingerprint: ", "fingerprint: 0"),
        "\n".join(line for line in text.splitlines() if not line.startswith("signature")),
    ):
        with pytest.raises(ConfigError, match="the node request is damaged"):
            Request.from_text(bad)


@settings(max_examples=60)
@given(at=st.integers(0, 10_000), character=st.characters(min_codepoint=33, max_codepoint=126))
def test_any_changed_character_is_seen(text: str, at: int, character: str) -> None:
    at = len(BEGIN) + 1 + at % (len(text) - len(BEGIN) - len(END) - 2)
    changed = text[:at] + character + text[at + 1 :]
    if changed == text:
        return
    try:
        read = Request.from_text(changed)
    except ConfigError:
        return
    # White space around a value means nothing.
    assert read == Request.from_text(text)


@pytest.mark.parametrize(
    ("name", "contact", "sentence"),
    [
        ("Left Arm", "", "a name is 1 to 32 of a-z, 0-9 and '-'"),
        ("../etc", "", "a name is 1 to 32"),
        ("left", "a\nname: right", "--contact: at most 100 characters on one line"),
        ("left", "x" * 101, "--contact: at most 100"),
    ],
)
def test_wrong_names_and_contacts_are_refused(
    key: Path, name: str, contact: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Request.of(name, key.with_suffix(".pub"), contact)


def test_a_text_without_a_request_is_refused_with_its_form() -> None:
    with pytest.raises(ConfigError, match="printed by zk0bot node request"):
        Request.from_text("hello")
