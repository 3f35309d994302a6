"""A machine whose owner comes first: the rules, who hears of a rest, and what each does then."""

from __future__ import annotations

import contextlib
import json
import ssl
import time
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.federation.test_line import refusal_of_a_query
from tests.processes import started, wait_until
from tests.services.lab import lab
from zk0d import monitoring
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import LIMITS_VARIABLE, OWNER_VARIABLE
from zk0d.daemon import rest as resting
from zk0d.daemon.clock import uptime
from zk0d.daemon.rest import FILE, STALE_SECONDS, Rest, read_rest, told_of
from zk0d.errors import ConfigError, Zk0dError
from zk0d.federation.messages import Message as Task
from zk0d.federation.messages import Query, QueryReply
from zk0d.federation.nodes import Node
from zk0d.learner.tasks import Learner
from zk0d.learning.progress import Decoding, event_of
from zk0d.machine.keys import make_node_key
from zk0d.machine.rest_note import HEADER, NOTE_SECONDS, read_note, write_note
from zk0d.services.coordinator import ask_presence
from zk0d.services.figures import NodeCollector
from zk0d.services.learner import LearnerService
from zk0d.services.owner import BACK_SECONDS, RestRules
from zk0d.services.presence import HEARD_SECONDS, LATE_SECONDS, Presence, PresencePage

MONDAY_NOON = datetime(2026, 11, 30, 12)
GAME = Rest("program", "while steam runs (limits.priority)")


class Machine:
    """A machine of the test's own, and what its owner lends of it."""

    def __init__(self, **limits: Any) -> None:
        self.now, self.clock = MONDAY_NOON, 0.0
        self.battery, self.program = False, ""
        self.idle: bool | None = True
        self.gpu: list[str] = []
        given = {key.replace("_", "-"): value for key, value in limits.items()}
        self.rules = RestRules(
            LimitsSettings.parse(given, where="test"),
            now=lambda: self.now,
            clock=lambda: self.clock,
            on_battery=lambda: self.battery,
            running=lambda names: self.program if self.program in names else "",
            is_idle=lambda: self.idle,
            gpu_programs=lambda: self.gpu,
        )

    def says(self) -> str:
        rest = self.rules.look()
        return rest.when if rest else ""


def test_hours_end_a_rest_when_they_begin() -> None:
    machine = Machine(hours="mon-fri 22:00-07:00")
    assert machine.says() == "until 22:00 (limits.hours)"
    rest = machine.rules.look()
    assert rest is not None
    assert not rest.at_once, "a round under way is finished"
    assert rest.until == datetime(2026, 11, 30, 22).timestamp()
    machine.now = datetime(2026, 11, 30, 22)
    assert machine.says() == ""
    machine.now = datetime(2026, 12, 5, 12)
    assert machine.says() == "until Mon 22:00 (limits.hours)"


