"""``policy-updates``: each new release that passed the gate, within what the owner's line lends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.services.shop import Shop, opened
from zk0d.config.limits import LimitsSettings
from zk0d.daemon import line as daemon_line
from zk0d.daemon.line import LineBook, LineWatch
from zk0d.errors import ConfigError, TryAgainError
from zk0d.federation.line import Line
from zk0d.machine import node_key, units
from zk0d.machine.setup import change_client
from zk0d.release.checkpoint import accept
from zk0d.services import policy_updates
from zk0d.services.policy_updates import run

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("policy-updates")]


class Told:
    """What the service tells systemd."""

    said: list[str]

    def __init__(self) -> None:
        Told.said = []

    def status(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with opened(tmp_path_factory.mktemp("shop"), with_nginx=False) as made:
        yield made


@pytest.fixture
def shop(door: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setattr(policy_updates, "Notify", Told)
    yield door
    door.clear()


def config(shop: Shop) -> Path:
    return shop.key.parent / "client.toml"


def look(shop: Shop, *, on: bool = True, **limits: object) -> str:
    """What the service says last, with these limits."""
    usual = LimitsSettings().model_dump(by_alias=True)
    given = {key.replace("_", "-"): value for key, value in limits.items()}
    reset: Mapping[str, object] = {key: usual[key] for key in given}
    change_client(config(shop), {"policy-updates": on, "limits": given})
    try:
        run(config(shop))
    finally:
        change_client(config(shop), {"limits": reset})
    return Told.said[-1]


def test_it_is_off_unless_the_owner_says_otherwise(shop: Shop) -> None:
    assert shop.client.policy_updates is False
    shop.put("7", 1.5, 1.0)
    assert look(shop, on=False) == "policy-updates is off: nothing is fetched"
    assert not shop.pulled.all()


def test_each_new_release_comes_once(shop: Shop) -> None:
    assert look(shop) == "the coordinator has no release yet"
    shop.put("7", 1.5, 1.0)
    assert "release 7/1 is here now" in look(shop)
    assert "release 7/1 is here already" in look(shop)
    shop.put("8", 1.5, 0.9, began="2026-01-02T00:00:00Z")
    assert "release 8/1 is here now" in look(shop)
    assert shop.pulled.find("latest").parent.name == "8"
    assert len(shop.pulled.all()) == 2, "the one before stays"


def test_what_did_not_pass_the_gate_is_not_fetched(shop: Shop) -> None:
    worse = shop.put("7", 1.0, 1.2)
    assert look(shop) == "the coordinator has no release yet"
    accept(worse, "it looks better", shop.door._offered._releases)
    shop.offered.hash_new()
    assert "did not pass the gate" in look(shop)
    assert not shop.pulled.all()


def test_a_day_whose_bytes_are_spent_by_rounds_holds_no_release(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    LineBook(shop.client.superexec.state).add(down=900_000, up=200_000)
    assert "until midnight" in look(shop, bytes_per_day="1 MB")
    assert not shop.client.policies_folder.exists(), "nothing was asked"


def test_a_release_that_a_day_does_not_hold_comes_on_two(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.put("7", 1.5, 1.0)
    LineBook(shop.client.superexec.state).add(down=400_000)
    assert "until midnight" in look(shop, bytes_per_day="1 MB")
    (part,) = shop.pulled.incoming.glob("*.part")
    spent = LineBook(shop.client.policies_folder).today().down
    assert 500_000 < part.stat().st_size <= spent <= 600_000
    tomorrow = time.localtime(time.time() + 86400)
    monkeypatch.setattr(daemon_line.LineBook.__init__, "__defaults__", (lambda: tomorrow,))
    assert "release 7/1 is here now" in look(shop, bytes_per_day="1 MB")
    whole = LineBook(shop.client.policies_folder).today().down
    assert whole < 500_000, "what came yesterday did not come again"


def test_rounds_see_the_bytes_of_releases(shop: Shop) -> None:
    LineBook(shop.client.policies_folder).add(down=2_000_000)
    limits = LimitsSettings(bytes_per_day=1_500_000)
    book = LineBook(shop.client.superexec.state)
    line = Line(limits, book, besides=LineBook(shop.client.policies_folder))
    with pytest.raises(TryAgainError, match="until midnight"):
        line.check("7")
    Line(limits, book).check("7")
    settings = shop.client.model_copy(update={"limits": limits})
    assert "until midnight" in LineWatch.of(settings).rests()


def test_outside_the_lines_hours_nothing_moves(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    now = time.localtime()
    begin, end = (now.tm_hour + 2) % 24, (now.tm_hour + 3) % 24
    said = look(shop, transfer_hours=f"{begin:02}:00-{end:02}:00")
    assert "limits.transfer-hours" in said
    assert not shop.pulled.all()


def test_a_metered_connection(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.put("7", 1.5, 1.0)
    monkeypatch.setattr(policy_updates, "is_metered", lambda: True)
    assert "is here now" in look(shop), "the coordinator is on this machine"
    shop.pulled.find("latest")
    monkeypatch.setattr(policy_updates, "is_this_machine", lambda url: False)
    assert "while the connection is metered" in look(shop)


def test_the_download_rate_holds(shop: Shop) -> None:
    shop.put("7", 1.5, 1.0)
    began = time.monotonic()
    assert "is here now" in look(shop, download_rate="400 kB")
    # The first second of a line that rested is free.
    assert time.monotonic() - began > 1.0


def test_a_coordinator_that_is_away_is_tried_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_client(config(shop), {"coordinator": {"presence": "http://127.0.0.1:9/zk0d/v1"}})
    try:
        with pytest.raises(TryAgainError):
            look(shop)
    finally:
        change_client(config(shop), {"coordinator": {"presence": shop.url}})


def test_a_missing_key_waits_for_a_person(shop: Shop, tmp_path: Path) -> None:
    change_client(config(shop), {"supernode": {"key": str(tmp_path / "none.key")}})
    try:
        with pytest.raises(ConfigError, match=r"supernode\.key"):
            look(shop)
    finally:
        change_client(config(shop), {"supernode": {"key": str(shop.key)}})


def test_a_sealed_key_is_handed_to_both_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "node.key"
    node_key.make(key)
    content = key.read_bytes()
    written: list[str] = []
    monkeypatch.setattr(units, "has_systemd", lambda: True)
    monkeypatch.setattr(units, "systemctl", lambda *words: None)
    monkeypatch.setattr(units, "write_drop_in", lambda unit, *rest: written.append(unit))
    monkeypatch.setattr(shutil, "which", lambda program: "/usr/bin/systemd-creds")
    monkeypatch.setattr(node_key, "_systemd_creds", lambda verb, *files: content)
    node_key.seal(key)
    assert written == ["zk0d-client.service", "zk0d-policy-updates.service"]
