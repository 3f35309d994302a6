"""A clock that is set trips no watchdog, ends no round, and hides nothing that stands still."""

from __future__ import annotations

import ast
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.learner.test_app import TASK, Scripted
from tests.processes import wait_until
from tests.record.lines import write as note
from zk0d.config.machine import SuperexecSettings
from zk0d.config.run import RunSettings
from zk0d.daemon.clock import Stillness, uptime
from zk0d.daemon.metrics import Metrics
from zk0d.flower.commands import Command
from zk0d.learner import tasks
from zk0d.learner.app import LearnerApp
from zk0d.learner.tasks import Stopped, TaskControl
from zk0d.machine import hold
from zk0d.machine.hold import Hold, read_hold
from zk0d.record.journal import Journal
from zk0d.record.state import NewestRun
from zk0d.services import learner as learner_service
from zk0d.services.learner import STEP_SECONDS, LearnerService
from zk0d.services.superexec import PULSE_LIMIT, SuperexecService

HOUR = 3600.0
PACKAGE = Path(__file__).parent.parent / "zk0d"

#: Where the time of day is asked for, and why no other clock would do.
ALLOWED = {
    ("daemon/metrics.py", "_boot_time"): "a figure in seconds since 1970",
    ("demo/main.py", "run_demo"): "a folder's name",
    ("doctor/client.py", "gateway"): "a certificate's end is a date",
    ("doctor/server.py", "_days"): "a certificate's end is a date",
    ("machine/audit.py", "append"): "kept: when something happened",
    ("record/state.py", "_begun"): "which run is the newest, across boots",
    ("record/journal.py", "write"): "kept: when something happened",
    ("federation/capability.py", "of"): "a mark, no time",
    ("federation/depot.py", "held"): "a mark, no time",
    ("federation/depot.py", "_age"): "what a run that died left; another process wrote it",
    ("federation/run.py", "_begin"): "kept: when the run began",
    ("federation/waiting.py", "because"): "kept: since when the run waits, over restarts",
    ("federation/waiting.py", "over"): "kept: how long it waited, over restarts",
    ("services/superlink.py", "_tell_state"): "compared with what a run kept",
    ("machine/certificates.py", "make_certificates"): "a certificate's end is a date",
    ("machine/certificates.py", "make_authority"): "a certificate's end is a date",
    ("machine/certificates.py", "sign_all"): "a certificate's end is a date",
    ("machine/certificates.py", "renew"): "a certificate's end is a date",
    ("machine/rollover.py", "is_missed"): "compared with the audit log's",
    ("services/overlap.py", "has"): "kept: when a node said it",
    ("services/overlap.py", "_mark"): "a mark, no time",
    ("machine/roster.py", "_write"): "kept: the day",
    ("machine/node_word.py", "__init__"): "compared with a node's",
    ("machine/node_word.py", "write_word"): "compared with the coordinator's",
    ("release/offer.py", "_mark"): "a mark, no time",
    ("machine/renewal.py", "of"): "compared with the coordinator's",
    ("machine/renewal.py", "age"): "compared with a node's",
    ("services/enrolment.py", "__init__"): "compared with a node's",
    ("services/owner.py", "__init__"): "hours of the day",
    ("config/hours.py", "say_time"): "shown",
    ("arm/tries.py", "add"): "kept: when a policy was tried last",
    ("learning/found.py", "_age"): "marks: which recordings are the newest",
    ("machine/invites.py", "_open"): "kept: an invite's end",
    ("machine/invites.py", "add"): "kept: an invite's end",
    ("machine/invites.py", "use"): "kept: an invite's end",
    ("learning/frame_files.py", "_make_room"): "marks: which file was used least recently",
    ("machine/rest_note.py", "write_note"): "compared with the coordinator's",
    ("machine/rest_note.py", "read_note"): "compared with a node's",
    ("services/presence.py", "counts"): "compared with what a node said",
    ("daemon/line.py", "local_time"): "days and hours of the owner",
    ("learner/metrics.py", "began"): "a figure in seconds since 1970",
    ("learner/metrics.py", "ended"): "a figure in seconds since 1970",
    ("learner/metrics.py", "progress"): "a figure in seconds since 1970",
    ("monitoring/top.py", "<module>"): "compared with figures of other machines",
    ("services/autorun.py", "_decide"): "shown: when the next run begins",
    ("services/figures.py", "update"): "a figure in seconds since 1970",
    ("machine/hold.py", "over"): "a pause outlives a boot",
    ("machine/hold.py", "pause"): "a pause outlives a boot",
    ("services/page.py", "render"): "shown",
    ("services/reports.py", "_begin"): "a mark, no time",
    ("services/reports.py", "_due"): "marks; two files' times on one disk",
    ("services/superexec.py", "look"): "a mark, no time",
    ("services/standalone.py", "run"): "shown: since when the services run",
    ("cli/policy_tune.py", "tune"): "the name of a folder",
    ("simulation/main.py", "new_folder"): "a folder's name",
    ("simulation/tune.py", "tune"): "tells when a personal policy was made",
    ("services/coordinator.py", "<module>"): "shown: since when the coordinator is away",
    ("services/coordinator.py", "_clock_ahead"): "compared with the coordinator's",
    ("services/supernode.py", "look"): "a figure in seconds since 1970",
}
_OF_TIME = {"time", "time_ns"}
_OF_DATES = {"now", "utcnow", "today"}
#: Functions of the module time that take the present moment where they are given none.
_ARGUMENTS_WITHOUT_NOW = {"localtime": 1, "gmtime": 1, "ctime": 1, "strftime": 2}
_FIELDS = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "set_to_current_time"}


