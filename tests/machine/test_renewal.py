"""What the roster makes of a node's request to change its key."""

from __future__ import annotations

import json
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from zk0d.machine import renewal, roster
from zk0d.machine.enrolment import Request
from zk0d.machine.keys import fingerprint, make_node_key
from zk0d.machine.renewal import RENEWAL_SECONDS, Renewal
from zk0d.services import enrolment
from zk0d.services.enrolment import Answer, Enrolment


class Coordinator:
    """One with the nodes ``left`` and ``right``, and ``left``'s two keys."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.roster = folder, folder / "roster.d"
        for name in ("left", "right", "new", "stranger"):
            make_node_key(folder / f"{name}.key")
        for name in ("left", "right"):
            asked = Request.of(name, folder / f"{name}.pub", f"{name}@example.org")
            roster.approve(self.roster, asked)
        self.noted: list[tuple[str, dict[str, Any]]] = []
        self.start()

    def start(self) -> None:
        self.door = Enrolment(
            self.folder, self.roster, lambda kind, **facts: self.noted.append((kind, facts))
        )

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def print_of(self, name: str) -> str:
        return fingerprint(self.folder / f"{name}.pub")

    def asked(self, name: str = "left", old: str = "left", new: str = "new") -> Renewal:
        return Renewal.of(name, self.key(old), self.key(new))

    def take(self, asked: Renewal, old: str = "left", new: str = "new") -> Answer:
        return self.door.take(asked.to_body(self.key(old), self.key(new)).encode())

    def files(self) -> dict[str, str]:
        return {entry.key: entry.path.name for entry in roster.entries(self.roster)}


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of day; its one element may be changed."""
    time = [1_000_000.0]
    for module in (renewal, enrolment):
        monkeypatch.setattr(module.time, "time", lambda: time[0])
    return time


@pytest.fixture
def hub(tmp_path: Path, now: list[float]) -> Coordinator:
    return Coordinator(tmp_path)


def test_the_new_key_is_valid_beside_the_old_one(hub: Coordinator) -> None:
    assert hub.take(hub.asked()) == Answer(HTTPStatus.OK, "approved")
    keys = hub.files()
    assert keys[hub.print_of("left")] == "left.pub"
    assert keys[hub.print_of("new")] == "left.next.pub"
    (entry,) = (each for each in roster.entries(hub.roster) if each.next)
    assert (entry.renewed, entry.contact) == (True, "left@example.org")
    ((kind, facts),) = hub.noted
    assert (kind, facts["node"], facts["key"]) == ("key.approved", "left", hub.print_of("new"))
    assert facts["old"] == hub.print_of("left")
    assert not roster.rotate(hub.roster, "left").renewed


def test_a_repeat_changes_nothing(hub: Coordinator, now: list[float]) -> None:
    hub.take(hub.asked())
    before = hub.files()
    now[0] += 5.0
    assert hub.take(hub.asked()).status == HTTPStatus.OK
    assert hub.files() == before
    assert len(hub.noted) == 1


def test_the_next_renewal_ends_the_overlap_before_it(hub: Coordinator, now: list[float]) -> None:
    hub.take(hub.asked())
    now[0] += 5.0
    make_node_key(hub.key("newest"))
    assert hub.take(hub.asked(old="new", new="newest"), "new", "newest").status == HTTPStatus.OK
    keys = hub.files()
    assert hub.print_of("left") not in keys
    assert keys[hub.print_of("new")] == "left.pub"
    assert keys[hub.print_of("newest")] == "left.next.pub"


def test_what_is_not_a_nodes_own_word_is_refused(hub: Coordinator) -> None:
    before, fine = hub.files(), hub.asked()
    body = json.loads(fine.to_body(hub.key("left"), hub.key("new")))
    other = {**body["signatures"], "new": body["signatures"]["old"]}
    for answer, status, says in (
        (hub.take(hub.asked(old="stranger"), "stranger"), 403, "does not know the key"),
        (hub.take(fine, old="stranger"), 400, "damaged"),
        (hub.take(fine, new="stranger"), 400, "damaged"),
        (hub.take(hub.asked(name="right")), 403, "calls the node with this key otherwise"),
        (hub.take(hub.asked(new="right"), new="right"), 403, "the new key is another node's"),
        (hub.take(hub.asked(new="left"), new="left"), 403, "the new key is the old one"),
        (hub.door.take(json.dumps(body | {"signatures": other}).encode()), 400, "damaged"),
        (hub.door.take(b'{"renewal": []}'), 400, "damaged"),
    ):
        assert (answer.status, says in answer.sentence) == (status, True), (answer, says)
    assert hub.files() == before
    assert hub.noted == []


def test_a_renewal_is_of_now_and_comes_once(hub: Coordinator, now: list[float]) -> None:
    asked = hub.asked()
    now[0] += RENEWAL_SECONDS + 1.0
    late = hub.take(asked)
    assert (late.status, "301 s old" in late.sentence) == (403, True)
    early = hub.take(replace(hub.asked(), moment=int(now[0] + RENEWAL_SECONDS + 2.0)))
    assert (early.status, "set this machine's clock" in early.sentence) == (403, True)
    asked = hub.asked()
    assert hub.take(asked).status == HTTPStatus.OK
    (hub.roster / "left.next.pub").unlink()  # its operator took it back
    again = hub.take(asked)
    assert (again.status, "has seen this renewal before" in again.sentence) == (403, True)
    now[0] += 2.0
    hub.start()
    restarted = hub.take(asked)
    assert (restarted.status, "has just started" in restarted.sentence) == (403, True)
    assert hub.print_of("new") not in hub.files()
    assert hub.take(hub.asked()).status == HTTPStatus.OK
