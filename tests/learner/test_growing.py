"""Recordings that grew: a run that begins takes them in, and what the run left here stays."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.recordings.shapes import write
from zk0d.config.machine import ClientSettings
from zk0d.federation.messages import Query, QueryReply
from zk0d.learner.contributor import Contributor
from zk0d.learner.tasks import TaskControl
from zk0d.learning.policy import spec_for
from zk0d.learning.recordings import open_recordings


def test_recordings_that_grew_are_taken_in_with_the_next_run(tmp_path: Path) -> None:
    arm, uri = tmp_path / "arm", f"local:{tmp_path}/arm"
    write(arm, lengths=(8, 8))
    node = Contributor(
        ClientSettings.parse(
            {"name": "left", "dataset-uri": uri, "learner": {"device": "cpu"}}, where="test"
        )
    )
    node.open()
    spec = spec_for("smolvla", "tiny", 0, open_recordings(uri).summary, {})

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
    shutil.rmtree(arm)
    write(arm, lengths=(8, 8, 8))
    second = asked("2")
    assert (first.recordings.episodes, second.recordings.episodes) == (2, 3)
    assert (first.usable_frames, second.usable_frames) == (16, 24)
    assert first.statistics != second.statistics
    assert node._prepared.moments is kept[1]
    (arm / "meta/info.json").write_text("{")
    assert asked("3").recordings.episodes == 3, "those of before, while somebody writes"
