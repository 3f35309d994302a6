"""Journals that have something odd in them, and journals that have not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.browser import PHONE, drawn
from tests.record.lines import write as note
from zk0d.config.run import run_settings
from zk0d.errors import ConfigError
from zk0d.record.journal import CONFIG, JOURNAL, Journal
from zk0d.record.outputs import run_config
from zk0d.report import analysis
from zk0d.report.analysis import analyse, compare, findings
from zk0d.report.charts import charts
from zk0d.report.folder import write_report
from zk0d.report.page import page
from zk0d.services.reports import IDLE_SECONDS, LOOK_SECONDS, Reports

NODES = ("left", "right", "third")


class Told:
    """A journal as the round engine writes it, with what a test changes."""

    def __init__(self, folder: Path, run: str = "7", **settings: Any) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.journal = Journal(folder, run)
        made = run_settings(settings)
        self.journal.write_json(CONFIG, run_config(run, made, 0.0))
        note(self.journal, "run.started", settings=made.to_flat())

    def round(
        self,
        number: int,
        loss: float | None = 1.0,
        nodes: dict[str, float] | None = None,
        spread: float = 0.01,
        agreement: float = 0.9,
    ) -> None:
        """Commit a round; ``nodes`` are training losses by name."""
        trained = dict.fromkeys(NODES, 1.0) if nodes is None else nodes
        note(
            self.journal,
            "round.committed",
            round=number,
            nodes=[
                {"node": name, "policy_loss": value, "samples": 8}
                for name, value in trained.items()
            ]
            if number
            else [],
            learning_rate=1e-4,
            proximal_mu=0.0,
            mean_update_norm=1.0,
            agreement=agreement if number else None,
            bytes_up=1000,
            bytes_down=2000,
            seconds={"collect": 1.0, "evaluate": 0.5},
            evaluation={
                "loss": loss,
                "success": None,
                "datasets": [{"name": "a<b>", "loss": loss, "spread": spread}],
            },
        )

    def good(self, rounds: int = 12) -> Told:
        for number in range(rounds + 1):
            self.round(number, 2.0 - 0.1 * number)
        note(self.journal, "run.finished", rounds=rounds, reason="rounds", best_round=rounds)
        return self


def rules(told: Told) -> list[str]:
    return [found.rule for found in findings(analyse(told.folder))]


def _dropout(told: Told) -> None:
    for number in range(6):
        nodes = dict.fromkeys(NODES[: 3 if number < 3 else 2], 1.0)
        told.round(number, 2.0 - 0.1 * number, nodes)


def _missing(told: Told) -> None:
    for number in range(4):
        told.round(number, None if number == 2 else 2.0 - 0.1 * number)


def _stalled(told: Told) -> None:
    for number in range(10):
        told.round(number, 2.0 - 0.1 * min(number, 3) + (0.01 if number > 3 else 0.0))


def _diverged(told: Told) -> None:
    for number, loss in enumerate((1.0, 0.8, 1.5)):
        told.round(number, loss)


def _apart(told: Told) -> None:
    """Three updates that cancel in part."""
    for number in range(5):
        told.round(number, 2.0 - 0.1 * number, agreement=0.9 if number < 3 else 0.5)


def _far_off(told: Told) -> None:
    for number in range(4):
        told.round(number, 2.0 - 0.1 * number, {"left": 1.0, "right": 1.1, "third": 3.0})


def _refused(told: Told) -> None:
    told.good()
    note(told.journal, "update.refused", round=3, node="left", key="k", reason="nan", message="x")


def _no_progress(told: Told) -> None:
    told.good()
    note(told.journal, "round.failed", round=13, reason="quorum", message="1 of 2 came.")


@pytest.mark.parametrize(
    ("rule", "make"),
    [
        ("dropout", _dropout),
        ("missing", _missing),
        ("stalled", _stalled),
        ("diverged", _diverged),
        ("apart", _apart),
        ("far-off", _far_off),
        ("refused", _refused),
        ("no-progress", _no_progress),
    ],
)
def test_each_rule_finds_its_own_and_nothing_else(
    tmp_path: Path, rule: str, make: Callable[[Told], None]
) -> None:
    told = Told(tmp_path / "run")
    make(told)
    assert rules(told) == [rule]


def test_one_nodes_round_is_not_found_apart(tmp_path: Path) -> None:
    told = Told(tmp_path / "run", **{"drift-correction": "none"})
    for number in range(4):
        told.round(number, 2.0 - 0.1 * number, {"left": 0.1}, agreement=0.1)
    assert rules(told) == []


@pytest.mark.parametrize(
    ("correction", "agreement", "proposal"),
    [
        ("none", 0.8, ""),
        ("none", 0.65, "drift-correction=control-variates"),
        ("control-variates", 0.65, ""),
        ("control-variates", 0.55, "fewer local-steps and a lower initial-lr"),
    ],
)
def test_corrected_nodes_are_apart_only_if_their_updates_cancel(
    tmp_path: Path, correction: str, agreement: float, proposal: str
) -> None:
    told = Told(tmp_path / "run", **{"drift-correction": correction})
    for number in range(5):
        told.round(number, 2.0 - 0.1 * number, agreement=agreement)
    found = findings(analyse(told.folder))
    assert [each.rule for each in found] == (["apart"] if proposal else [])
    if proposal:
        assert proposal in found[0].proposal
        assert found[0].evidence == (
            f"the updates of rounds 3 to 4 agree to {agreement:.2f}; 3 updates with nothing in"
            " common agree to 0.58"
        )


def test_a_good_run_has_nothing_odd(tmp_path: Path) -> None:
    told = Told(tmp_path / "run").good()
    assert rules(told) == []
    said = analyse(told.folder).summary()
    assert said == (
        "Run 7 finished: 12 rounds with 3 nodes. Policy loss 2.0000 before, 0.8000 after, best"
        " 0.8000 in round 12."
    )
    assert len(analysis.RULES) == 8, "every rule has a journal above"


def test_a_failed_run_and_a_resumed_run_are_reported(tmp_path: Path) -> None:
    told = Told(tmp_path / "run")
    told.round(0)
    told.round(1, 0.9)
    told.round(2, 0.8)
    note(told.journal, "run.failed", reason="bug", message="it broke")
    assert analyse(told.folder).outcome == "failed"
    assert "it broke" in analyse(told.folder).summary()
    note(told.journal, "run.resumed", round=1, flower_run="8")
    read = analyse(told.folder)
    assert (read.outcome, max(read.evaluated)) == ("unfinished", 1), "round 2 was lost"


def test_runs_are_compared_only_if_evaluated_alike(tmp_path: Path) -> None:
    one = analyse(Told(tmp_path / "1", "1").good().folder)
    same = analyse(Told(tmp_path / "2", "2").good().folder)
    assert compare([one, same])[0].endswith("no difference beyond noise")
    better = analyse(Told(tmp_path / "3", "3").good(15).folder)
    assert compare([one, better])[0].endswith("spread 0.0200: better")
    other = analyse(Told(tmp_path / "4", "4", seed=1).good().folder)
    with pytest.raises(ConfigError, match="runs 1 and 4 were not evaluated on the same"):
        compare([one, other])


@pytest.mark.slow
def test_the_page_needs_no_network_and_escapes(tmp_path: Path) -> None:
    told = Told(tmp_path / "run").good()
    _refused_by = "update.refused"
    note(
        told.journal,
        _refused_by,
        round=3,
        node="<script>alert(1)</script>",
        key="k",
        reason="nan",
        message="x",
    )
    text = page(analyse(told.folder))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<svg") == 10
    for link in ("src=", "@import", "url(http"):
        assert link not in text


@pytest.mark.slow
def test_a_runs_folder_gets_page_and_pictures(tmp_path: Path) -> None:
    told = Told(tmp_path / "run").good()
    note(told.journal, "update.refused", round=3, node="left", key="k", reason="nan", message="x")
    report = write_report(told.folder).parent
    names = {path.stem for path in report.glob("*.png")}
    assert names == {chart.name for chart in charts(analyse(told.folder))}
    assert {"policy_loss", "participation", "refused", "seconds", "bytes"} <= names
    for picture in report.glob("*.png"):
        with Image.open(picture) as image:
            assert image.width == 960
            colours = image.convert("RGB").getcolors(1 << 20)
            assert colours is not None
            assert len(colours) > 20, f"{picture.name}: nothing is drawn"
    (report / "mine").touch()
    write_report(told.folder)
    assert not (report / "mine").exists(), "it is written as a whole"


def test_a_report_shows_the_steps_that_nodes_had_time_for(tmp_path: Path) -> None:
    """Without a pace they are the same for all, and no chart shows them."""
    for minutes in (0.0, 10.0):
        settings: dict[str, Any] = {"round-minutes": minutes}
        told = Told(tmp_path / f"{minutes}", **settings)
        for number in (1, 2):
            nodes = [
                {"node": name, "policy_loss": 1.0, "steps": steps * number}
                for name, steps in (("laptop", 5), ("workstation", 40))
            ]
            note(told.journal, "round.committed", round=number, nodes=nodes)
        analysed = analyse(told.folder)
        shown = any(chart.name == "steps" for chart in charts(analysed))
        assert shown == bool(minutes)
    assert analysed.steps == {"laptop": {1: 5, 2: 10}, "workstation": {1: 40, 2: 80}}


def test_a_report_of_nothing_evaluated(tmp_path: Path) -> None:
    """A run that died in its first round has little, and what it has is shown."""
    told = Told(tmp_path / "run")
    note(told.journal, "run.failed", reason="quorum", message="nobody came")
    assert "nobody came" in write_report(told.folder).read_text()
    assert list(tmp_path.glob("run/report/*.png")) == []


def test_a_report_shows_what_nodes_found_on_their_own_episodes(tmp_path: Path) -> None:
    """Also where the coordinator evaluates nothing."""
    told = Told(tmp_path / "run")
    found = {"frames": 20, "losses": [1.0, 2.0], "mark": "a"}
    for number in range(3):
        nodes = [
            {"node": name, "key": name, "policy_loss": 1.0, "samples": 8, "loss": 1.0}
            | {"grad_norm": 1.0, "update_norm": 1.0, "holdout_loss": 1.6 - 0.1 * number}
            | {"holdout_frames": 20, "holdout_losses": [1.0, 2.0], "holdout_mark": "a"}
            for name in ("left", "right")
        ]
        note(told.journal, "round.committed", round=number, nodes=nodes if number else [])
    for name, loss in (("left", 1.2), ("right", 1.1)):
        note(
            told.journal,
            "node.measured",
            **{**found, "round": 2, "node": name, "key": name, "loss": loss},
        )
    note(told.journal, "node.not_measured", round=2, node="third", key="third", reason="offline")
    read = analyse(told.folder)
    assert read.on_nodes["left"] == {0: 1.5, 1: pytest.approx(1.4), 2: 1.2}
    assert "On the held-out episodes of 2 nodes the loss went from 1.5000 to 1.1500, spread" in (
        read.summary()
    )
    assert "Policy loss on the nodes&#39; held-out episodes" in page(read)
    assert read.run.not_measured == {"third": "offline"}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def written(reports: Reports, clock: Clock, page: Path, seconds: float = 0.0) -> bool:
    """Whether a report is written now; waits for the process that does it."""
    clock.now += seconds + LOOK_SECONDS
    before = page.stat().st_mtime_ns if page.exists() else 0
    deadline = time.monotonic() + 240  # it is written at the lowest priority
    reports.look()
    while reports._writing is not None and time.monotonic() < deadline:
        reports.look()
        time.sleep(0.05)
    return page.exists() and page.stat().st_mtime_ns != before


@pytest.mark.slow
def test_reports_follow_runs_by_themselves(tmp_path: Path) -> None:
    told = Told(tmp_path / "runs/7")
    told.round(0)
    page = told.folder / "report/index.html"
    clock = Clock()
    reports = Reports(tmp_path / "runs", clock)
    assert not written(reports, clock, page), "the run goes on"
    assert written(reports, clock, page, IDLE_SECONDS), "it says nothing any more: it died"
    assert not written(reports, clock, page, IDLE_SECONDS), "once"
    clock = Clock()
    reports = Reports(tmp_path / "runs", clock)
    told.round(1, 0.9)
    assert not written(reports, clock, page), "taken up again, it goes on"
    note(told.journal, "run.finished", rounds=1, reason="rounds", best_round=1)
    assert written(reports, clock, page), "it ended"
    assert not written(reports, clock, page)


@pytest.mark.slow
def test_a_journal_of_the_future_is_reported_once(tmp_path: Path) -> None:
    """The clock was set back after its last line."""
    told = Told(tmp_path / "runs/7").good()
    later = time.time() + 3600
    os.utime(told.folder / JOURNAL, (later, later))
    page, clock = told.folder / "report/index.html", Clock()
    reports = Reports(tmp_path / "runs", clock)
    assert written(reports, clock, page)
    for _ in range(3):
        assert not written(reports, clock, page, IDLE_SECONDS)


def test_a_run_that_cannot_be_reported_is_tried_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told(tmp_path / "runs/7").good()
    (told.folder / CONFIG).write_text("{")
    clock = Clock()
    reports = Reports(tmp_path / "runs", clock)
    for _ in range(3):
        assert not written(reports, clock, told.folder / "report/index.html")
    assert [r.message.count("report could not") for r in caplog.records] == [1]


@pytest.mark.slow
def test_zk0bot_report_prints_text_page_and_json(tmp_path: Path) -> None:
    told = Told(tmp_path / "run").good()

    def zk0bot(*words: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; from zk0d.cli.main import main; main()"
        command = [sys.executable, "-c", code, "report", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    shown = zk0bot(str(told.folder))
    assert "█" in shown.stdout
    assert "2.0000 → 0.8000" in shown.stdout
    content = json.loads(zk0bot(str(told.folder), "--json").stdout)
    assert content["runs"][0]["state"] == "finished"
    path = tmp_path / "page.html"
    assert zk0bot(str(told.folder), "--html", str(path)).returncode == 0
    assert path.read_text().startswith("<!doctype html>")
    wrong = zk0bot(f"{tmp_path}/nothing")
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (78, False)


@pytest.mark.slow
def test_a_browser_draws_the_docs_picture(tmp_path: Path) -> None:
    """The picture was looked at; fonts differ a little from machine to machine."""
    from tests.report.golden import HEIGHT, PICTURE, WIDTH, golden_page

    text = golden_page(tmp_path / "run")
    drawn(text, tmp_path, PHONE)
    found = drawn(text, tmp_path, WIDTH, HEIGHT)
    with Image.open(PICTURE) as picture:
        assert picture.size == found.size
        difference = ImageChops.difference(found, picture.convert("RGB")).convert("L")
    assert ImageStat.Stat(difference).mean[0] < 8, "python -m tests.report.golden, and look at it"
