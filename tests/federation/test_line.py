"""What a ClientApp may move over its owner's line, by a clock of the test's own."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from tests.learner.test_limits import SPEC
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import COORDINATOR_VARIABLE, LIMITS_VARIABLE, LINE_FOLDER_VARIABLE
from zk0d.daemon.line import BOOK, LineBook
from zk0d.errors import TryAgainError, Zk0dError
from zk0d.federation import client_app, line
from zk0d.federation.envelope import Refused, from_record, to_record
from zk0d.federation.line import LEAST_PART, MOST_AT_ONCE, Line, Pace, line_of
from zk0d.federation.messages import Query, QueryReply


class Clock:
    """Seconds that pass when somebody rests."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rests: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += seconds


def lent(**values: Any) -> LimitsSettings:
    return LimitsSettings.parse({k.replace("_", "-"): v for k, v in values.items()}, where="test")


NOON = time.strptime("2026-11-29 12:00", "%Y-%m-%d %H:%M")


def line_with(folder: Path, clock: Clock | None = None, **values: Any) -> Line:
    metered, clock = values.pop("is_metered", False), clock or Clock()
    return Line(
        lent(**values),
        LineBook(folder, lambda: NOON),
        metered=lambda: metered,
        clock=clock,
        sleep=clock.sleep,
        now=lambda: NOON,
    )


def test_a_rate_holds_however_the_bytes_come() -> None:
    for sizes in ([1000] * 50, [50_000], [1] * 100 + [49_900]):
        clock = Clock()
        pace = Pace(10_000, clock, clock.sleep)
        began = clock.now
        for size in sizes:
            pace.moved(size)
        assert clock.now - began == pytest.approx(sum(sizes) / 10_000), sizes


def test_a_slow_line_is_not_slowed_and_may_catch_up_a_second() -> None:
    clock = Clock()
    pace = Pace(10_000, clock, clock.sleep)
    for _ in range(10):
        clock.now += 1.0  # the line gives 5,000 bytes in it
        pace.moved(5000)
    assert clock.rests == []
    clock.now += 3600.0  # a wait for the learner
    pace.moved(10_000)
    assert clock.rests == [], "a second's worth"
    pace.moved(10_000)
    assert clock.rests == [pytest.approx(1.0)], "and not an hour's"


def test_without_a_rate_there_is_no_rest() -> None:
    clock = Clock()
    assert Pace(0, clock, clock.sleep).moved(10**12) == 0.0
    assert clock.rests == []


def test_what_is_sent_goes_in_small_parts_at_its_rate(tmp_path: Path) -> None:
    clock = Clock()
    way = line_with(tmp_path, clock, upload_rate="20 kB", download_rate="1 MB")
    parts = list(way.send(bytes(100_000)))
    assert b"".join(parts) == bytes(100_000)
    assert max(map(len, parts)) == 5000, "a quarter of a second's"
    assert clock.now - 1000.0 == pytest.approx(5.0)
    assert way.received(2_000_000) == pytest.approx(2.0 - 1.0), "the other way has its own rate"
    assert way.part == 4_000_000
    assert line_with(tmp_path, download_rate="8 kB").part == LEAST_PART
    assert line_with(tmp_path).part == 0
    assert len(next(line_with(tmp_path).send(bytes(10**6)))) == MOST_AT_ONCE


def test_bytes_are_noted_while_they_move(tmp_path: Path) -> None:
    """A ClientApp that is killed forgets five seconds."""
    clock = Clock()
    way = line_with(tmp_path, clock, download_rate="100 kB")
    for _ in range(12):
        way.received(100_000)
    assert LineBook(tmp_path, lambda: NOON).today().down == 1_100_000
    way.count(up=7)
    way.close()
    today = LineBook(tmp_path, lambda: NOON).today()
    assert (today.down, today.up) == (1_200_000, 7)


ROUND: dict[str, Any] = {"down": 2_000_000, "up": 1_000_000, "seconds": 3600.0}


def test_a_round_that_the_day_does_not_hold_is_not_begun(tmp_path: Path) -> None:
    way = line_with(tmp_path, bytes_per_day="5 MB")
    way.begin_round("7", **ROUND)
    way.received(2_000_000)
    way.count(up=1_000_000)
    with pytest.raises(TryAgainError) as caught:
        way.begin_round("7", **ROUND)
    assert caught.value.reason == "line_rests"
    assert caught.value.message == (
        "this node's line rests until midnight (3 MB of the day's 5 MB are spent, a round moves"
        " 3 MB; limits.bytes-per-day)."
    )
    with pytest.raises(TryAgainError, match="a round moves 3 MB"):
        line_with(tmp_path, bytes_per_day="5 MB").check("7")
    line_with(tmp_path, bytes_per_day="5 MB").check("8")


