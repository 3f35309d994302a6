"""Messages in Flower's terms: a text record, and payloads as sequences of byte Arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import TypeAdapter, ValidationError

from zk0d.errors import Zk0dError
from zk0d.federation.messages import Message, Piece, Refusal, Route
from zk0d.federation.update import Manifest, Payload, UpdateError

_KIND, _BODY, _MANIFEST, _PIECES, _ROUTE = "kind", "body", "manifest", "pieces", "route"
#: The payload's record, and by number those beside it. A message has few of them.
_RECORDS = ("payload", "beside-1", "beside-2")
# No numpy array by Flower's meaning: no strategy of Flower's can average it by mistake.
_STYPE = "zk0d.bytes"


Pieces = tuple[Piece, ...]
_PIECES_TYPE = TypeAdapter(Pieces)
#: No payload has more.
_MOST_PIECES = 4096


class Refused(Zk0dError):
    """The other end answered with a :class:`Refusal`."""


def to_record(
    message: Message,
    payload: Payload | None = None,
    *,
    away: Sequence[Pieces] = (),
    route: Route | None = None,
) -> RecordDict:
    """A message with its payload and those beside it. Their chunks are not copied.

    Parameters
    ----------
    away
        For each payload, in order, the pieces that hold its bytes; empty for one that goes with the
        message.
    route
        How the other end fetches and sends payloads.
    """
    header = {_KIND: type(message).__name__, _BODY: message.model_dump_json()}
    if route is not None:
        header[_ROUTE] = route.model_dump_json()
    record = RecordDict()
    payloads = _all(payload)
    for name, each, pieces in zip(_RECORDS, payloads, away or [()] * len(payloads), strict=False):
        header[f"{_MANIFEST}/{name}"] = each.manifest.to_json()
        if pieces:
            header[f"{_PIECES}/{name}"] = _PIECES_TYPE.dump_json(pieces).decode()
            continue
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


def route_of(record: RecordDict) -> Route | None:
    """How payloads of this message's answer may travel; ``None`` if only with it.

    Raises
    ------
    UpdateError
        If it cannot be read.
    """
    header = record.get("message")
    text = header.get(_ROUTE) if isinstance(header, ConfigRecord) else None
    try:
        return None if text is None else Route.model_validate_json(str(text))
    except ValueError:
        raise UpdateError("the message's route cannot be read.") from None


def from_record[M: Message](
    record: RecordDict,
    expected: type[M],
    fetch: Callable[[Manifest, Pieces], Payload] | None = None,
) -> tuple[M, Payload | None]:
    """Read a message of the expected kind and its payload, which is taken out of ``record``.

    Parameters
    ----------
    fetch
        Gives the payload whose bytes are in these pieces.

    Raises
    ------
    Refused
        If the other end refused.
    UpdateError
        If it is no message of that kind and protocol.
    """
    message, header = message_in(record, expected), record["message"]
    payloads = []
    for name in _RECORDS:
        text = header.get(f"{_MANIFEST}/{name}")
        if text is None:
            break
        manifest = Manifest.from_json(str(text))
        away = header.get(f"{_PIECES}/{name}")
        if away is not None and fetch is not None:
            payloads.append(fetch(manifest, _pieces(str(away), manifest)))
            continue
        arrays = record.pop(name, None)
        if not isinstance(arrays, ArrayRecord):
            raise UpdateError("the payload is missing.")
        chunks = [arrays.pop(key).data for key in sorted(arrays)]
        payloads.append(Payload(manifest, chunks))
    if not payloads:
        return message, None
    return message, payloads[0].with_beside(*payloads[1:])


def message_in[M: Message](record: RecordDict, expected: type[M]) -> M:
    """Read a message of the expected kind, and leave its payload; raises as :func:`from_record`."""
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
        return expected.model_validate_json(body)
    except ValueError:
        raise UpdateError(
            f"a {expected.__name__} message was expected and cannot be read; the two ends run"
            " different versions of zk0d.",
            reason="protocol_mismatch",
        ) from None


def _pieces(text: str, manifest: Manifest) -> Pieces:
    try:
        pieces = _PIECES_TYPE.validate_json(text)
    except ValidationError:
        raise UpdateError("the list of the payload's pieces cannot be read.") from None
    if len(pieces) > _MOST_PIECES or sum(piece.size for piece in pieces) != manifest.size:
        raise UpdateError("the payload's pieces are not as long as its tensors.")
    return pieces


def _all(payload: Payload | None) -> tuple[Payload, ...]:
    return () if payload is None else (payload, *payload.beside)
