"""Decoding and the first steps are seen: by who waits, in the log, and in STATUS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zk0d.config.machine import ClientSettings
from zk0d.federation.client_app import _progress_log
from zk0d.federation.messages import Query
from zk0d.learner.contributor import Contributor
from zk0d.learner.tasks import TaskControl
from zk0d.learning.policy import spec_for
from zk0d.learning.progress import (
    CacheUse,
    Decoding,
    Energy,
    Progress,
    Training,
    event_of,
    size,
    told_by,
)
from zk0d.learning.recordings import open_recordings
from zk0d.services.learner import _sentence

GIB = 2**30
LARGE = CacheUse(46_909, 4 * GIB, 76 * GIB, 5_767_168, "/cache")
SENTENCES: dict[str, Progress] = {
    (
        "46,909 frames take 4.0 GiB in memory, 76.0 GiB in /cache, 5.5 MiB that each batch decodes"
        " again"
    ): LARGE,
    "10 frames take 1.0 MiB in memory": CacheUse(10, 2**20, 0, 0, "/cache"),
    "decoding: 1,200 of 4,800 frames, 30 s left, 1.5 GiB of memory in use": (
        Decoding(1200, 4800, 10.0, 3 * GIB // 2)
    ),
    "training step 0/60: the first is under way": Training(0, 60, 0.0),
    "training step 20/60, 4 s left, loss 0.2500": Training(20, 60, 2.0, 0.25),
    "the GPU took 2.5 Wh in this round": Energy(9000.0),
}


@pytest.mark.parametrize(("said", "progress"), SENTENCES.items())
def test_progress_is_the_same_sentence_in_status_and_log(
    said: str, progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    event = event_of(progress)
    assert told_by(event) == progress
    assert str(progress) == said
    assert _sentence({"state": "working", "task": "query", **event}) == said
    with caplog.at_level("INFO", "flwr"):
        _progress_log()(event)
    assert [record.getMessage() for record in caplog.records] == [f"zk0d: {said}"]


def test_a_task_without_progress_is_under_way() -> None:
    assert told_by({"event": "alive"}) is None
    assert _sentence({"state": "working", "task": "query"}) == "query is under way"


def test_a_size_is_readable() -> None:
    assert [size(count) for count in (0, 10 * 2**20, 86_460_000_000)] == [
        *("0.0 MiB", "10.0 MiB", "80.5 GiB")
    ]


def test_the_first_and_the_last_progress_are_reported_however_fast_they_come() -> None:
    told: list[dict[str, Any]] = []
    control = TaskControl(told.append)
    for number in range(1, 101):
        control.tell(Decoding(number, 100, 0.0, 0))
    for number in range(101):
        control.tell(Training(number, 100, 0.0))
    assert [event["frames"] for event in told if "frames" in event][-1] == 100
    steps = [event["step"] for event in told if "step" in event]
    assert (steps[0], steps[-1]) == (0, 100)
    assert len(told) < 20


@pytest.mark.parametrize(("policy", "frozen"), [("smolvla", True), ("act", False)])
def test_a_query_reports_the_place_of_frames_before_it_decodes_them(
    recordings_folder: Path, policy: str, frozen: bool
) -> None:
    uri = f"local:{recordings_folder}"
    settings = ClientSettings.parse(
        {"name": "left", "dataset-uri": uri, "learner": {"device": "cpu"}}, where="test"
    )
    summary = open_recordings(uri).summary
    told: list[dict[str, Any]] = []
    Contributor(settings).run(
        Query(run="1", spec=spec_for(policy, "tiny", 0, summary, {}), dataset_uri=""),
        None,
        TaskControl(told.append),
    )
    use, *decoding = [told_by(event) for event in told]
    assert isinstance(use, CacheUse)
    assert use.frames == summary.frames
    pixels = summary.frames * 3 * 96 * 96
    assert use.memory < pixels if frozen else use.memory == pixels
    last = decoding[-1]
    assert isinstance(last, Decoding)
    assert last.frames == last.of == summary.frames
    assert re.fullmatch(r"decoding: .* 0 s left, .* GiB of memory in use", str(last))
