from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from zk0d.federation import body
from zk0d.federation.body import BodyReader, open_body, require_payload, write_body
from zk0d.federation.envelope import Refused, from_record, to_record
from zk0d.federation.messages import PROTOCOL, Refusal, Start, TrainReply
from zk0d.federation.update import Payload, UpdateError

TASK = Start(policy="act", model_name="tiny", seed=3)


def payload(values: int = 10) -> Payload:
    return Payload.of({"w": np.arange(values, dtype=np.float32)}, "weights")


def written(with_payload: Payload | None = None) -> bytes:
    return b"".join(write_body(TASK, with_payload))


@given(st.lists(st.integers(0, 400), max_size=6))
def test_a_body_is_read_however_it_is_cut(cuts: list[int]) -> None:
    content = written(payload())
    places = sorted({0, *cuts, len(content)})
    reader = BodyReader()
    for start, end in itertools.pairwise(places):
        reader.feed(content[start:end])
    task, read = reader.finish(Start)
    assert task == TASK
    assert np.array_equal(require_payload(read).arrays()["w"], np.arange(10))


def test_a_large_payload_keeps_its_chunks() -> None:
    sent = payload(3_000_000)
    reader = BodyReader()
    for piece in write_body(TASK, sent):
        reader.feed(piece)
    _, read = reader.finish(Start)
    assert require_payload(read).chunks == sent.chunks


def beside() -> Payload:
    """A payload of two chunks, and two others beside it."""
    others = [
        Payload.of({"v": np.full(n, float(n), np.float32)}, "variates", "int8") for n in (3, 4)
    ]
    return payload(2_000_000).with_beside(*others)


def same(read: Payload | None, sent: Payload) -> bool:
    read = require_payload(read)
    pairs = zip((read, *read.beside), (sent, *sent.beside), strict=True)
    return all(a.manifest == b.manifest and a.chunks == b.chunks for a, b in pairs)


def test_payloads_beside_a_payload_come_along() -> None:
    sent = beside()
    assert len(sent.chunks) == 2
    reader = BodyReader()
    for piece in write_body(TASK, sent):
        reader.feed(piece)
    assert same(reader.finish(Start)[1], sent)
    assert same(from_record(to_record(TASK, sent), Start)[1], sent)
    found = sent.companion("variates")
    assert found is not None
    assert found.arrays()["v"] == pytest.approx(3.0), "the first of its kind"
    assert sent.companion("delta") is None


def opened(size: int = 1000) -> Payload:
    """The payloads of :func:`beside`, as they come."""
    content = b"".join(write_body(TASK, beside()))
    pieces = (content[at : at + size] for at in range(0, len(content), size))
    task, payload = open_body(pieces, Start)
    assert task == TASK
    return require_payload(payload)


def test_payloads_that_come_as_a_stream_are_read_like_others() -> None:
    """In any order, and as often as one likes."""
    read = opened()
    last = read.beside[-1]
    assert last.arrays()["v"] == pytest.approx(4.0), "what came before it is kept"
    assert same(read, beside())
    assert same(read, beside())
    again = BodyReader()
    for piece in write_body(TASK, read):
        again.feed(piece)
    assert same(again.finish(Start)[1], beside())
    assert same(from_record(to_record(TASK, opened()), Start)[1], beside())
    assert dict(opened().with_beside().decode())["w"].size == 2_000_000


def test_a_stream_is_given_on_once_and_never_empty() -> None:
    read = opened()
    assert sum(map(len, read.stream())) == read.manifest.size
    for again in (lambda: list(read.stream()), read.arrays, lambda: read.with_beside().chunks):
        with pytest.raises(RuntimeError, match="given on"):
            again()
    assert read.beside[0].arrays()["v"] == pytest.approx(3.0), "what comes after it is there"
    read = opened()
    next(read.stream())
    with pytest.raises(RuntimeError, match="under way"):
        read.beside[0].arrays()


def test_a_stream_that_ends_early_is_refused() -> None:
    content = b"".join(write_body(TASK, beside()))
    _, read = open_body(iter([content[:-5]]), Start)
    with pytest.raises(UpdateError, match="ends too early"):
        require_payload(read).beside[-1].arrays()