def test_a_round_that_no_day_holds_is_more_than_the_owner_lends(tmp_path: Path) -> None:
    with pytest.raises(Zk0dError) as caught:
        line_with(tmp_path, bytes_per_day="2 MB").begin_round("7", **ROUND)
    assert caught.value.reason == "limit_exceeded"
    assert "a round of this run moves 3 MB, and this node lends 2 MB a day" in caught.value.message


def test_a_round_that_the_rates_cannot_finish_is_not_begun(tmp_path: Path) -> None:
    slow = line_with(tmp_path, upload_rate="10 kB", download_rate="40 kB")
    slow.begin_round("7", **ROUND | {"seconds": 151.0})
    with pytest.raises(Zk0dError) as caught:
        slow.begin_round("7", **ROUND | {"seconds": 149.0})
    assert caught.value.reason == "deadline"
    assert "take 150 s at this node's rates" in caught.value.message


def test_a_connection_that_became_metered_sends_no_update(tmp_path: Path) -> None:
    line_with(tmp_path).begin_upload()
    line_with(tmp_path, is_metered=True, metered=True).begin_upload()
    with pytest.raises(TryAgainError, match="has become a metered one") as caught:
        line_with(tmp_path, is_metered=True).begin_upload()
    assert caught.value.reason == "line_rests"


def test_what_cannot_be_counted_does_not_move_if_its_owner_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "folder"
    counted = line_with(nowhere, bytes_per_day="5 MB")
    counted.received(10)
    with pytest.raises(TryAgainError, match="would not hold; nothing moves") as caught:
        counted.begin_round("7", **ROUND)
    assert caught.value.reason == "disk_full"
    free = line_with(nowhere)
    free.received(10)
    free.close()
    assert "the bytes of this day cannot be noted" in caplog.text
    counted.received(10)
    counted.close()  # an answer that was sent is not lost for it


def test_the_superexec_tells_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        LIMITS_VARIABLE: lent(upload_rate="20 kB").model_dump_json(by_alias=True),
        LINE_FOLDER_VARIABLE: str(tmp_path),
        COORDINATOR_VARIABLE: "https://hub.example.org:9443/zk0d/v1",
    }
    monkeypatch.setattr(line, "is_metered", lambda: True)
    with pytest.raises(TryAgainError, match="while the connection is metered"):
        line_of(told).check("7")
    line_of(told | {COORDINATOR_VARIABLE: "https://127.0.0.1:9443/zk0d/v1"}).check("7")
    line_of({}).check("7")
    list(line_of({}).send(b"x"))
    assert len(next(line_of(told).send(bytes(10**6)))) == 5000


def refusal_of_a_query(answer: Any) -> Refused:
    """How a real ClientApp refuses a query; ``answer`` stands in for its learner's."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    record = to_record(Query(run="7", spec=SPEC))
    message = Message(record, dst_node_id=1, message_type=MessageType.QUERY)
    learner = contextlib.nullcontext(SimpleNamespace(query=answer))
    with client_app.reached_by(lambda context: learner):
        answered = client_app.query(message, SimpleNamespace(node_config={}))
    assert isinstance(answered.content, RecordDict)
    with pytest.raises(Refused) as caught:
        from_record(answered.content, QueryReply)
    return caught.value


@pytest.mark.parametrize("spent", [0, 5_000_000])
def test_a_query_is_refused_while_the_line_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spent: int
) -> None:
    """By the real ClientApp, whose learner is a stand-in."""
    monkeypatch.setenv(LIMITS_VARIABLE, lent(bytes_per_day="5 MB").model_dump_json(by_alias=True))
    monkeypatch.setenv(LINE_FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setenv(COORDINATOR_VARIABLE, "https://127.0.0.1:9443/zk0d/v1")
    LineBook(tmp_path).add(up=spent)
    asked: list[Query] = []

    def answer(task: Query, progress: Any) -> QueryReply:
        asked.append(task)
        raise Zk0dError("the stand-in was asked", reason="learner_busy")

    assert refusal_of_a_query(answer).reason == ("line_rests" if spent else "learner_busy")
    assert len(asked) == (0 if spent else 1)


def test_the_days_bytes_lie_in_one_small_file(tmp_path: Path) -> None:
    way = line_with(tmp_path)
    way.received(5)
    way.close()
    assert [path.name for path in tmp_path.iterdir()] == [BOOK]
    assert (tmp_path / BOOK).stat().st_size < 200
