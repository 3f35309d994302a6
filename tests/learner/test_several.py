"""A node that lends several datasets trains on all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.learner.test_growing import Rounds, recorded
from tests.recordings.shapes import write
from zk0d.config.machine import ClientSettings
from zk0d.federation.messages import Query, QueryReply
from zk0d.learner.contributor import Contributor
from zk0d.learner.tasks import TaskControl
from zk0d.learning.policy import spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.spec import PolicySpec


def opened(folder: Path, *tables: dict[str, Any], **learner: Any) -> tuple[Contributor, PolicySpec]:
    """A contributor with ``cube`` and ``cup`` of two episodes each."""
    named = [{"uri": f"local:{folder / name}"} for name in ("cube", "cup")]
    for name in ("cube", "cup"):
        write(folder / name, lengths=(8, 8), tasks=(f"lift the {name}",))
    lent = [one | two for one, two in zip(named, tables or ({}, {}), strict=True)]
    settings = {"name": "left", "dataset": lent, "learner": {"device": "cpu"} | learner}
    node = Contributor(ClientSettings.parse(settings, where="test"))
    node.open()
    summary = open_recordings(lent[0]["uri"]).summary
    return node, spec_for("smolvla", "tiny", 0, summary, {})


def asked(node: Contributor, spec: PolicySpec) -> QueryReply:
    reply, _ = node.run(Query(run="1", spec=spec, dataset_uri=""), None, TaskControl())
    assert isinstance(reply, QueryReply)
    return reply


def test_a_node_answers_for_all_its_datasets(tmp_path: Path) -> None:
    node, spec = opened(tmp_path, {}, {"last": 1})
    reply = asked(node, spec)
    assert (reply.recordings.episodes, reply.usable_frames) == (3, 24)
    assert reply.statistics is not None
    assert reply.statistics.features["action"].count == 24
    told = {name: each["frames"] for name, each in node.facts()["datasets"].items()}
    assert told == {"left-1": 16, "left-2": 8}


def test_a_dataset_that_grew_is_taken_in_beside_the_others(tmp_path: Path) -> None:
    node, spec = opened(tmp_path, **{"holdout-episodes": 1})
    rounds = Rounds(node, spec, **{"evaluate-on-nodes": True, "eval-frames": 0})
    first = rounds.train(1)
    assert (first.dataset_frames, first.holdout_frames) == (16, 16)
    recorded(tmp_path / "cube", 8, 8, 8)
    second = rounds.train(2)
    assert second.dataset_frames == 24
    assert second.holdout_frames == 16, "a run's losses by round are of the same episodes"
    assert second.variate == "kept"


def test_the_owner_reads_the_held_out_loss_of_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "zk0d")
    node, spec = opened(tmp_path, **{"holdout-episodes": 1})
    rounds = Rounds(node, spec, **{"evaluate-on-nodes": True, "eval-frames": 0})
    figures = rounds.train(1)
    (line,) = [said for said in caplog.messages if "loss on held-out episodes" in said]
    losses = dict(re.findall(r"/(cube|cup) ([\d.]+)", line))
    assert set(losses) == {"cube", "cup"}
    assert figures.holdout_loss is not None
    mean = sum(map(float, losses.values())) / 2
    assert figures.holdout_loss == pytest.approx(mean, abs=1e-3)


def test_a_round_draws_by_weight(tmp_path: Path) -> None:
    """At a weight of next to nothing a round is that of the other dataset alone."""
    little = 1e-12
    node, spec = opened(tmp_path / "both", {}, {"weight": little})
    alone, _ = opened(tmp_path / "alike", {}, {})
    rounds, others = Rounds(node, spec), Rounds(alone, spec)
    for each in (rounds, others):
        each.statistics = rounds.statistics
    drawn: list[set[int]] = []
    for one in (rounds, others):
        data = one.node._prepared
        assert data is not None
        batches = data.data.batches(one.statistics)
        taken: set[int] = set()
        usual = batches.batch

        def noted(indices: Any, augment: Any, usual: Any = usual, taken: set[int] = taken) -> Any:
            taken.update(indices.tolist())
            return usual(indices, augment)

        batches.batch = noted  # type: ignore[method-assign, assignment]
        one.settings = {"local-steps": 6, "batch-size": 8}
        one.train(1)
        drawn.append(taken)
    assert max(drawn[0]) < 16 <= max(drawn[1])
