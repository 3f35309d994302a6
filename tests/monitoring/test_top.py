"""``zk0bot top`` on services whose figures are known."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.record.test_state import write
from zk0d.cli.main import app
from zk0d.config.ports import METRICS_PORTS
from zk0d.daemon.metrics import Metrics
from zk0d.errors import ConfigError, UnavailableError
from zk0d.federation.nodes import Node
from zk0d.learner.metrics import LearnerMetrics
from zk0d.monitoring.samples import LocalServices, Sample, Samples
from zk0d.monitoring.top import View, _bytes, _span
from zk0d.record.journal import Journal
from zk0d.record.state import NewestRun
from zk0d.services.figures import NodeCollector, RunCollector


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Settings of a coordinator whose SuperLink's figures are served; the SuperExec is away."""
    host = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.9"
    (tmp_path / "server.toml").write_text(f'[metrics]\nhost = "{host}"\n')
    journal = Journal(tmp_path / "runs/7", "7")
    write(journal)
    newest = NewestRun(tmp_path / "runs")
    nodes = NodeCollector()
    nodes.update(
        [Node(1, "a" * 64, "left", True, 5.0), Node(2, "b" * 64, "right", False, 5.0)],
        newest.look(),
    )
    metrics = Metrics("superlink", host, METRICS_PORTS["superlink"])
    metrics.collect(RunCollector(newest))
    metrics.collect(nodes)
    metrics.serve()
    yield tmp_path
    metrics.close()


def test_one_frame_of_this_machines_services(folder: Path) -> None:
    said = CliRunner().invoke(
        app, ["top", "--once", "--folder", str(folder)], env={"COLUMNS": "140"}
    )
    assert said.exit_code == 0, said.output
    lines = {line.split()[0]: line.split() for line in said.output.splitlines() if line.split()}
    assert lines["run"][:3] == ["run", "7", "running"]
    assert "round 2/3" in said.output
    assert lines["held-out"][:5] == ["held-out", "loss", "0.5", "best", "0.5"]
    assert lines["success"][1:] == ["90%", "a"]
    assert "agreement 0.625" in said.output
    assert lines["left"][1:5] == ["online", "0.5", "0.75", "9"]
    assert lines["left"][6:9] == ["2", "0", "0"]
    assert lines["right"][1:3] == ["never", "seen"]
    assert "does not answer: server-superexec" in said.output


def drawn(view: View, samples: Samples) -> str:
    screen = Console(file=io.StringIO(), width=140)
    screen.print(view.draw(samples))
    return screen.file.getvalue()  # type: ignore[attr-defined]


def learner(steps: float, seconds: float) -> Samples:
    here = {"instance": "x:1", "node": "left"}
    return Samples.of(
        [
            Sample("zk0d_learner_up", here, 1),
            Sample("zk0d_learner_busy", here, 1),
            Sample("zk0d_train_steps_total", here, steps),
            Sample("zk0d_train_seconds_total", here, seconds),
            Sample("zk0d_gpu_utilization_ratio", {**here, "gpu": "0"}, 0.5),
            Sample("ALERTS", {"alertname": "Zk0dX", "alertstate": "firing", "node": "left"}, 1),
            Sample("ALERTS", {"alertname": "Zk0dY", "alertstate": "pending"}, 1),
        ]
    )


def test_the_pace_is_that_since_the_last_frame() -> None:
    view = View(clock=lambda: 100.0)
    first, second = drawn(view, learner(10, 20)), drawn(view, learner(20, 25))
    assert ["left", "working", "10", "2"] in [line.split()[:4] for line in first.splitlines()]
    assert ["left", "working", "20", "0.5"] in [line.split()[:4] for line in second.splitlines()]
    assert "50%" in first


def test_alerts_that_fire_are_named_with_their_page() -> None:
    said = drawn(View(), learner(1, 1))
    assert "Zk0dX left (docs/runbooks/Zk0dX.md)" in said
    assert "Zk0dY" not in said


def test_losses_are_drawn_as_a_line() -> None:
    view = View()
    for round_, loss in ((1, 0.9), (2, 0.5), (3, 0.1)):
        said = drawn(
            view,
            Samples.of(
                [
                    Sample("zk0d_round", {}, round_),
                    Sample("zk0d_policy_loss_mean", {}, loss),
                ]
            ),
        )
    assert "█▄▁" in said


def test_a_large_fleet_is_cut_and_absent_nodes_come_first() -> None:
    nodes = [Sample("zk0d_node_online", {"node": f"n{i:03}"}, float(i != 90)) for i in range(100)]
    said = drawn(View(), Samples.of([Sample("zk0d_round", {}, 1), *nodes]))
    assert "and 60 more" in said
    assert said.index("n090") < said.index("n000")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no server.toml and no client.toml"), ("[metrics]\nenabled = false\n", "is false")],
)
def test_without_services_the_error_says_so(tmp_path: Path, text: str, words: str) -> None:
    if text:
        (tmp_path / "server.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        LocalServices(tmp_path)


def test_services_that_all_are_away_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('[metrics]\nhost = "127.250.250.9"\n')
    with pytest.raises(UnavailableError, match="no service answers"):
        LocalServices(tmp_path).read()


def test_spans_and_bytes_are_short() -> None:
    assert [_span(s) for s in (None, 2.345, 45, 300, 7300, 200000)] == [
        "–", "2.35 s", "45 s", "5 min", "2 h", "2 d",
    ]  # fmt: skip
    assert [_bytes(b) for b in (None, 12, 4.2e6)] == ["–", "12 B", "4.2 MB"]


def test_learners_figures_reach_the_view() -> None:
    """The names that the view asks for are those that a learner writes."""
    metrics = Metrics("learner", part="learner")
    figures = LearnerMetrics(metrics, ["train"])
    figures.began()
    figures.progress({"event": "progress", "step": 4, "seconds": 2.0})
    from prometheus_client.parser import text_string_to_metric_families

    samples = [
        Sample(s.name, {"instance": "x", **s.labels}, s.value)
        for family in text_string_to_metric_families(figures.page().decode())
        for s in family.samples
    ]
    said = drawn(View(), Samples.of([*samples, Sample("zk0d_learner_up", {"instance": "x"}, 1)]))
    (line,) = (x.split() for x in said.splitlines() if x.startswith("x "))
    assert line[1:4] == ["working", "4", "0.5"]