def listing(change: Callable[[list[Any]], Any]) -> bytes:
    """A body whose list of payloads is changed."""
    content = written(beside())
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    listed = json.loads(header["__metadata__"]["payloads"])
    changed = change(listed)
    header["__metadata__"]["payloads"] = json.dumps(listed if changed is None else changed)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda listed: listed.pop(),
        lambda listed: listed[0].__setitem__(1, 9),
        lambda listed: listed[0].__setitem__(1, "2"),
        lambda listed: listed[0].__setitem__(0, "{}"),
        lambda listed: {},
        lambda listed: 3,
        lambda listed: [1],
    ],
)
def test_a_wrong_list_of_payloads_is_refused(change: Callable[[list[Any]], Any]) -> None:
    reader = BodyReader()
    reader.feed(listing(change))
    with pytest.raises(UpdateError):
        reader.finish(Start)


def test_a_record_whose_payload_beside_is_gone_is_refused() -> None:
    record = to_record(TASK, beside())
    del record["beside-1"]
    with pytest.raises(UpdateError, match="the payload is missing"):
        from_record(record, Start)


def test_safetensors_can_read_it() -> None:
    loaded = safetensors.numpy.load(written(payload()))
    assert loaded["000000"].tobytes() == np.arange(10, dtype=np.float32).tobytes()


def test_a_message_without_tensors() -> None:
    reader = BodyReader()
    reader.feed(written())
    task, read = reader.finish(Start)
    assert task == TASK
    assert read is None
    with pytest.raises(Exception, match="has no tensors"):
        require_payload(read)


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**40),
        struct.pack("<Q", 2) + b"no",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{}",
        written(payload()) + b"more",
    ],
)
def test_a_wrong_body_is_refused(content: bytes) -> None:
    reader = BodyReader()
    with pytest.raises(UpdateError):
        reader.feed(content)


@pytest.mark.parametrize("length", [0, 4, 20, -1])
def test_a_body_that_ends_early(length: int) -> None:
    reader = BodyReader()
    reader.feed(written(payload())[:length])
    with pytest.raises(UpdateError, match="ends too early"):
        reader.finish(Start)


def test_another_message_than_expected() -> None:
    reader = BodyReader()
    reader.feed(written())
    with pytest.raises(UpdateError) as error:
        reader.finish(Refusal)
    assert error.value.reason == "protocol_mismatch"


def test_chunks_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(payload())
    monkeypatch.setattr(body, "CHUNK_BYTES", 39)
    with pytest.raises(UpdateError, match="not a message of zk0d"):
        BodyReader().feed(content)


def test_a_bodys_size_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(payload())
    monkeypatch.setattr(body, "MAX_BODY_BYTES", 39)
    with pytest.raises(UpdateError, match="not a message of zk0d"):
        BodyReader().feed(content)


def test_overlapping_chunks_are_refused() -> None:
    header = json.dumps(
        {
            "__metadata__": {"kind": "Start", "body": TASK.model_dump_json()},
            "000000": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
            "000001": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
        }
    ).encode()
    with pytest.raises(UpdateError):
        BodyReader().feed(struct.pack("<Q", len(header)) + header + b"123456")


def test_a_message_travels_in_flowers_records() -> None:
    task, read = from_record(to_record(TASK, payload()), Start)
    assert task == TASK
    assert np.array_equal(require_payload(read).arrays()["w"], np.arange(10))


def test_reading_takes_the_payload_out_of_the_record() -> None:
    record = to_record(TASK, payload())
    from_record(record, Start)
    assert "payload" not in record


def test_a_refusal_is_raised_with_its_reason() -> None:
    with pytest.raises(Refused) as error:
        from_record(to_record(Refusal(reason="data_error", message="no frames")), Start)
    assert (error.value.reason, error.value.message) == ("data_error", "no frames")


def test_foreign_records_are_refused() -> None:
    with pytest.raises(UpdateError, match="not zk0d's"):
        from_record(RecordDict(), Start)
    with pytest.raises(UpdateError, match="different versions"):
        from_record(to_record(TASK), TrainReply)
    lacking = to_record(TASK, payload())
    del lacking["payload"]
    with pytest.raises(UpdateError, match="payload is missing"):
        from_record(lacking, Start)


def test_another_protocol_is_refused() -> None:
    record = to_record(TASK)
    text = str(record["message"]["body"])
    record["message"]["body"] = text.replace(f'"protocol":{PROTOCOL}', f'"protocol":{PROTOCOL - 1}')
    with pytest.raises(UpdateError) as error:
        from_record(record, Start)
    assert error.value.reason == "protocol_mismatch"
