"""What status lines, pages and metrics know of a run is what its journal says."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from tests.record.lines import write as note
from zk0d.record.journal import Journal, JournalTail
from zk0d.record.reasons import Reason
from zk0d.record.state import NewestRun, RunState


def round_line(number: int, loss: float) -> dict[str, object]:
    return {
        "round": number,
        "nodes": [
            {
                "node": "left",
                "loss": 0.5,
                "policy_loss": 0.5,
                "proximal_loss": 0.0,
                "grad_norm": 1.5,
                "update_norm": 2.5,
                "agreement": 0.75,
                "answer_seconds": 9.0,
            }
        ],
        "train_loss": 0.5,
        "agreement": 0.625,
        "bytes_up": 10,
        "bytes_down": 20,
        "seconds": {"collect": 3.0},
        "evaluation": {
            "loss": loss,
            "success": 0.9,
            "datasets": [
                {"name": "a", "loss": loss, "success": 0.9},
                {"name": "b", "loss": None, "success": None},
            ],
        },
    }


def write(journal: Journal, rounds: int = 2) -> None:
    note(journal, "run.started", settings={"num-server-rounds": 3})
    note(journal, "round.committed", round=0, evaluation=None)
    for number in range(1, rounds + 1):
        note(
            journal,
            "round.started",
            round=number,
            nodes=["left"],
            learning_rate=0.1,
            proximal_mu=0.0,
        )
        note(
            journal,
            "update.refused",
            round=number,
            node="right",
            reason="not_finite",
            message="NaN",
        )
        note(journal, "round.committed", **round_line(number, 1.0 / number))


def test_a_tail_reads_each_whole_line_once(tmp_path: Path) -> None:
    tail = JournalTail(tmp_path)
    assert tail.new_events() == []
    journal = Journal(tmp_path, "7")
    note(journal, "run.finished", rounds=3)
    assert [event.kind for event in tail.new_events()] == ["run.finished"]
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"kind": "run.fin')
    assert tail.new_events() == [], "a torn line is not read yet"
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('ished"}\n')
    assert [event.kind for event in tail.new_events()] == ["run.finished"]


def test_the_sentence_says_where_a_run_stands(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "7", "7")
    write(journal)
    newest = NewestRun(tmp_path)
    facts = newest.look()
    assert facts is not None
    assert facts.sentence() == "round 2/3, loss 0.500, 1 of 1 nodes"
    assert facts.refused == {("right", Reason.NOT_FINITE): 2}
    assert facts.by_dataset("loss") == {"a": 0.5}, "what could not be measured is missing"
    note(journal, "run.finished", rounds=3)
    assert newest.look() is facts
    assert facts.sentence().startswith("finished, round 2/3")
    note(journal, "run.failed", reason="run_failed", message="too few nodes.")
    newest.look()
    assert facts.sentence() == "run 7 failed at round 2: too few nodes."


def test_the_newest_run_is_the_one_that_began_last(tmp_path: Path) -> None:
    newest = NewestRun(tmp_path)
    assert newest.look() is None
    for number, began in (("9", 100), ("4", 200)):
        journal = Journal(tmp_path / number, number)
        write(journal, 1)
        journal.write_json("config.json", {})
        os.utime(tmp_path / number / "config.json", (began, began))
    journal = Journal(tmp_path / "9", "9")
    for _ in range(2):
        facts = newest.look()
        assert facts is not None
        assert facts.run == "4"
        note(journal, "update.accepted", round=3)  # one that was stopped goes on for a while


def test_metrics_come_from_the_journal_so_a_restart_loses_nothing(tmp_path: Path) -> None:
    from zk0d.services.figures import RunCollector

    write(Journal(tmp_path / "7", "7"))
    newest = NewestRun(tmp_path)
    registry = CollectorRegistry()
    registry.register(RunCollector(newest))
    assert b"zk0d_round 0.0" in generate_latest(registry), "there before the first run"
    newest.look()
    text = generate_latest(registry).decode()
    for line in (
        "zk0d_round 2.0",
        'zk0d_rounds_total{result="committed"} 2.0',
        'zk0d_policy_loss{dataset="a"} 0.5',
        'zk0d_success_ratio{task="a"} 0.9',
        'zk0d_update_norm{node="left"} 2.5',
        'zk0d_update_cosine{node="left"} 0.75',
        "zk0d_update_agreement 0.625",
        'zk0d_update_bytes_total{direction="up"} 20.0',
        'zk0d_updates_rejected_total{node="right",reason="not_finite"} 2.0',
        'zk0d_round_phase_seconds{phase="collect"} 3.0',
    ):
        assert line in text, line
    assert RunState().sentence() == "round 0/0"


def test_a_waiting_run_shows_at_once_why_a_node_cannot_train(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "1", "1")
    note(journal, "run.started", settings={"num-server-rounds": 3})
    note(journal, "node.refused", node="left", key="k", reason="data_error", message="It is torn.")
    assert RunState.read(tmp_path / "1").sentence() == "round 0/3, left cannot train: It is torn."
    note(journal, "node.joined", node="left", key="k")
    assert RunState.read(tmp_path / "1").sentence() == "round 0/3"
