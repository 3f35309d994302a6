"""How long our processes wait for contents that come after their message."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from flwr.supercore import telemetry
from flwr.supercore.inflatable import inflatable_utils as flower
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.supercore.telemetry import EventType

from zk0d.errors import UnavailableError
from zk0d.flower import apps, pulls, supernode

PULLING = ("pull_objects", "pull_and_inflate_object_from_tree")


@pytest.fixture(autouse=True)
def flowers_own_waits() -> Iterator[None]:
    """What :func:`pulls.install` changes is Flower's again afterwards."""
    own = {name: dict(getattr(flower, name).__kwdefaults__) for name in PULLING}
    yield
    for name, defaults in own.items():
        getattr(flower, name).__kwdefaults__ = defaults


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of Flower's pulling threads, which take no time here."""
    noted: list[float] = []

    class Noted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            noted.append(timeout or 0.0)
            return self.is_set()

    class Threading:
        Event = Noted
        Lock = threading.Lock

    monkeypatch.setattr(flower, "threading", Threading)
    return noted


def comes_after(tries: int) -> Callable[[str], bytes]:
    left = [tries]

    def pull(_: str) -> bytes:
        if left[0]:
            left[0] -= 1
            raise ObjectUnavailableError("a")
        return b"content"

    return pull


def test_a_content_that_comes_late_is_asked_for_again_at_once(waits: list[float]) -> None:
    pulls.install()
    assert flower.pull_objects(["a"], comes_after(4)) == {"a": b"content"}
    assert len(waits) == 4
    assert waits[0] <= 1.2 * pulls.FIRST_WAIT
    assert sum(waits) < 1.0, "Flower's own would be 15 s"


def test_a_content_that_takes_long_is_asked_for_seldom_and_not_given_up(waits: list[float]) -> None:
    pulls.install()
    assert flower.pull_objects(["a"], comes_after(1000)) == {"a": b"content"}
    assert max(waits) <= 1.2 * pulls.LONGEST_WAIT
    assert waits[-1] >= 0.8 * pulls.LONGEST_WAIT


def test_a_flower_without_these_waits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flower, "pull_objects", lambda object_ids, pull: {})
    with pytest.raises(UnavailableError, match="this Flower has no waits in pull_objects"):
        pulls.install()


@pytest.mark.parametrize("verb", ["serverapp", "clientapp"])
def test_both_apps_wait_so_and_make_no_event(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run() -> None:
        seen.extend((first_wait(), telemetry.event(EventType.PING).result(20)))

    monkeypatch.setattr(telemetry, "create_event", telemetry.create_event)
    monkeypatch.setattr(apps, f"run_{verb}", run)
    monkeypatch.setattr(sys, "argv", ["apps", verb])
    apps.main()
    assert seen == [pulls.FIRST_WAIT, "off"]


def test_a_supernode_waits_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    program = importlib.import_module("flwr.supernode.cli.flower_supernode")
    monkeypatch.setattr(program, "flower_supernode", lambda: seen.append(first_wait()))
    for name in ("line_of", "name_requests"):
        monkeypatch.setattr(supernode, name, lambda *_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    module = importlib.import_module("flwr.supernode.start_client_internal")
    for name in ("_pull_and_store_message", "_push_messages", "time"):
        monkeypatch.setattr(module, name, getattr(module, name))
    supernode.main()
    assert seen == [pulls.FIRST_WAIT]


def first_wait() -> float:
    return float(flower.pull_objects.__kwdefaults__["initial_backoff"])
