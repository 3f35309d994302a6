"""The coordinator's figures: what a node writes cannot make series without end."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from tests.bench.bench_scrape import cohort
from tests.record.lines import Told
from zk0d.federation.messages import QueryReply
from zk0d.federation.nodes import Node
from zk0d.record.reasons import Reason
from zk0d.record.state import NewestRun, RunState
from zk0d.services.figures import NodeCollector, RunCollector

MOST_PER_NODE = 30


def series(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if not line.startswith("#")]


def shown(facts: RunState) -> list[str]:
    run = NewestRun(Path("/nonexistent"))
    run.state = facts
    registry = CollectorRegistry()
    registry.register(RunCollector(run))
    return series(registry)


def test_a_node_costs_a_bounded_number_of_series() -> None:
    per_node = (len(series(cohort(200))) - len(series(cohort(100)))) / 100
    assert 15 < per_node <= MOST_PER_NODE


def test_a_reason_that_a_node_makes_up_is_counted_as_other() -> None:
    facts = Told(run="7")
    for number in range(500):
        facts.take({"kind": "update.refused", "node": "left", "reason": f"made-up-{number}"})
    facts.take({"kind": "update.refused", "node": "left", "reason": "norm_cap"})
    assert facts.refused == {("left", Reason.OTHER): 500, ("left", Reason.NORM_CAP): 1}
    rejected = [line for line in shown(facts) if line.startswith("zk0d_updates_rejected")]
    assert len(rejected) == 3


def test_a_version_is_checked_before_it_is_a_label() -> None:
    field = QueryReply.model_fields["version"]
    assert field.default == ""
    for wrong in ('1"} 1', "x" * 41, "a b", "1\n2"):
        with pytest.raises(ValidationError) as said:
            QueryReply.model_validate({"version": wrong})
        assert any(error["loc"] == ("version",) for error in said.value.errors()), wrong


def test_two_nodes_of_one_name_are_two_series() -> None:
    nodes = NodeCollector()
    nodes.update(
        [Node(1, "a" * 64, "left", True, 1.0), Node(2, "b" * 64, "left", False, 1.0, 5.0)],
        None,
        {"b" * 64},
    )
    registry = CollectorRegistry()
    registry.register(nodes)
    text = series(registry)
    assert 'zk0d_node_online{node="left"} 1.0' in text
    assert 'zk0d_node_online{node="left-bbbbbb"} 0.0' in text
    assert 'zk0d_node_last_online_timestamp_seconds{node="left-bbbbbb"} 5.0' in text
    assert 'zk0d_node_key_shared{node="left-bbbbbb"} 1.0' in text
    assert 'zk0d_node_key_shared{node="left"} 0.0' in text


def committed(number: int, loss: float) -> dict[str, object]:
    return {
        "kind": "round.committed",
        "time": 1.0,
        "round": number,
        "nodes": [{"node": "left", "policy_loss": 0.5, "bytes_up": 3, "bytes_down": 5, "steps": 7}],
        "train_loss": 0.5,
        "bytes_up": 3,
        "bytes_down": 5,
        "seconds": {},
        "evaluation": {
            "loss": loss,
            "success": None,
            "datasets": [{"name": "a", "loss": loss, "success": None}],
        },
    }


def test_losses_are_held_against_the_start_and_the_best() -> None:
    facts = Told()
    for number, loss in enumerate((0.9, 0.4, 0.6, 0.5)):
        facts.take(committed(number, loss))
    text = shown(facts)
    assert 'zk0d_policy_loss_baseline{dataset="a"} 0.9' in text
    assert "zk0d_policy_loss_best 0.4" in text
    assert "zk0d_policy_loss_mean 0.5" in text
    assert "zk0d_evaluations_since_best 2.0" in text
    assert 'zk0d_node_bytes_total{direction="down",node="left"} 15.0' in text
    assert 'zk0d_node_steps_total{node="left"} 21.0' in text
    facts.take({"kind": "run.resumed", "round": 2, "flower_run": "8"})
    assert "zk0d_evaluations_since_best 1.0" in shown(facts), "round 3 is trained again"
    assert facts.evaluated == {0: 0.9, 1: 0.4, 2: 0.6}


def test_a_deadline_is_there_while_a_round_is_under_way() -> None:
    facts = Told()
    start = {"nodes": ["left"], "learning_rate": 0.1, "proximal_mu": 0.0}
    facts.take({"kind": "round.started", "time": 100.0, "deadline_seconds": 50.0, **start})
    assert "zk0d_round_deadline_timestamp_seconds 150.0" in shown(facts)
    facts.take(committed(1, 0.5))
    assert "zk0d_round_deadline_timestamp_seconds 0.0" in shown(facts)


def test_updates_by_result_are_counted_from_zero() -> None:
    facts = Told(run="7")
    facts.take({"kind": "node.joined", "node": "left", "key": "a", "version": "1.0"})
    text = shown(facts)
    assert 'zk0d_node_updates_total{node="left",result="lost"} 0.0' in text
    assert 'zk0d_updates_rejected_total{node="left",reason="not_finite"} 0.0' in text
    assert 'zk0d_node_info{node="left",version="1.0"} 1.0' in text
    facts.take({"kind": "node.lost", "node": "left", "reason": "deadline"})
    facts.take({"kind": "node.sits_out", "node": "left", "until": 4})
    text = shown(facts)
    assert 'zk0d_node_updates_total{node="left",result="lost"} 1.0' in text
    assert 'zk0d_node_sits_out{node="left"} 1.0' in text


def test_a_journal_of_an_older_version_is_read() -> None:
    facts = Told(run="7")
    facts.take({"kind": "node.joined", "node": "left"})
    facts.take(
        {
            "kind": "round.started",
            "time": 1.0,
            "nodes": ["left"],
            "learning_rate": 0.1,
            "proximal_mu": 0.0,
        }
    )
    assert 'zk0d_node_info{node="left",version=""} 1.0' in shown(facts)
