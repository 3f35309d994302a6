"""A figure of a node is declared once, and everybody has it."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from tests.record.lines import Told
from zk0d.federation.messages import TrainReply
from zk0d.record.events import KINDS, NodeFigures, NodeRound, RoundCommitted
from zk0d.record.state import NewestRun
from zk0d.release.wandb import figures
from zk0d.services.figures import RunCollector


def test_every_kind_has_its_type() -> None:
    assert len(KINDS) == 25
    assert "round.committed" in KINDS


def test_a_figure_of_a_node_is_everywhere(tmp_path: Path) -> None:
    """The reply carries them whole, the journal adds to them, metrics and W&B are made of them."""
    assert TrainReply.model_fields["figures"].annotation is NodeFigures
    assert set(NodeFigures.model_fields) < set(NodeRound.model_fields)
    node = NodeRound(
        node="left", loss=1.0, policy_loss=2.0, grad_norm=3.0, update_norm=4.0, agreement=0.5
    )
    logged = figures(RoundCommitted(round=1, nodes=(node,)))
    numbers = {name for name, value in node.model_dump().items() if isinstance(value, int | float)}
    assert {f"client_left_{name}" for name in numbers} <= set(logged)
    newest = NewestRun(tmp_path)
    newest.state = Told(run="7")
    newest.state.apply(RoundCommitted(round=1, nodes=(node,)))
    registry = CollectorRegistry()
    registry.register(RunCollector(newest))
    text = generate_latest(registry).decode()
    for name, field in NodeRound.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict):
            assert f'zk0d_{extra["metric"]}{{node="left"}} {getattr(node, name)}' in text
