"""A real Prometheus, filled from a real federation: every panel shows something."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.monitoring.lint import panels_of
from tests.monitoring.preview import preview
from tests.monitoring.server import filled
from tests.monitoring.tools import program
from tests.record.lines import read_lines
from tests.running.conftest import Ran, Watched
from tests.running.lab import TINY
from zk0d.monitoring.dashboards import PAGES, Page, built

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.xdist_group("running")]


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{page.name}/{panel['title']}/{target['refId']}")
        for page in PAGES
        for panel in panels_of(built(page))
        for target in panel["targets"]
    ]


@pytest.mark.parametrize("expr", queries())
def test_a_panels_query_returns_data(watched: Watched, expr: str) -> None:
    expr = filled(expr)
    assert "$" not in expr, "a variable that no test knows"
    found = watched.server.query(expr)
    assert found, f"{expr} returns nothing"
    assert any(math.isfinite(float(series["value"][1])) for series in found), found


def test_the_figures_are_the_runs(watched: Watched, first_run: Ran) -> None:
    def value(expr: str) -> float:
        (series,) = watched.server.query(expr)
        return float(series["value"][1])

    assert value("zk0d_round") == 3
    assert value('sum(zk0d_node_updates_total{result="accepted"})') == 6
    assert value('zk0d_rounds_total{result="committed"}') == 3
    assert value("sum(zk0d_node_steps_total)") == 2 * 3 * TINY["local-steps"]
    assert value("sum(zk0d_train_steps_total)") == 2 * 3 * TINY["local-steps"]
    assert value('zk0d_run_state{state="finished"}') == 1
    assert value('sum(zk0d_tasks_total{kind="train", result="done"})') == 6
    assert value("count(zk0d_node_online == 1)") == 2
    assert value("min(zk0d_online)") == 1
    # What the nodes count and what the coordinator counts is the same payload, plus headers, and
    # the weights of a checkpoint that they evaluated, which belong to no round.
    lines = list(read_lines(first_run.folder))
    asked = [line for line in lines if line["kind"] == "node.measured" and line["round"] == 3]
    first = next(line for line in lines if line["kind"] == "round.committed" and line["round"])
    evaluated = len(asked) * first["nodes"][0]["bytes_down"]
    assert evaluated
    for ours, theirs, more in (("up", "sent", 0), ("down", "received", evaluated)):
        payload = value(f'sum(zk0d_node_bytes_total{{direction="{ours}"}})')
        with_headers = value(
            f'sum(zk0d_task_bytes_total{{direction="{theirs}", job="zk0d-client"}})'
        )
        assert payload < with_headers < 1.2 * (payload + more) + 1e5


def test_top_shows_the_same_from_services_and_from_prometheus(watched: Watched) -> None:
    def top(*arguments: str) -> str:
        said = subprocess.run(
            [Path(sys.executable).parent / "zk0bot", "top", "--once", *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "140"},
        )
        assert said.returncode == 0, said.stderr
        return said.stdout

    whole = top("--prometheus", watched.server.url)
    coordinator, contributor = (top("--folder", str(folder)) for folder in watched.folders)
    for shown in (whole, coordinator):
        assert "finished" in shown
        assert "round 3/3" in shown
        for node in ("contributor-a", "contributor-b"):
            (line,) = (x for x in shown.splitlines() if x.startswith(node) and "online" in x)
            assert line.split()[6:9] == ["3", "0", "0"], line  # after the seconds and their s
    assert "round" not in contributor.replace("rounds", ""), "a node does not know the run's"
    (line,) = (x for x in contributor.splitlines() if x.startswith("client-superexec"))
    assert line.split()[1:3] == ["ready", str(3 * int(TINY["local-steps"]))], line
    assert "does not answer" not in whole + coordinator + contributor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_preview_draws_every_panel(watched: Watched, tmp_path: Path, page: Page) -> None:
    text = preview(page, watched.server)
    (tmp_path / f"{page.name}.html").write_text(text)
    assert text.count("<section") == len(built(page)["panels"])
    assert "no data" not in text
    assert text.count("<svg") == sum(p["type"] == "timeseries" for p in panels_of(built(page)))


def test_every_rule_is_healthy_and_no_alert_fires(watched: Watched) -> None:
    groups = watched.server.ask("rules")["groups"]
    health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
    assert len(health) > 20
    assert set(health.values()) == {"ok"}, health
    # The machine's own disk may be full; all else is a federation that is well.
    assert watched.server.firing() <= {"Zk0dDiskFilling", "Zk0dDiskFull"}


def test_services_metrics_pass_promtool(watched: Watched) -> None:
    """By promtool's rules for names, and by a strict reader of OpenMetrics."""
    for name, address in watched.endpoints.items():
        text = httpx.get(f"http://{address}/metrics").text
        said = subprocess.run(
            [program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert said.returncode == 0, f"{name}: {said.stdout}{said.stderr}"
        assert not said.stderr, f"{name}: {said.stderr}"
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        answer = httpx.get(f"http://{address}/metrics", headers=accept)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        families = {family.name for family in text_string_to_metric_families(answer.text)}
        assert "zk0d_build" in families or "zk0d_build_info" in families, name


def test_the_metrics_that_are_shown_are_those_of_the_reference(watched: Watched) -> None:
    from zk0d.monitoring.reference import metric_names

    shown = {
        line.split("{")[0].split(" ")[0]
        for address in watched.endpoints.values()
        for line in httpx.get(f"http://{address}/metrics").text.splitlines()
        if not line.startswith("#")
    }
    assert shown <= metric_names()
    gpus = {name for name in metric_names() if name.startswith("zk0d_gpu_")}
    refused = {"zk0d_tasks_refused_total"}
    assert metric_names() - shown <= gpus | refused