def asks_for_the_time_of_day(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        of = ast.unparse(node.value)
        return (
            (of == "time" and node.attr in _OF_TIME)
            or (of.endswith(("datetime", "date")) and node.attr in _OF_DATES)
            or node.attr in _FIELDS
            or node.attr == "CLOCK_REALTIME"
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        least = _ARGUMENTS_WITHOUT_NOW.get(node.func.attr)
        return least is not None and len(node.args) < least
    if isinstance(node, ast.ImportFrom) and node.module == "time":
        return any(name.name in _OF_TIME for name in node.names)
    return False


def uses(text: str) -> Iterator[str]:
    """Names of the functions in which the time of day is asked for."""

    def walk(node: ast.AST, function: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if asks_for_the_time_of_day(child):
                yield function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, child.name)
            else:
                yield from walk(child, function)

    yield from walk(ast.parse(text), "<module>")


@pytest.mark.slow
def test_the_time_of_day_is_asked_for_only_where_it_is_meant() -> None:
    """Durations and deadlines are of time.monotonic, or of zk0d.daemon.clock."""
    found = {
        (str(path.relative_to(PACKAGE)), function)
        for path in sorted(PACKAGE.rglob("*.py"))
        for function in uses(path.read_text(encoding="utf-8"))
    }
    assert sorted(found - ALLOWED.keys()) == []
    assert sorted(ALLOWED.keys() - found) == [], "these are used no more"


@pytest.mark.parametrize(
    "line",
    [
        "time.time()",
        "x = time.time_ns()",
        "def f(clock=time.time): ...",
        "datetime.now(UTC)",
        "datetime.datetime.now()",
        "date.today()",
        "time.localtime()",
        "time.strftime('%H')",
        "path.stat().st_mtime",
        "gauge.set_to_current_time()",
        "from time import time",
    ],
)
def test_each_forbidden_clock_is_found(line: str) -> None:
    assert list(uses(line)) != []
    for other in ("time.monotonic()", "time.localtime(x)", "time.strftime('%H', x)", "f.time()"):
        assert list(uses(other)) == []


def test_the_shell_programs_wait_by_no_clock_that_is_set() -> None:
    """bash counts SECONDS by the time of day."""
    for name in ("systemd/zk0d-release", "get-zk0bot.sh"):
        text = (PACKAGE.parent / name).read_text(encoding="utf-8")
        code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        assert "$SECONDS" not in code.replace("{", ""), name
        assert "SECONDS +" not in code, name


@pytest.fixture(params=[-HOUR, HOUR])
def step(request: pytest.FixtureRequest) -> float:
    """How far :func:`set_clock` sets the time of day."""
    return float(request.param)


def set_clock(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)


def test_the_learners_watchdog(monkeypatch: pytest.MonkeyPatch, step: float) -> None:
    scripted, goes_on = Scripted(), threading.Event()

    def work(task: object, payload: object, control: TaskControl) -> object:
        control.report({"event": "progress", "step": 1, "steps": 9, "seconds": 0.1})
        goes_on.wait(60)
        return task, None

    scripted.work = work  # type: ignore[assignment]
    service = LearnerService("learner", lambda: (scripted, Path("/nonexistent")))
    service._app = app = LearnerApp(scripted)
    service._server = SimpleNamespace(started=True, should_exit=False)  # type: ignore[assignment]
    service._thread = threading.main_thread()
    control = TaskControl()
    stream = app._work("train", TASK, None, control)

    async def begin() -> None:
        await anext(stream)  # what the task reported first
        seen.append(service.look().stuck)
        set_clock(monkeypatch, step)
        seen.append(service.look().stuck)
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + STEP_SECONDS + 1)
        monkeypatch.setattr(learner_service, "time", later)
        seen.append(service.look().stuck)
        goes_on.set()
        async for _ in stream:
            pass

    import asyncio

    seen: list[str] = []
    app._doing = {"state": "working", "task": "train", "since": time.monotonic()}
    asyncio.run(begin())
    assert seen == ["", "", "train_stands_still"]


def test_the_superexecs_watchdog(tmp_path: Path, step: float) -> None:
    now = 1000.0
    with socket.create_server(("127.0.0.1", 0)) as peer:
        service = SuperexecService(
            "client",
            SuperexecSettings(state=tmp_path),
            Metrics("client-superexec"),
            Command([sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ)),
            peer.getsockname()[1],
            tmp_path / "learner.sock",
        )
        service._still = Stillness(lambda: now)
        service._child._clock = lambda: now
        service.start()
        try:
            pulse = tmp_path / "pulse"
            for at in (0.0, 5.0):  # the clock is set between two signs of life
                pulse.touch()
                os.utime(pulse, (time.time() + at + step, time.time() + at + step))
                assert service.look().status == "ready for work"
                now += PULSE_LIMIT - 1
            now += 2
            assert service.look().stuck == "no_poll", "whatever time the file has"
        finally:
            service.stop()


def test_a_pause_lasts_as_long_as_it_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    Hold.pause(600).write(tmp_path)
    set_clock(monkeypatch, step)
    assert read_hold(tmp_path) is not None
    up = uptime()
    monkeypatch.setattr(hold, "uptime", lambda: up + 601)
    assert read_hold(tmp_path) is None


def test_new_lines_of_a_journal_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """The coordinator's log and audit log have what was written since the service began."""
    runs = tmp_path / "runs"
    old = Journal(runs / "1", "1")
    note(old, "run.started", settings=RunSettings().to_flat())
    newest = NewestRun(runs)
    newest.look()
    assert newest.fresh == []
    set_clock(monkeypatch, step)
    note(old, "run.failed", reason="x", message="y")
    newest.look()
    assert [event.kind for event in newest.fresh] == ["run.failed"]


def test_a_task_ends_at_its_deadline_also_on_a_machine_that_was_suspended(
    monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    control = TaskControl()
    control.set_deadline(600)
    set_clock(monkeypatch, step)
    control.check()
    up = uptime()
    monkeypatch.setattr(tasks, "uptime", lambda: up + 601)
    with pytest.raises(Stopped, match="deadline has passed"):
        control.check()


def test_stillness() -> None:
    now = 0.0
    still = Stillness(lambda: now)
    assert still.seconds("a") == 0
    now = 5
    assert still.seconds("a") == 5
    assert still.seconds("b") == 0
    wait_until(lambda: Stillness().seconds(None) >= 0, "a clock", 5)