@pytest.mark.parametrize(
    ("limits", "now", "said"),
    [
        ({"priority": ["steam"]}, {"program": "steam"}, "while steam runs (limits.priority)"),
        ({}, {"battery": True}, "while this machine runs on its battery (limits.on-battery)"),
        (
            {"only_when_idle": True},
            {"idle": False},
            "while a session is in use (limits.only-when-idle)",
        ),
        (
            {"only_when_idle": True},
            {"gpu": ["blender"]},
            "while blender works on the GPU (limits.only-when-idle)",
        ),
        (
            {"only_when_idle": True},
            {"idle": None},
            "while logind does not say whether it is idle (limits.only-when-idle)",
        ),
        # What nobody asked for.
        ({}, {"program": "steam", "idle": False, "gpu": ["blender"]}, ""),
        ({"on_battery": True}, {"battery": True}, ""),
    ],
)
def test_a_rest_begins_at_once_and_ends_a_minute_after_its_cause(
    limits: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    machine = Machine(**limits)
    usual = {key: getattr(machine, key) for key in now}
    assert machine.says() == ""
    vars(machine).update(now)
    assert machine.says() == said
    vars(machine).update(usual)
    machine.clock += BACK_SECONDS - 1
    assert machine.says() == said
    machine.clock += 1
    assert machine.says() == ""


def told(folder: Path, rest: Rest | None, **changes: Any) -> None:
    (folder / FILE).write_text(json.dumps(told_of(rest) | changes))


def test_a_node_rests_if_no_service_has_looked_lately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, not_asked = LimitsSettings(priority=["steam"]), LimitsSettings()
    told(tmp_path, GAME)
    assert read_rest(tmp_path, asked) == read_rest(tmp_path, not_asked) == GAME
    told(tmp_path, None)
    assert read_rest(tmp_path, asked) is None
    later = uptime() + STALE_SECONDS + 1
    monkeypatch.setattr(resting, "uptime", lambda: later)
    for content in (None, "{", '{"uptime": "x"}', '{"uptime": -5}'):
        if content is not None:
            (tmp_path / FILE).write_text(content)
        rest = read_rest(tmp_path, asked)
        assert rest is not None
        assert rest.when.startswith("until zk0d owner runs")
        assert read_rest(tmp_path, not_asked) is None, "as in a demo, where it does not run"


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of which the SuperExec told its ClientApps."""
    limits = LimitsSettings(priority=["steam"])
    monkeypatch.setenv(LIMITS_VARIABLE, limits.model_dump_json(by_alias=True))
    monkeypatch.setenv(OWNER_VARIABLE, str(tmp_path))
    return tmp_path


def asked(answer: Any) -> str:
    """With which reason a real ClientApp refuses a query; its learner is a stand-in."""
    refused = refusal_of_a_query(answer)
    return f"{refused.reason}: {refused.message}"


def test_a_query_is_refused_while_the_node_rests(owner: Path) -> None:
    told(owner, GAME)
    said = asked(lambda task, progress: pytest.fail("the learner was asked"))
    # Not by which program: that is the owner's business.
    assert said == (
        "resting: this node rests while its owner needs the machine; it comes back by itself."
    )


@pytest.mark.parametrize(("at_once", "ends"), [(True, "resting"), (False, "bug")])
def test_work_under_way_ends_only_for_a_rest_at_once(owner: Path, at_once: bool, ends: str) -> None:
    """The learner stops a task whose caller hangs up, which is what an error here does."""
    told(owner, None)

    def work(task: Query, progress: Any) -> QueryReply:
        progress({"event": "alive"})
        told(owner, Rest("hours", "until 22:00 (limits.hours)", at_once=at_once))
        progress({"event": "alive"})
        raise Zk0dError("it was finished", reason="bug")

    assert asked(work).startswith(ends)


@pytest.mark.slow
def test_a_node_leaves_while_a_program_runs_and_comes_back(
    tmp_path: Path,
) -> None:
    """The real services; nobody else is there, so that the SuperNode waits for its coordinator."""
    program = tmp_path / "a-game-of-the-test"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with lab(tmp_path, Path("/nothing")) as made:
        config = made.add_node("left")
        with config.open("a") as file:
            file.write(f"\n[limits]\npriority = ['{program.name}']\n")
        owner = made.start("owner", "owner", "--config", str(config))
        made.wait_for_status("owner", "the owner does not need this machine")
        made.start("node", "supernode", "--config", str(config))
        made.wait_for_status("node", "waiting for the coordinator")
        with started([program, "600"]):
            said = f"resting while {program.name} runs (limits.priority); it comes back by itself"
            made.wait_for_status("owner", said)
            made.wait_for_status("node", said)
            # It waits a minute for a coordinator that is away, which the guests' test does not.
            state = json.loads((made.root / "left/supernode/state.json").read_text())
            assert state["held"] == "rest"
        # The end of a rest is a minute later; no test waits for that.
        owner.child.stop()
        told(made.root / "left/state/owner", None)
        made.wait_for_status("node", "waiting for the coordinator")


def keys(folder: Path) -> tuple[Path, str]:
    """A node's private key, and its fingerprint; its public half lies beside it."""
    key = folder / "node.key"
    return key, make_node_key(key)


def test_a_node_tells_until_when_it_rests(tmp_path: Path) -> None:
    key, _ = keys(tmp_path)
    for until in (None, 1796010000.0):
        assert read_note(write_note(key, until), tmp_path / "node.pub") == until
    (tmp_path / "other").mkdir()
    other, _ = keys(tmp_path / "other")
    note = write_note(key, 1796010000.0)
    until_text, moment, signature = note.split(".")
    for bad in (
        write_note(other, None),
        f"{int(until_text) + 1}.{moment}.{signature}",
        f"{until_text}.{int(moment) + 1}.{signature}",
        f"{until_text}.{moment}.{signature[:-4]}",
        f"{until_text}.{moment}",
        "x.y.z",
        "",
        "..",
        "1.2." + "A" * 5000,
    ):
        with pytest.raises(ConfigError, match="is not its own"):
            read_note(bad, tmp_path / "node.pub")


def test_an_old_note_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = keys(tmp_path)
    note, later = write_note(key, None), time.time() + NOTE_SECONDS + 1
    monkeypatch.setattr("zk0d.machine.rest_note.time.time", lambda: later)
    with pytest.raises(ConfigError, match="is old"):
        read_note(note, tmp_path / "node.pub")


def node(key: str, *, online: bool) -> Node:
    return Node(1, key, "left", online, 5.0, 5.0)


def test_the_coordinator_knows_that_a_node_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the presence page over HTTP, as the SuperNode's service asks it."""
    key, fingerprint = keys(tmp_path)
    (tmp_path / "node.pub").rename(tmp_path / "left.pub")
    presence = Presence(tmp_path)
    presence.update([node(fingerprint, online=True)], None, {})
    page = PresencePage(presence, 0)
    with contextlib.closing(page):
        url = f"http://127.0.0.1:{page.port}/zk0d/v1/nodes/{fingerprint}"

        def ask(note: str = "") -> dict[str, Any]:
            return ask_presence(url, ssl.create_default_context(), {HEADER: note}).answer

        assert ask(write_note(key, None))["online"]
        assert presence.resting == {}, "it is still there"
        presence.update([node(fingerprint, online=False)], None, {})
        assert presence.resting[fingerprint].until is None
        until = time.time() + 3600.0
        ask(write_note(key, until))
        assert presence.resting[fingerprint].until == pytest.approx(until, abs=1.0)
        (tmp_path / "other").mkdir()
        other, stranger = keys(tmp_path / "other")
        ask(write_note(other, None))
        assert presence.resting[fingerprint].until is not None, "another key's word is nothing"
        ask_presence(
            url.replace(fingerprint, stranger), ssl.create_default_context(), {HEADER: "1.2.3"}
        )
        assert stranger not in presence.resting
        ask()
        assert fingerprint in presence.resting, "anybody may ask without a note"
        for online in (True, False):
            presence.update([node(fingerprint, online=online)], None, {})
        assert presence.resting == {}, "it came back"
        # It is missed ten minutes after the time that it gave.
        ask(write_note(key, until))
        monkeypatch.setattr("zk0d.services.presence.time.time", lambda: until + LATE_SECONDS + 1)
        assert presence.resting == {}


def test_a_node_that_does_not_know_until_when_says_so_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, fingerprint = keys(tmp_path)
    presence = Presence(tmp_path)
    presence.update([node(fingerprint, online=False)], None, {})
    presence.take_note(fingerprint, write_note(key, None))
    assert fingerprint in presence.resting
    later = uptime() + HEARD_SECONDS + 1
    monkeypatch.setattr("zk0d.services.presence.uptime", lambda: later)
    assert presence.resting == {}, "its machine may have been switched off since"


def test_a_node_that_rests_is_a_figure_and_no_lost_one() -> None:
    made = NodeCollector()
    made.update([node("k", online=False)], None, (), {"k"})
    found = {family.name: family.samples[0].value for family in made.collect()}
    assert found["zk0d_node_resting"] == 1.0
    assert found["zk0d_node_online"] == 0.0
    rules = (Path(monitoring.__file__).parent / "rules/alerts.yml").read_text()
    (lost,) = [rule for rule in rules.split("- alert: ") if rule.startswith("Zk0dNodeLost")]
    assert "unless on (node) zk0d_node_resting == 1" in lost


class Loaded(Learner):
    """Holds a policy, or none."""

    kinds: ClassVar[dict[str, type[Task]]] = {}

    def __init__(self, *, is_loaded: bool) -> None:
        self._is_loaded = is_loaded

    @property
    def is_loaded(self) -> bool:
        return self._is_loaded

    def run(self, *_: Any) -> Any:
        raise AssertionError


@pytest.mark.parametrize("is_loaded", [True, False])
def test_the_learner_lets_go_of_memory_while_its_owner_needs_the_machine(
    tmp_path: Path, is_loaded: bool
) -> None:
    """It ends once it has no task; its service starts it again, and it loads nothing then."""
    learner, rests = Loaded(is_loaded=is_loaded), [None, GAME]
    service = LearnerService(
        "learner", lambda: (learner, tmp_path / "socket"), rests=lambda: rests[0]
    )
    service.start()
    try:
        wait_until(lambda: service.look().ready, "its start", 60)
        assert service.look().status == "ready, waiting for a round"
        assert not service.ending
        del rests[0]
        assert service.look().status == GAME.sentence()
        assert service.ending is is_loaded
    finally:
        service.stop()


@pytest.mark.parametrize("at_once", [True, False])
def test_a_learner_that_decodes_ends_for_a_rest_at_once(tmp_path: Path, at_once: bool) -> None:
    rest = Rest("hours", "until 22:00 (limits.hours)", at_once=at_once)
    learner = Loaded(is_loaded=False)
    service = LearnerService("learner", lambda: (learner, tmp_path / "socket"), rests=lambda: rest)
    service.start()
    try:
        wait_until(lambda: service.look().ready, "its start", 60)
        decoding = event_of(Decoding(5, 100, 1.0, 0))
        service._app._doing = {"state": "working", "task": "query", "seen": time.monotonic()}
        service._app._doing |= decoding
        assert "decoding" in service.look().status
        assert service.ending is at_once
    finally:
        service.stop()
