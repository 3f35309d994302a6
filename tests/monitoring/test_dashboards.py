"""Dashboards and rules: complete, fresh, and about metrics that exist."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from typer.testing import CliRunner

from tests.monitoring.lint import faults, names_in, panels_of
from tests.monitoring.tools import program
from zk0d.cli.main import app
from zk0d.monitoring import reference
from zk0d.monitoring.dashboards import PAGES, Page, built
from zk0d.monitoring.export import RULES, files, panel_link

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs/runbooks"


def rules() -> list[dict[str, Any]]:
    groups = [
        group
        for path in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Metrics of the code, and what Prometheus and our rules make."""
    return (
        reference.metric_names() | {"up"} | {rule["record"] for rule in rules() if "record" in rule}
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_dashboard_keeps_our_rules(page: Page, known: set[str]) -> None:
    assert list(faults(built(page), known)) == []


def test_the_linter_sees_each_fault(known: set[str]) -> None:
    good = built(PAGES[0])

    def said(change: Any) -> str:
        bad = copy.deepcopy(good)
        change(bad, next(panels_of(bad)))
        return "; ".join(faults(bad, known))

    def defaults(panel: dict[str, Any]) -> dict[str, Any]:
        return panel["fieldConfig"]["defaults"]

    assert "no sentence" in said(lambda _, p: p.update(description=""))
    assert "unit 'percent-unit'" in said(lambda _, p: defaults(p).update(unit="percent-unit"))
    assert "no thresholds" in said(lambda _, p: defaults(p).pop("thresholds"))
    assert "hard-wired" in said(lambda _, p: p.update(datasource={"uid": "abc"}))
    assert "query's data source" in said(lambda _, p: p["targets"][0].pop("datasource"))
    assert "zk0d_typo does not exist" in said(lambda _, p: p["targets"][0].update(expr="zk0d_typo"))
    assert "title of its own" in said(lambda _, p: p.update(title="Rounds done"))
    assert "lies on" in said(lambda _, p: p["gridPos"].update(w=24))
    assert "for the data source" in said(lambda d, _: d["templating"].update(list=[]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_grafanas_own_types_read_it_and_write_the_same(page: Page) -> None:
    content = built(page)
    again = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(content)))
    assert again == content


def test_the_roles_files_are_fresh() -> None:
    """Else: make monitoring-files."""
    for path, text in reference.role_files().items():
        assert (ROOT / path).read_text() == text, path
    there = {path.relative_to(ROOT) for path in (ROOT / reference.ROLE_FILES).rglob("*.json")}
    there |= {path.relative_to(ROOT) for path in (ROOT / reference.ROLE_FILES / "rules").iterdir()}
    assert there == set(reference.role_files()), "nothing that the code does not make"


def test_the_metrics_page_is_fresh() -> None:
    assert (ROOT / reference.PAGE).read_text() == reference.metrics_page()


def test_no_metric_is_defined_twice_in_different_words() -> None:
    seen: dict[str, Any] = {}
    for found in reference.definitions().values():
        for each in found:
            assert seen.setdefault(each.name, each) == each


def test_rules_ask_for_metrics_that_exist(known: set[str]) -> None:
    for rule in rules():
        asked = names_in(rule["expr"])
        assert asked, rule
        assert asked <= known, rule


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_summary_description_panel_and_runbook(name: str) -> None:
    rule = ALERTS[name]
    assert re.fullmatch(r"Zk0d([A-Z][a-z]+)+", name)
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    notes = rule["annotations"]
    assert "{{" not in notes["summary"], "a summary is the same for all"
    assert notes["summary"].endswith(".")
    assert notes["description"].endswith(".")
    assert panel_link(notes["panel"])
    page = (RUNBOOKS / f"{name}.md").read_text()
    assert page.startswith(f"# {name}\n")
    for heading in ("## What it means", "## Check", "## Cure"):
        assert heading in page, heading
    dashboard, _, panel = notes["panel"].partition("/")
    assert f"Panel: *{panel}* of the dashboard *{dashboard}*" in page
    assert f"Severity: {rule['labels']['severity']}" in page


def test_no_runbook_is_left_over() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")}
    assert pages == {*ALERTS, "README"}
    index = (RUNBOOKS / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+)\.md\)", index)) == set(ALERTS)


def test_an_alerts_threshold_is_its_panels() -> None:
    """Where the panel draws the line that the alert speaks at."""
    drawn = {
        "Zk0dGpuTooHot": 87,
        "Zk0dNodeLost": 600,
        "Zk0dLossStalled": 5,
        "Zk0dNoRoundCommitted": 7200,
        "Zk0dCertificateExpiring": 1209600,
        "Zk0dDiskFull": 0.03,
        "Zk0dDiskFilling": 0.1,
        "Zk0dChildRestarting": 3,
        "Zk0dRoundOverdue": -300,
    }
    panels = {
        f"{page.name}/{panel['title']}": panel for page in PAGES for panel in panels_of(built(page))
    }
    for name, number in drawn.items():
        rule = ALERTS[name]
        assert str(abs(number)) in rule["expr"]
        steps = panels[rule["annotations"]["panel"]]["fieldConfig"]["defaults"]["thresholds"]
        assert number in [step["value"] for step in steps["steps"]], name


def test_prometheus_accepts_the_exported_files(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    said = CliRunner().invoke(
        app, ["dashboards", "export", str(folder), "--runbooks", "https://wiki/r/"]
    )
    assert said.exit_code == 0, said.output
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == set(files())
    alerts = (folder / "rules/zk0d-alerts.yml").read_text()
    assert "runbook_url: https://wiki/r/Zk0dNodeLost.md" in alerts
    assert "dashboard_url: /d/zk0d-fleet?viewPanel=" in alerts
    promtool = program("promtool")
    subprocess.run([promtool, "check", "config", str(folder / "prometheus.yml")], check=True)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = CliRunner().invoke(app, ["dashboards", "export", str(tmp_path / "file")])
    assert "cannot be written" in str(said.exception)


def test_without_the_builder_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("zk0d.monitoring")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("zk0d.monitoring.export", raising=False)
    monkeypatch.setitem(sys.modules, "grafana_foundation_sdk.builders", None)
    said = CliRunner().invoke(app, ["dashboards", "export", str(tmp_path)])
    assert "install zk0d[monitoring]" in str(said.exception)
