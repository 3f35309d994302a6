"""Nodes that let themselves in by an invite's token: a real nginx and a real ``zk0d superlink``."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.test_setup import Scripted
from tests.processes import wait_until
from tests.services.lab import Lab, lab, nginx, zk0bot
from zk0d.cli.setup import Conversation
from zk0d.config.machine import ClientSettings
from zk0d.machine import audit, units
from zk0d.machine.enrolment import Invite, Request
from zk0d.machine.invites import FILE, OpenInvites
from zk0d.machine.keys import fingerprint, make_node_key
from zk0d.machine.roster import read_roster
from zk0d.machine.setup import kept_token

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(nginx() is None, reason="nginx is not here"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, recordings_folder: Path) -> Iterator[Lab]:
    with lab(tmp_path_factory.mktemp("hub"), recordings_folder) as made:
        made.start("superlink", "superlink", "--config", str(made.server_toml))
        made.start_gateway()
        made.wait_for_status("superlink", "no node may join yet")
        yield made


@pytest.fixture
def door(hub: Lab) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=str(hub.certificates.ca))
    with httpx.Client(base_url=f"https://127.0.0.1:{hub.gateway}/zk0d/v1", verify=trust) as client:
        yield client


def invites(hub: Lab) -> OpenInvites:
    return OpenInvites(hub.root / "superlink")


def asking(folder: Path, name: str, token: str) -> dict[str, str]:
    """The body of a node with a new key."""
    key = folder / f"{name}.key"
    if not key.exists():
        make_node_key(key)
    request = Request.of(name, key.with_suffix(".pub"))
    return dict(json.loads(request.to_enrolment(key, token)))


def enrolled(hub: Lab) -> set[str]:
    return {path.stem for path in read_roster(hub.root / "roster.d").values()}


def test_a_token_lets_one_node_in(hub: Lab, door: httpx.Client, tmp_path: Path) -> None:
    made, token = invites(hub).add(600.0, 1)
    body = asking(tmp_path, "first", token)
    done = door.post("/enrol", json=body)
    assert (done.status_code, done.json()["said"]) == (200, "approved")
    key = fingerprint(tmp_path / "first.pub")
    wait_until(
        lambda: door.get(f"/nodes/{key}").json()["enrolled"],
        "the node in the SuperLink's list",
        60.0,
        [hub.services["superlink"].child],
        interval=0.5,
    )
    noted = [line for line in audit.read(hub.root / "superlink") if line.get("key") == key]
    assert noted[0]["kind"] == "node.approved"
    assert (noted[0]["node"], noted[0]["invite"]) == ("first", made.id)
    again = door.post("/enrol", json=body)
    assert again.status_code == 200, "an answer that was lost is asked for again"
    other = door.post("/enrol", json=asking(tmp_path, "another", token))
    assert (other.status_code, other.json()["said"]) == (403, "this invite is used up")
    assert "another" not in enrolled(hub)


def test_an_enrolment_without_a_right_is_refused(
    hub: Lab, door: httpx.Client, tmp_path: Path
) -> None:
    before = enrolled(hub)
    _, token = invites(hub).add(600.0, 1)
    expired, late = invites(hub).add(600.0, 1)
    path = hub.root / "superlink" / FILE
    content = json.loads(path.read_text())
    for each in content["invites"]:
        if each["id"] == expired.id:
            each["until"] -= 601.0
    path.write_text(json.dumps(content))
    fine = asking(tmp_path, "eve", token)
    stranger = asking(tmp_path, "mallory", token)
    for body, status, says in (
        (asking(tmp_path, "eve", ""), 403, "a person approves"),
        (asking(tmp_path, "eve", "A" * 22), 403, "does not know this invite"),
        (asking(tmp_path, "eve", late), 403, "expired"),
        (fine | {"signature": stranger["signature"]}, 400, "damaged"),
        (fine | {"request": stranger["request"]}, 400, "damaged"),
        (fine | {"request": fine["request"].replace("A", "B", 1)}, 400, "damaged"),
        ({"token": token}, 400, "cannot be read"),
    ):
        answer = door.post("/enrol", json=body)
        assert answer.status_code == status, (answer.text, says)
        assert says in answer.json()["said"]
    assert door.post("/enrol", json=fine | {"more": "x" * 5000}).status_code == 413
    for method in ("GET", "PUT", "DELETE"):
        assert door.request(method, "/enrol").status_code in (403, 405)
    assert enrolled(hub) == before
    assert [each.uses for each in invites(hub).still_open() if each.uses] == [1], (
        "no use was counted"
    )


def test_without_nginx_a_body_is_bounded_too(hub: Lab) -> None:
    body = json.dumps({"request": "x" * 5000})
    said = httpx.post(f"http://127.0.0.1:{hub.presence}/zk0d/v1/enrol", content=body)
    assert said.status_code == 413


def test_one_address_cannot_ask_without_end(hub: Lab, door: httpx.Client) -> None:
    statuses = {door.post("/enrol", json={}).status_code for _ in range(60)}
    assert statuses == {400, 429}


def test_both_ways_to_join_show_the_token(
    hub: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the operator's command to the end of both ways to join, past a name that is taken."""
    monkeypatch.setattr(units, "has_systemd", lambda: False)
    on_hub = ("--folder", str(hub.root))
    made = zk0bot("server", "invite", "--for", "2h", "--uses", "2", *on_hub)
    assert made.returncode == 0, made.stderr
    assert "lets nodes in for 2h, 2 in all" in made.stderr
    line = Invite.from_line(made.stdout)
    address = f"127.0.0.1:{hub.gateway}"
    invite = Invite(address, line.ca, line.token).to_line()
    listed = zk0bot("server", "invite", "--list", *on_hub).stdout
    assert "2 left" in listed

    def joins() -> bool:  # the test before may have used up this address's requests
        said = zk0bot("client", "join", invite, "--name=bench", "--folder", str(tmp_path / "a"))
        assert said.returncode == 0, said.stderr
        return "the coordinator has approved this node" in said.stderr

    wait_until(joins, "the approval", 60.0, [hub.services["superlink"].child], interval=1.0)
    assert kept_token(tmp_path / "a") == ""
    person = Scripted("bench", "table")
    conversation = Conversation(person, tmp_path / "b")
    conversation.join(invite, "bench")

    def is_approved() -> bool:
        conversation.ask_to_join("")
        return "The coordinator has approved this node." in person.said

    wait_until(is_approved, "the approval", 60.0, [hub.services["superlink"].child], interval=1.0)
    assert "there is a node 'bench' with another key" in person.text
    assert ClientSettings.load(tmp_path / "b/client.toml").name == "table"
    assert {"bench", "table"} <= enrolled(hub)
    late = Conversation(Scripted(yes=True), tmp_path / "c")
    late.join(invite, "late")
    late.ask_to_join("")
    assert "late" not in enrolled(hub)


def test_an_operator_takes_an_invite_back(hub: Lab) -> None:
    on_hub = ("--folder", str(hub.root))
    made = zk0bot("server", "invite", "--for", "2h", *on_hub)
    id_ = made.stderr.split()[1].rstrip(":")
    revoked = zk0bot("server", "invite", "--revoke", id_, *on_hub)
    assert revoked.returncode == 0, revoked.stderr
    assert id_ not in zk0bot("server", "invite", "--list", *on_hub).stdout
    again = zk0bot("server", "invite", "--revoke", id_, *on_hub)
    assert (again.returncode, again.stderr.count("\n")) == (64, 1)
    assert zk0bot("server", "invite", "--uses", "3", *on_hub).returncode == 64
    kinds = [line["kind"] for line in audit.read(hub.root / "superlink")]
    assert {"invite.made", "invite.revoked"} <= set(kinds)
