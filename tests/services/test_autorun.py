"""When a run begins by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from zk0d.config.machine import AutorunSettings, ServerSettings
from zk0d.config.run import RunSettings
from zk0d.errors import ConfigError, Zk0dError
from zk0d.flower.control import COMPLETED, FINISHED, FlowerRun
from zk0d.services.autorun import LONGEST_PAUSE, LOOK_SECONDS, Autorun


@dataclass
class Coordinator:
    """Stands for the SuperLink: keeps runs, and lets a test end them."""

    kept: list[FlowerRun] = field(default_factory=list)
    started: list[RunSettings] = field(default_factory=list)
    refuses: bool = False

    def runs(self) -> list[FlowerRun]:
        return self.kept

    def start_run(self, settings: RunSettings) -> int:
        if self.refuses:
            raise Zk0dError("no.")
        self.started.append(settings)
        self.kept.append(FlowerRun(len(self.kept) + 1, "", "running", "", ""))
        return len(self.kept)

    def end(self, outcome: str = COMPLETED) -> None:
        last = self.kept[-1]
        self.kept[-1] = FlowerRun(last.run_id, "", FINISHED, outcome, "")


class Bench:
    """An autorun with a clock of its own."""

    def __init__(self, **settings: object) -> None:
        self.now = 1000.0
        self.coordinator = Coordinator()
        values = {"min-nodes": 2, "settle-seconds": 30, "pause-minutes": 10, **settings}
        self.autorun = Autorun(
            AutorunSettings.parse(values, where="test"), self.coordinator, lambda: self.now
        )

    def pass_(self, seconds: float, online: int = 2) -> str:
        said = ""
        for _ in range(int(seconds / LOOK_SECONDS)):
            self.now += LOOK_SECONDS
            said = self.autorun.look(online)
        return said


def test_a_run_begins_once_enough_nodes_have_been_online_for_a_while() -> None:
    bench = Bench(run={"num-server-rounds": 7})
    assert bench.pass_(60, online=1) == "a run begins when 2 nodes are online"
    assert bench.pass_(20) == "a run begins in a moment"
    assert bench.coordinator.started == []
    bench.pass_(20)
    assert [run.rounds.num_server_rounds for run in bench.coordinator.started] == [7]
    bench.pass_(600)
    assert len(bench.coordinator.started) == 1, "one at a time"


@pytest.mark.parametrize(("said", "start_from"), [({}, "latest-or-base"), ({"start-from": ""}, "")])
def test_a_run_continues_from_the_last_release(said: dict[str, str], start_from: str) -> None:
    bench = Bench(run=said)
    bench.pass_(60)
    (run,) = bench.coordinator.started
    assert run.start_from == start_from
    assert run.said()["start-from"] == start_from, "Flower is told"


def test_a_leaving_node_restarts_the_wait() -> None:
    bench = Bench()
    bench.pass_(25)
    bench.pass_(5, online=1)
    bench.pass_(25)
    assert bench.coordinator.started == []
    bench.pass_(15)
    assert len(bench.coordinator.started) == 1


def test_the_next_run_begins_after_a_pause() -> None:
    bench = Bench()
    bench.pass_(60)
    bench.coordinator.end()
    assert bench.pass_(300).startswith("the next run begins after ")
    assert len(bench.coordinator.started) == 1
    bench.pass_(330)
    assert len(bench.coordinator.started) == 2


def test_failures_make_the_pause_longer_up_to_a_limit() -> None:
    bench = Bench()
    bench.pass_(60)
    waits = []
    for _ in range(8):
        bench.coordinator.end("failed")
        before, count = bench.now, len(bench.coordinator.started)
        while len(bench.coordinator.started) == count:
            bench.pass_(60)
        waits.append(bench.now - before)
    assert waits[0] == pytest.approx(1200, abs=70)
    assert waits[1] == pytest.approx(2400, abs=70)
    assert waits[-1] == pytest.approx(LONGEST_PAUSE, abs=70)


def test_a_service_that_has_just_started_waits_for_no_pause() -> None:
    bench = Bench()
    bench.coordinator.kept.append(FlowerRun(1, "", FINISHED, COMPLETED, ""))
    bench.pass_(45)
    assert len(bench.coordinator.started) == 1


def test_a_run_of_another_is_not_disturbed() -> None:
    bench = Bench()
    bench.coordinator.kept.append(FlowerRun(1, "", "running", "", ""))
    assert bench.pass_(600) == ""
    assert bench.coordinator.started == []


def test_a_refusal_is_in_the_status() -> None:
    bench = Bench()
    bench.coordinator.refuses = True
    assert bench.pass_(60) == "the run could not be started: no."


def test_wrong_run_settings_are_found_when_the_file_is_read() -> None:
    with pytest.raises(ConfigError, match=r"autorun\.run.*did you mean 'local-steps'"):
        ServerSettings.parse({"autorun": {"run": {"lokal-steps": 3}}}, where="server.toml")
    with pytest.raises(ConfigError, match=r"unknown key 'autorun\.min-node'.*min-nodes"):
        ServerSettings.parse({"autorun": {"min-node": 3}}, where="server.toml")
