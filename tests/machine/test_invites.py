"""Invites with a token: what is kept of them, who they let in, and when they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zk0d.errors import UsageError
from zk0d.machine.enrolment import Invite, Request
from zk0d.machine.invites import FILE, LONGEST_SECONDS, OpenInvites, RefusedToken
from zk0d.machine.keys import make_node_key


def nothing() -> None:
    """Let a node in."""


def test_the_token_itself_is_kept_nowhere(tmp_path: Path) -> None:
    made, token = OpenInvites(tmp_path / "link").add(60.0, 2)
    kept = (tmp_path / "link" / FILE).read_text()
    assert token not in kept
    assert made.hash in kept
    assert (tmp_path / "link" / FILE).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "link").stat().st_mode & 0o777 == 0o700


def test_each_use_is_counted(tmp_path: Path) -> None:
    invites = OpenInvites(tmp_path)
    made, token = invites.add(60.0, 2)
    assert invites.use(token, nothing).id == made.id
    assert [each.uses for each in invites.still_open()] == [1]
    invites.use(token, nothing)
    assert invites.still_open() == []
    with pytest.raises(RefusedToken, match="used up"):
        invites.use(token, nothing)


def test_a_failed_admission_costs_no_use(tmp_path: Path) -> None:
    invites = OpenInvites(tmp_path)
    _, token = invites.add(60.0, 1)

    def fails() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(Exception, match="No space left"):
        invites.use(token, fails)
    invites.use(token, nothing)


def test_an_expired_invite_lets_no_node_in(tmp_path: Path) -> None:
    invites = OpenInvites(tmp_path)
    _, token = invites.add(60.0, 1)
    content = json.loads((tmp_path / FILE).read_text())
    content["invites"][0]["until"] -= 61.0
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(RefusedToken, match="expired"):
        invites.use(token, nothing)
    assert invites.still_open() == []
    invites.add(60.0, 1)
    assert len(json.loads((tmp_path / FILE).read_text())["invites"]) == 1


def test_a_revoked_invite_and_an_unknown_token_are_refused(tmp_path: Path) -> None:
    invites = OpenInvites(tmp_path)
    made, token = invites.add(60.0, 1)
    _, other = invites.add(60.0, 1)
    invites.revoke(made.id)
    for refused in (token, "A" * 22):
        with pytest.raises(RefusedToken, match="does not know this invite"):
            invites.use(refused, nothing)
    invites.use(other, nothing)
    with pytest.raises(UsageError, match=f"there is no open invite '{made.id}'"):
        invites.revoke(made.id)


@pytest.mark.parametrize(("seconds", "uses"), [(LONGEST_SECONDS + 1, 1), (60, 0), (60, 10**6)])
def test_an_invite_is_bounded(tmp_path: Path, seconds: float, uses: int) -> None:
    with pytest.raises(UsageError):
        OpenInvites(tmp_path).add(seconds, uses)


def test_an_invite_carries_its_token() -> None:
    line = Invite("hub:9443", "", "A" * 22).to_line()
    assert Invite.from_line(line).token == "A" * 22
    assert Invite.from_line(Invite("hub:9443", "").to_line()).token == ""


def test_a_token_is_bound_to_the_key_that_shows_it(tmp_path: Path) -> None:
    """A request is no secret, so it alone must not be what an invite enrols."""
    for name in ("ann", "bob"):
        make_node_key(tmp_path / f"{name}.key")
    ann = Request.of("ann", tmp_path / "ann.pub")
    body = ann.to_enrolment(tmp_path / "ann.key", "A" * 22)
    assert Request.from_enrolment(body.encode()) == (ann, "A" * 22)
    content = json.loads(body)
    bob = Request.of("bob", tmp_path / "bob.pub").to_line(tmp_path / "bob.key")
    for changed in ({"request": bob}, {"token": "B" * 22}, {"signature": ""}):
        with pytest.raises(Exception, match="is damaged"):
            Request.from_enrolment(json.dumps(content | changed).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"request": 7}', b"\xff", b'"x"'])
def test_other_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(Exception, match="the enrolment cannot be read"):
        Request.from_enrolment(body)
