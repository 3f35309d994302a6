"""When a run that was interrupted goes on."""

from __future__ import annotations

import itertools

import pytest

from tests.record.lines import Told
from tests.services.test_autorun import Coordinator
from zk0d.errors import UnavailableError
from zk0d.services.resume import FIRST_WAIT, LONGEST_WAIT, Resume


class Bench:
    def __init__(self) -> None:
        self.now = 1000.0
        self.coordinator = Coordinator()
        self.resume = Resume(self.coordinator, lambda: self.now)
        self.facts = Told(run="7", phase="running")
        self.facts.take({"kind": "round.committed", "round": 3})

    def pass_(self, seconds: float) -> str:
        said = ""
        for _ in range(int(seconds)):
            self.now += 1.0
            said = self.resume.look(self.facts)
        return said


def test_a_run_with_a_dead_app_resumes_after_a_moment() -> None:
    bench = Bench()
    assert bench.pass_(60) == ""
    bench.facts.interrupt("no heartbeat")
    assert bench.pass_(3) == "resuming it in 3 s"
    bench.pass_(FIRST_WAIT)
    assert [run.resume for run in bench.coordinator.started] == ["7"]
    assert bench.pass_(300) == "resuming it"
    assert len(bench.coordinator.started) == 1, "one at a time"
    bench.facts.take(
        {"kind": "run.resumed", "run": "7", "round": 3, "flower_run": "1", "time": 0.0}
    )
    assert bench.pass_(60) == ""
    assert bench.facts.flower == "1"
    assert (bench.facts.phase, bench.facts.waiting) == ("running", None)


def test_tries_grow_rarer_and_never_end() -> None:
    bench = Bench()
    bench.facts.interrupt("no heartbeat")
    times: list[float] = []
    while len(times) < 20:
        bench.pass_(1)
        if len(bench.coordinator.started) > len(times):
            times.append(bench.now)
            bench.coordinator.end("failed")
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert waits == sorted(waits)
    assert waits[0] == pytest.approx(2 * FIRST_WAIT, abs=2)
    assert waits[-1] == pytest.approx(LONGEST_WAIT, abs=2)
    bench.facts.take({"kind": "round.committed", "round": 4})  # the last try went on
    bench.facts.interrupt("no heartbeat")
    bench.pass_(20)
    assert len(bench.coordinator.started) == 21, "a commit begins the count again"


@pytest.mark.parametrize(
    ("reason", "goes_on"),
    [
        ("disk_full", True),
        ("learner_gone", True),
        ("gpu_failed", True),
        ("too_few_nodes", True),
        ("no_release", False),
        ("bug", False),
    ],
)
def test_the_reason_of_a_failure_decides_about_resuming(reason: str, goes_on: bool) -> None:
    bench = Bench()
    bench.facts.take({"kind": "run.failed", "run": "7", "reason": reason, "message": "m"})
    bench.pass_(60)
    assert bool(bench.coordinator.started) == goes_on


def test_a_stopped_run_stays_stopped() -> None:
    bench = Bench()
    bench.facts.stop()
    bench.pass_(60)
    assert bench.coordinator.started == []


def test_no_run_and_a_refusal() -> None:
    bench = Bench()
    assert bench.resume.look(None) == ""
    bench.coordinator.refuses = True
    bench.facts.interrupt("x")
    bench.pass_(FIRST_WAIT)
    assert "it cannot be resumed: no." in {bench.pass_(1) for _ in range(12)}


def test_an_absent_superlink_does_not_count_as_a_try(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.facts.interrupt("x")

    def gone() -> list[object]:
        raise UnavailableError("gone.")

    bench.pass_(FIRST_WAIT)
    with monkeypatch.context() as patched:
        patched.setattr(bench.coordinator, "runs", gone)
        bench.now += FIRST_WAIT
        with pytest.raises(UnavailableError):
            bench.resume.look(bench.facts)
    bench.pass_(20)
    assert len(bench.coordinator.started) == 1
