"""A supervised child is started again, and every end has a reason."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.processes import wait_until
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.supervised import Backoff, State, Supervised
from zk0d.errors import ChildError, UnavailableError

SLEEPER = "import signal; signal.pause()"
Made = Callable[..., Supervised]


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Made:
    def make(code: str, **how: object) -> Supervised:
        lines: list[str] = []
        metrics = Metrics("test")
        made = Supervised(
            "probe",
            [sys.executable, "-c", code],
            dict(os.environ),
            tmp_path,
            metrics,
            log=lines.append,
            **{"backoff": Backoff(shortest=0.05, longest=0.2, stable=60), **how},  # type: ignore[arg-type]
        )
        request.addfinalizer(lambda: made.stop("test ends", grace=1))
        made.start()
        made.lines = lines  # type: ignore[attr-defined]
        made.value = metrics.registry.get_sample_value  # type: ignore[attr-defined]
        return made

    return make


def looked(child: Supervised, state: State) -> None:
    wait_until(lambda: child.look() is state, str(state), 20, interval=0.01)


def test_a_killed_child_is_restarted(make: Made) -> None:
    child = make(SLEEPER)
    before = child.pid
    assert before is not None
    series = ("zk0d_child_restarts_total", {"child": "probe", "reason": "signal 9"})
    assert child.value(*series) == 0, "there before the first, so that a rate sees it"  # type: ignore[attr-defined]
    os.kill(before, signal.SIGKILL)
    looked(child, State.WAITING)
    assert child.last_end is not None
    assert child.last_end.reason == "signal 9"
    looked(child, State.RUNNING)
    assert child.pid != before
    assert child.value(*series) == 1  # type: ignore[attr-defined]
    assert child.value("zk0d_child_starts_total", {"child": "probe"}) == 2  # type: ignore[attr-defined]


def test_the_last_lines_give_the_reason(make: Made) -> None:
    child = make(
        "print('ERROR: Exit Code: 305'); raise SystemExit(1)",
        reason=lambda status, lines: "connection" if "305" in " ".join(lines) else "",
    )
    looked(child, State.WAITING)
    assert child.last_end is not None
    assert (child.last_end.reason, child.last_end.status) == ("connection", 1)
    assert child.lines == ["ERROR: Exit Code: 305"]  # type: ignore[attr-defined]


def test_a_child_that_keeps_dying_is_given_up(make: Made) -> None:
    child = make("raise SystemExit(3)", most_deaths=3)
    with pytest.raises(ChildError, match="probe died 3 times in a row, last because status 3"):
        looked(child, State.STOPPED)


def test_a_wanted_restart_does_not_count_as_a_death(make: Made) -> None:
    child = make(SLEEPER, most_deaths=1)
    before = child.pid
    child.restart("zombie")
    assert child.last_end is not None
    assert child.last_end.reason == "zombie"
    looked(child, State.RUNNING)
    assert child.pid != before


def test_a_stop_also_ends_grandchildren(make: Made) -> None:
    child = make(
        "import subprocess, sys, signal\n"
        f"p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        "print(p.pid, flush=True)\nsignal.pause()"
    )
    wait_until(lambda: bool(child.lines), "the grandchild", 20)  # type: ignore[attr-defined]
    grandchild = psutil.Process(int(child.lines[0]))  # type: ignore[attr-defined]
    child.stop("service stops", grace=1)
    wait_until(
        lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE,
        "the grandchild's end",
        10,
    )
    assert child.look() is State.STOPPED, "it is not started again"


def test_a_program_that_is_not_there(make: Made, tmp_path: Path) -> None:
    child = Supervised("probe", ["/nothing"], {}, tmp_path, Metrics("test"), log=lambda line: None)
    with pytest.raises(UnavailableError, match="/nothing"):
        child.start()


def test_the_wait_doubles_up_to_a_limit() -> None:
    backoff = Backoff(shortest=1, longest=60, jitter=0)
    assert [backoff.seconds(deaths) for deaths in (1, 2, 3, 7, 400)] == [1, 2, 4, 60, 60]
    spread = {Backoff(jitter=0.2).seconds(1) for _ in range(50)}
    assert len(spread) > 10
    assert all(0.8 <= seconds <= 1.2 for seconds in spread)
