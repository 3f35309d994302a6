"""Recordings that grew: the next round takes them in, and what the run left here stays."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.learner.tasks import train_task
from tests.learning.damage import set_value
from tests.recordings.shapes import write
from zk0d.config.machine import ClientSettings
from zk0d.federation.messages import Query, QueryReply, TrainReply
from zk0d.federation.update import Payload
from zk0d.learner.contributor import Contributor
from zk0d.learner.tasks import TaskControl
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.spec import PolicySpec
from zk0d.record.events import NodeFigures


def opened(arm: Path, **learner: Any) -> tuple[Contributor, PolicySpec]:
    """A contributor with two episodes, and a policy for them."""
    uri = f"local:{arm}"
    write(arm, lengths=(8, 8))
    settings = {"name": "left", "dataset-uri": uri, "learner": {"device": "cpu"} | learner}
    node = Contributor(ClientSettings.parse(settings, where="test"))
    node.open()
    return node, spec_for("smolvla", "tiny", 0, open_recordings(uri).summary, {})


def recorded(arm: Path, *lengths: int) -> None:
    """Episodes are in place of those of before."""
    shutil.rmtree(arm)
    write(arm, lengths=lengths)


class Rounds:
    """A run on one contributor, round by round, without a coordinator."""

    def __init__(self, node: Contributor, spec: PolicySpec, **settings: Any) -> None:
        reply, _ = node.run(Query(run="1", spec=spec, dataset_uri=""), None, TaskControl())
        assert isinstance(reply, QueryReply)
        assert reply.statistics is not None
        self.node, self.settings = node, settings
        policy = load_policy(spec, models={}, device="cpu")
        arrays = {n: p.detach().numpy() for n, p in policy.trainable().items()}
        self.weights = Payload.of(arrays, "weights")
        self.statistics = reply.statistics
        self.task = functools.partial(train_task, spec, self.weights, self.statistics)
        self.variate_round = 0

    def train(self, number: int) -> NodeFigures:
        task = self.task(self.settings, round=number, variate_round=self.variate_round)
        reply, update = self.node.run(task, self.weights, TaskControl())
        assert isinstance(reply, TrainReply)
        assert update is not None
        self.variate_round = number
        return reply.figures


def test_recordings_that_grew_are_taken_in_with_the_next_run(tmp_path: Path) -> None:
    arm = tmp_path / "arm"
    node, spec = opened(arm)

    def asked(run: str) -> QueryReply:
        reply, _ = node.run(Query(run=run, spec=spec, dataset_uri=""), None, TaskControl())
        assert isinstance(reply, QueryReply)
        return reply

    first = asked("1")
    before = node._prepared
    assert before is not None
    kept = before.data, before.moments
    asked("1")
    assert node._prepared is before
    assert before.data is kept[0], "nothing changed"
    recorded(arm, 8, 8, 8)
    second = asked("2")
    assert (first.recordings.episodes, second.recordings.episodes) == (2, 3)
    assert (first.usable_frames, second.usable_frames) == (16, 24)
    assert first.statistics != second.statistics
    assert node._prepared.moments is kept[1]
    (arm / "meta/info.json").write_text("{")
    assert asked("3").recordings.episodes == 3, "those of before, while somebody writes"


def test_the_next_round_trains_on_recordings_that_grew(tmp_path: Path) -> None:
    arm = tmp_path / "arm"
    node, spec = opened(arm)
    rounds = Rounds(node, spec)
    assert rounds.train(1).dataset_frames == 16
    before = node._prepared
    assert before is not None
    recorded(arm, 8, 8, 8)
    figures = rounds.train(2)
    assert figures.dataset_frames == 24
    assert figures.variate == "kept", "what the run left here stays"
    assert node._prepared is before


def test_a_run_evaluates_on_the_same_held_out_episodes_when_recordings_grow(tmp_path: Path) -> None:
    arm = tmp_path / "arm"
    node, spec = opened(arm, **{"holdout-episodes": 1})
    rounds = Rounds(node, spec, **{"evaluate-on-nodes": True, "eval-frames": 0})
    first = rounds.train(1)
    recorded(arm, 8, 8, 8, 8)
    second = rounds.train(2)
    assert (first.dataset_frames, second.dataset_frames) == (8, 24)
    assert (first.holdout_frames, second.holdout_frames) == (8, 8)
    assert node._prepared is not None
    assert node._prepared.data.held_out_episodes == [1]


def test_a_round_uses_the_recordings_of_before_where_changed_ones_cannot_be_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arm = tmp_path / "arm"
    node, spec = opened(arm)
    rounds = Rounds(node, spec)
    rounds.train(1)
    # They open, but a frame of the new episode is no number.
    recorded(arm, 8, 8, 8)
    set_value(arm, "action", 20, float("nan"))
    assert rounds.train(2).dataset_frames == 16
    assert caplog.text.count("those of before are used") == 1
    assert rounds.train(3).dataset_frames == 16
    assert caplog.text.count("those of before are used") == 1, "until they change again"
    recorded(arm, 8, 8, 9)
    assert rounds.train(4).dataset_frames == 25
