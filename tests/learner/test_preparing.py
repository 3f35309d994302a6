"""A learner that decodes for hours is seen to move, and keeps decoding when nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.processes import wait_until
from tests.serving import served
from zk0d.config.machine import SOCKET_KEY, ClientSettings
from zk0d.errors import Zk0dError
from zk0d.federation import client_app, learner_client
from zk0d.federation.envelope import from_record, to_record
from zk0d.federation.learner_client import LearnerClient, LearnerError
from zk0d.federation.messages import Query, QueryReply
from zk0d.learner import app, tasks
from zk0d.learner.contributor import Contributor
from zk0d.learning import frames
from zk0d.learning.pictures import pictures
from zk0d.learning.policy import spec_for
from zk0d.learning.progress import Decoding, duration
from zk0d.learning.recordings import open_recordings
from zk0d.record.reasons import Reason
from zk0d.services import learner as service

LAST = 5  #: the number of the last episode of the shared recordings


@pytest.fixture
def contributor(recordings_folder: Path, tmp_path: Path) -> Contributor:
    settings = {
        "name": "left",
        "dataset-uri": f"local:{recordings_folder}",
        "learner": {"device": "cpu", "cache": {"folder": str(tmp_path / "cache")}},
    }
    node = Contributor(ClientSettings.parse(settings, where="test"))
    node.open()
    return node


@pytest.fixture
def query(recordings_folder: Path) -> Query:
    summary = open_recordings(f"local:{recordings_folder}").summary
    return Query(run="1", spec=spec_for("act", "tiny", 0, summary, {}), dataset_uri="")


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(tasks, "PROGRESS_SECONDS", 0.0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Decoding stands still in the last episode until it is set."""
    go_on, decode = threading.Event(), frames.decode_episode

    def held_back(recordings: Any, key: str, number: int, *more: Any) -> Any:
        done.append(number)
        if number == LAST:
            go_on.wait(60)
        return decode(recordings, key, number, *more)

    done: list[int] = []
    go_on.done = done  # type: ignore[attr-defined]
    monkeypatch.setattr(frames, "decode_episode", held_back)
    yield go_on
    go_on.set()


def refused(path: Path, query: Query) -> LearnerError:
    with LearnerClient(path) as client, pytest.raises(LearnerError) as error:
        client.query(query)
    return error.value


def test_a_question_is_answered_while_the_learner_decodes_on(
    contributor: Contributor,
    query: Query,
    held: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner_client, "PREPARING_SECONDS", 0.0)
    monkeypatch.setattr(learner_client, "ALMOST_SECONDS", -1.0)
    with served(contributor, tmp_path / "s") as path:
        first = refused(path, query)
        assert first.reason == Reason.PREPARING
        assert first.message.startswith("preparing: decoding ")
        with LearnerClient(path) as client:
            wait_until(lambda: held.done[-1:] == [LAST], "the last episode is decoded", 30)
            assert client.status()["state"] == "working", "though nobody waits for it"
        again = refused(path, query)
        assert again.reason == Reason.PREPARING
        recordings = contributor._lent.at(contributor._lent.own)
        total = recordings.summary.frames
        assert f"of {total:,} frames" in again.message
        held.set()
        with LearnerClient(path) as client:
            wait_until(lambda: client.status()["state"] == "idle", "all is decoded", 30)
            reply = client.query(query)
        assert isinstance(reply, QueryReply)
        assert reply.usable_frames == total
    assert sorted(held.done) == list(range(LAST + 1)), "each episode once"


def test_the_coordinator_is_told_by_a_refusal_that_passes(
    contributor: Contributor,
    query: Query,
    held: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learner_client, "PREPARING_SECONDS", 0.0)
    monkeypatch.setattr(learner_client, "ALMOST_SECONDS", -1.0)
    with served(contributor, tmp_path / "s") as path:
        context: Any = SimpleNamespace(node_config={SOCKET_KEY: str(path)})
        answers: list[Any] = []
        monkeypatch.setattr(client_app, "Message", lambda record, reply_to: answers.append(record))
        message: Any = SimpleNamespace(content=to_record(query))
        client_app.query(message, context)
        with pytest.raises(Zk0dError, match="preparing: decoding") as error:
            from_record(answers[0], QueryReply)
        assert error.value.reason == Reason.PREPARING
        assert Reason.PREPARING.passes
        held.set()
        with LearnerClient(path) as client:
            wait_until(lambda: client.status()["state"] == "idle", "all is decoded", 30)


def test_a_learner_that_is_almost_done_is_waited_for(
    contributor: Contributor, query: Query, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner_client, "PREPARING_SECONDS", -1.0)
    monkeypatch.setattr(learner_client, "ALMOST_SECONDS", float("inf"))
    with served(contributor, tmp_path / "s") as path, LearnerClient(path) as client:
        assert client.query(query).usable_frames


def test_the_watchdog_sees_each_picture_of_a_long_episode(
    contributor: Contributor, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pictures hours may pass by this clock, within an episode they may not."""
    now = [0.0]
    monkeypatch.setattr("zk0d.services.learner.time.monotonic", lambda: now[0])
    made = app.LearnerApp(contributor)
    control = tasks.TaskControl()
    made._doing = {"state": "working", "task": "query", "since": 0.0, "seen": 0.0}

    def report(event: dict[str, Any]) -> None:  # as LearnerApp's own does, without its loop
        made._doing = {**made._doing, **event, "seen": now[0]}

    control.report = report
    seen: list[tuple[int, float]] = []
    real = pictures
    served_by = service.LearnerService("learner", lambda: (contributor, Path()))
    served_by._app = made
    served_by._server = SimpleNamespace(started=True)  # type: ignore[assignment]
    served_by._thread = threading.current_thread()

    def slow(layout: Any, key: str, episode: Any, *more: Any) -> Any:
        for each in real(layout, key, episode, *more):
            now[0] += 0.9 * service.LOAD_SECONDS
            seen.append((episode.number, made.doing["seen"]))
            assert not served_by.look().stuck
            yield each

    monkeypatch.setattr(frames, "pictures", slow)
    contributor.run(query, None, control)
    first = [at for number, at in seen if number == 0]
    assert len(set(first)) > 0.9 * len(first) > 10
    now[0] += 2 * service.LOAD_SECONDS
    assert served_by.look().stuck == "query_stands_still", "who really stands still is found"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (95.0, "95 s"), (100.0, "2 min"), (2400.0, "40 min"), (9000.0, "2.5 h")],
)
def test_a_duration_is_readable(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_time_that_is_left_counts_only_what_is_decoded() -> None:
    half_was_kept = Decoding(frames=1000, of=2000, seconds=10.0, memory=0, kept=990)
    assert half_was_kept.left == pytest.approx(1000.0)
    assert half_was_kept.to_others() == "decoding 1,000 of 2,000 frames, about 17 min left"
    assert Decoding(500, 2000, 1.0, 0, kept=500).to_others() == "decoding 500 of 2,000 frames"
    assert "left" not in str(Decoding(500, 2000, 1.0, 0, kept=500))
