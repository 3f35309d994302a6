"""A run that waits, as each place tells it, and the verbs that work in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from tests.record.lines import Told
from tests.record.lines import write as note
from tests.services.test_autorun import Coordinator
from zk0d.cli import run as run_verb
from zk0d.cli.main import app
from zk0d.cli.status import _print
from zk0d.errors import UsageError
from zk0d.flower.control import COMPLETED, FINISHED, FlowerRun
from zk0d.machine import units
from zk0d.record.journal import TRY_NOW, Journal, read_journal
from zk0d.record.state import NewestRun, RunState
from zk0d.services import page
from zk0d.services.figures import RunCollector
from zk0d.services.presence import Presence
from zk0d.services.run_watch import RunWatch
from zk0d.services.supernode import _online_sentence

WAITS = {
    "reason": "too_few_nodes",
    "message": "1 of 2 nodes can train, bob is offline",
    "until": "when 1 more node can train",
    "since": 60.0,
}

#: What ``zk0bot status`` gathers where there is nothing.
NOTHING: dict[str, Any] = {
    "services": [],
    "run": None,
    "nodes": [],
    "line": None,
    "trained": None,
    "contributors": [],
    "next_ca": None,
    "todo": [],
}


def waiting() -> Told:
    told = Told(run="7")
    told.take({"kind": "run.started", "run": "7", "settings": {"num-server-rounds": 9}})
    told.take({"kind": "round.committed", "round": 3})
    told.take({"kind": "run.waiting", **WAITS})
    return told


def test_every_place_says_for_what_a_run_waits(capsys: pytest.CaptureFixture[str]) -> None:
    run = waiting()
    said = run.sentence()
    assert said.startswith("run 7 waits at round 3/9 since 19")
    assert said.endswith(f": {WAITS['message']}; it continues {WAITS['until']}")
    status = run.status()
    assert status["state"] == "waiting"
    assert status["waiting"] == {
        "since": 60.0,
        "reason": "too_few_nodes",
        "for": WAITS["message"],
        "until": WAITS["until"],
        "next_try": None,
    }
    _print(NOTHING | {"run": status})
    shown = capsys.readouterr().out
    assert f": {WAITS['message']}\n  continues when 1 more node can train" in shown
    html = page.render([], run, 100.0).decode()
    assert "It waits since 1970-01-01 00:01 UTC: 1 of 2 nodes can train, bob is offline." in html
    run.take({"kind": "run.continued", "reason": "too_few_nodes", "seconds": 1.0})
    assert (run.phase, run.status()["waiting"]) == ("running", None)
    assert "It waits" not in page.render([], run, 100.0).decode()


def test_a_node_learns_when_the_run_continues_and_of_no_other_node() -> None:
    presence = Presence()
    presence.update([SimpleNamespace(key="k", activated=0.0, online=True)], waiting(), {})  # type: ignore[list-item]
    answer = presence.of("k")
    assert "bob" not in str(answer)
    assert _online_sentence(answer) == (
        "online; the run waits after round 3: it continues when 1 more node can train"
    )


def test_metrics_have_since_when_and_the_operators_limit() -> None:
    registry, newest = CollectorRegistry(), NewestRun(Path("/nonexistent"))
    registry.register(RunCollector(newest, 1800.0))
    text = generate_latest(registry).decode()
    assert 'zk0d_run_waiting_since_timestamp_seconds{reason=""} 0.0' in text
    newest.state = waiting()
    text = generate_latest(registry).decode()
    for line in (
        'zk0d_run_waiting_since_timestamp_seconds{reason="too_few_nodes"} 60.0',
        "zk0d_run_wait_alert_seconds 1800.0",
        'zk0d_run_state{state="waiting"} 1.0',
        'zk0d_run_state{state="running"} 0.0',
    ):
        assert line in text


def test_a_dead_serverapp_is_a_wait_that_keeps_its_beginning(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "7", "7")
    link = Coordinator(kept=[FlowerRun(7, "", FINISHED, "failed", "no heartbeat")])
    watch = RunWatch(NewestRun(tmp_path), link, lambda *_, **__: None)  # type: ignore[arg-type]
    note(journal, "run.started", settings={})
    run = watch.look()
    assert run is not None
    assert run.waiting is not None
    assert (run.phase, run.interrupted, run.goes_on) == ("waiting", True, False)
    assert (run.waiting.reason, run.waiting.until) == ("interrupted", "when it is resumed")
    assert run.waiting.since == next(read_journal(tmp_path / "7")).time, "its last word"
    note(journal, "run.resumed", round=0, flower_run="8")
    note(journal, "run.waiting", **WAITS)
    run = watch.look()
    assert run is not None
    run.interrupt("its ServerApp died again")
    assert run.waiting is not None
    assert (run.waiting.reason, run.waiting.since) == ("too_few_nodes", 60.0)


class Site:
    """A coordinator with run 7 on it, whose SuperLink is a stand-in."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "server.toml").write_text(f'state = "{folder}"\n')
        self.journal = Journal(folder / "runs" / "7", "7")
        note(self.journal, "run.started", settings={})
        self.link = Coordinator()
        self.stopped: list[int] = []
        self.link.stop_run = self.stopped.append  # type: ignore[attr-defined]
        monkeypatch.setattr(run_verb, "control", lambda *_: nullcontext(self.link))
        monkeypatch.setattr("zk0d.machine.audit.note", lambda *_, **__: None)
        monkeypatch.setattr(units, "CONFIG_FOLDER", folder)

    def flowers(self, status: str, outcome: str = "") -> None:
        self.link.kept[:] = [FlowerRun(7, "", status, outcome, "")]

    def type(self, *words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--folder", str(self.folder)])

    def state(self) -> RunState:
        return RunState.read(self.journal.folder)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_resume_makes_a_waiting_run_try_at_once(site: Site) -> None:
    note(site.journal, "run.waiting", **WAITS)
    site.flowers("running")
    said = site.type("run", "--resume", "7")
    assert said.exit_code == 0, said.output
    assert (site.journal.folder / TRY_NOW).exists()
    assert site.link.started == [], "no second ServerApp"


def test_resume_refuses_a_run_that_is_under_way(site: Site) -> None:
    site.flowers("running")
    said = site.type("run", "--resume", "7")
    assert isinstance(said.exception, UsageError)
    assert "run 7 is under way" in said.exception.message
    assert site.link.started == []


@pytest.mark.parametrize("tell", [lambda site: None, lambda site: note(site.journal, "run.failed")])
def test_resume_starts_a_run_that_no_serverapp_works_on(
    site: Site, tell: Callable[[Site], object]
) -> None:
    tell(site)
    site.flowers(FINISHED, "failed")
    assert site.type("run", "--resume", "7").exit_code == 0
    assert [run.resume for run in site.link.started] == ["7"]


def test_stop_ends_a_waiting_run(site: Site) -> None:
    note(site.journal, "run.waiting", **WAITS)
    site.flowers("running")
    assert site.type("stop", "7").exit_code == 0
    assert site.stopped == [7]


def test_stop_ends_a_run_that_waits_to_be_resumed(site: Site) -> None:
    note(site.journal, "run.waiting", **WAITS)
    site.flowers(FINISHED, "failed")
    assert site.type("stop", "7").exit_code == 0
    assert site.stopped == [], "Flower has nothing to stop"
    state = site.state()
    assert (state.phase, state.interrupted, state.waiting) == ("stopped", False, None)


def test_a_run_that_finished_is_flowers_to_answer_for(site: Site) -> None:
    note(site.journal, "run.finished")
    site.flowers(FINISHED, COMPLETED)
    site.type("stop", "7")
    assert site.stopped == [7]
    assert site.state().phase == "finished"


def test_what_a_stopped_run_writes_for_a_moment_makes_it_wait_no_more(tmp_path: Path) -> None:
    run = waiting()
    run.stop()
    run.take({"kind": "run.waiting", **WAITS})
    assert (run.phase, run.waiting) == ("stopped", None)


def test_many_nodes_are_shown_in_pages(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        {"name": f"n{number:03}", "online": number % 2 == 0, "policy_loss": None}
        for number in range(120)
    ]
    nodes[1] |= {"rests": True, "rests_until": None}
    content = NOTHING | {"nodes": nodes}
    shown = []
    for number in (1, 2, 3):
        _print(content, number)
        said = capsys.readouterr().out.splitlines()
        shown += [line for line in said if line.startswith("node ")]
        assert said[-1] == f"page {number} of 3: zk0bot status --page N, or --json for all"
    assert shown[:3] == ["node n000: online", "node n001: resting", "node n002: online"]
    assert [line.split()[1] for line in shown] == [f"n{number:03}:" for number in range(120)]
