"""Messages in Flower's terms: a text record, and payloads as sequences of byte Arrays."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from zk0d.errors import Zk0dError
from zk0d.federation.messages import Message, Refusal
from zk0d.federation.update import Manifest, Payload, UpdateError

_KIND, _BODY, _MANIFEST = "kind", "body", "manifest"
#: The payload's record, and by number those beside it. A message has few of them.
_RECORDS = ("payload", "beside-1", "beside-2")
# No numpy array by Flower's meaning: no strategy of Flower's can average it by mistake.
_STYPE = "zk0d.bytes"


class Refused(Zk0dError):
    """The other end answered with a :class:`Refusal`."""


def to_record(message: Message, payload: Payload | None = None) -> RecordDict:
    """A message with its payload and those beside it. Their chunks are not copied."""
    header = {_KIND: type(message).__name__, _BODY: message.model_dump_json()}
    record = RecordDict()
    for name, each in zip(_RECORDS, _all(payload), strict=False):
        header[f"{_MANIFEST}/{name}"] = each.manifest.to_json()
        record[name] = ArrayRecord(
            {
                f"{number:06d}": Array("uint8", (len(chunk),), _STYPE, chunk)
                for number, chunk in enumerate(each.chunks)
            }
        )
    record["message"] = ConfigRecord(header)
    return record


def kind_of(record: RecordDict) -> str:
    """The name of the message's kind; ``""`` if it is none of ours."""
    header = record.get("message")
    return str(header.get(_KIND, "")) if isinstance(header, ConfigRecord) else ""


def from_record[M: Message](record: RecordDict, expected: type[M]) -> tuple[M, Payload | None]:
    """Read a message of the expected kind and its payload, which is taken out of ``record``.

    Raises
    ------
    Refused
        If the other end refused.
    UpdateError
        If it is no message of that kind and protocol.
    """
    header = record.get("message")
    if not isinstance(header, ConfigRecord) or not isinstance(header.get(_BODY), str):
        raise UpdateError("the message is not zk0d's.", reason="protocol_mismatch")
    kind, body = header[_KIND], str(header[_BODY])
    if kind == Refusal.__name__:
        refusal = Refusal.model_validate_json(body)
        raise Refused(refusal.message, reason=refusal.reason)
    try:
        if kind != expected.__name__:
            raise ValueError(f"a {kind!s:.40} came")
        message = expected.model_validate_json(body)
    except ValueError:
        raise UpdateError(
            f"a {expected.__name__} message was expected and cannot be read; the two ends run"
            " different versions of zk0d.",
            reason="protocol_mismatch",
        ) from None
    payloads = []
    for name in _RECORDS:
        text = header.get(f"{_MANIFEST}/{name}")
        if text is None:
            break
        arrays = record.pop(name, None)
        if not isinstance(arrays, ArrayRecord):
            raise UpdateError("the payload is missing.")
        manifest = Manifest.from_json(str(text))
        chunks = [arrays.pop(key).data for key in sorted(arrays)]
        payloads.append(Payload(manifest, chunks))
    if not payloads:
        return message, None
    return message, payloads[0].with_beside(*payloads[1:])


def _all(payload: Payload | None) -> tuple[Payload, ...]:
    return () if payload is None else (payload, *payload.beside)
