"""Which way weights and updates travel: inside Flower's messages, or as files beside them.

Flower carries every 4 MiB of a message as a request, a protobuf copy, a hash and several
transactions on each of four hops. So what is large lies in files that nginx carries, and the
message names it. Rounds, cohort and ClientApp do not know which way it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from flwr.app import RecordDict

from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import CA_VARIABLE, COORDINATOR_VARIABLE, TransferSettings
from zk0d.errors import UnavailableError
from zk0d.federation.capability import MIRROR, Capability, OpenRound, RoundFile, ticket
from zk0d.federation.carrier import Carrier
from zk0d.federation.codec import encoded_size
from zk0d.federation.depot import Depot, in_files
from zk0d.federation.downlink import DELTA_CODEC
from zk0d.federation.envelope import Pieces, from_record, route_of, to_record
from zk0d.federation.line import Line
from zk0d.federation.messages import (
    Measure,
    Message,
    Mirror,
    Piece,
    Route,
    Train,
    TrainReply,
    WithWeights,
)
from zk0d.federation.update import Manifest, Payload, Streamed

#: A capability ends so long after its round's deadline.
GRACE_SECONDS = 60.0
#: A node may fetch a file so many times: transfers are cut and begun again.
FETCHES = 4


#: Nodes that are still at work on a round before, or on the round itself once it is closed: the
#: round by the node's key.
Late = Mapping[str, int]
_NONE: Late = MappingProxyType({})


class Transport(Protocol):
    """The coordinator's end. A round is begun, closed and cleared, in this order.

    ``late`` names the nodes whose updates may still come; their way stays open.
    """

    def begin(
        self, task: WithWeights, payload: Payload, keys: Collection[str], late: Late = _NONE
    ) -> None:
        """A round's weights, and what is beside them, for the nodes with these keys."""

    def task(self, task: WithWeights, key: str) -> RecordDict:
        """The round's message to a node."""

    def answer(
        self, record: RecordDict, key: str, number: int
    ) -> tuple[TrainReply, Payload | None]:
        """A node's answer to round ``number``.

        Raises as :func:`~zk0d.federation.envelope.from_record` does.
        """

    def close(self, late: Late = _NONE) -> None:
        """No other answer is waited for any more."""

    def clear(self, late: Late = _NONE) -> None:
        """No other answer's bytes are needed any more."""


class InMessages:
    """Everything travels inside the messages, as in a simulation."""

    def __init__(self) -> None:
        self._payload: Payload | None = None

    def begin(
        self, task: WithWeights, payload: Payload, keys: Collection[str], late: Late = _NONE
    ) -> None:
        del task, keys, late
        self._payload = payload

    def task(self, task: WithWeights, key: str) -> RecordDict:
        del key
        return to_record(task, self._payload)

    def answer(
        self, record: RecordDict, key: str, number: int
    ) -> tuple[TrainReply, Payload | None]:
        del key, number
        return from_record(record, TrainReply)

    def close(self, late: Late = _NONE) -> None:
        del late
        self._payload = None

    def clear(self, late: Late = _NONE) -> None: ...


class BesideMessages:
    """What is large lies in files beside the messages.

    Parameters
    ----------
    folder
        The run's own, which ``zk0d superlink`` reads.
    run
        The run's name, in every capability.
    clock
        That of the capabilities; replaced in tests.
    """

    def __init__(
        self,
        settings: TransferSettings,
        folder: Path,
        run: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inside = settings.message_kib * 1024
        self._mirrors = settings.mirrors
        self._round_file = RoundFile(folder)
        self._run = run
        self._clock = clock
        self._depot = Depot(settings)
        self._depot.make()
        self._depot.forget(run)
        self._open: OpenRound | None = None
        self._files: dict[int, dict[str, int]] = {}  #: lengths by SHA-256, of each round
        self._tickets: set[str] = set()

    def begin(
        self, task: WithWeights, payload: Payload, keys: Collection[str], late: Late = _NONE
    ) -> None:
        if payload.manifest.size <= self._inside:
            # They are in the message in any case.
            whole = (each for each in payload.beside if each.manifest.kind != "delta")
            payload = payload.with_beside(*whole)
        payloads = (payload, *payload.beside)
        self._away: list[Pieces] = [
            (self._depot.publish(self._run, each),) if self._is_away(each) else ()
            for each in payloads
        ]
        # What lies in a file need not be in memory.
        first, *beside = (
            Payload(each.manifest, []) if away else each
            for each, away in zip(payloads, self._away, strict=True)
        )
        self._payload = first.with_beside(*beside)
        number = task.round
        files = {piece.sha256: piece.size for pieces in self._away for piece in pieces}
        # One that is sent again may have other files beside the same weights.
        self._files[number] = (self._files.get(number, {}) if late else {}) | files
        self._withdraw({number, *late.values()})
        # Who fetches the difference does not fetch the whole, which is larger.
        self._down = sum(
            each.manifest.size
            for each, away in zip(payloads, self._away, strict=True)
            if away and each.manifest.kind != "delta"
        )
        self._update = _update_bytes(task, payload.manifest)
        # A node's late answer may wait, and the node have a part in this round as well.
        tickets = [*self._tickets_of(dict.fromkeys(keys, number)), *self._tickets_of(late)]
        self._tickets.update(tickets)
        # The same for all nodes: so is what a mirror shows, or each had a budget for it.
        self._until = self._clock() + task.deadline_seconds + GRACE_SECONDS
        self._open = self._round_file.open(number, self._shown, tickets, late=bool(late))

    def task(self, task: WithWeights, key: str) -> RecordDict:
        assert self._open is not None
        until = self._until
        grant = partial(Capability, run=self._run, round=task.round, key=key, until=until)
        down = grant(direction="down", budget=FETCHES * self._down)
        up = grant(direction="up", budget=self._update)
        # A mirror has nodes that want the difference, and nodes that want the whole.
        files = self._files[task.round]
        every = grant(direction="down", budget=FETCHES * sum(files.values()))
        mirrors = [
            Mirror(url=url, down=self._open.sign(every.model_copy(update={"key": f"{MIRROR}{n}"})))
            for n, url in enumerate(self._mirrors)
        ]
        route = Route(
            mirrors=tuple(mirrors) if files else (),
            down=self._open.sign(down) if files else "",
            up=self._open.sign(up) if self._update > self._inside else "",
            ticket=up.ticket,
            inside=self._inside,
        )
        if not self._away[0]:
            task = task.model_copy(update={"hold": False, "difference_to": ""})
        return to_record(task, self._payload, away=self._away, route=route)

    def answer(
        self, record: RecordDict, key: str, number: int
    ) -> tuple[TrainReply, Payload | None]:
        of = ticket(self._run, number, key)

        def fetch(manifest: Manifest, pieces: Pieces) -> Payload:
            return in_files(manifest, self._depot.take(self._run, of, pieces), pieces)

        return from_record(record, TrainReply, fetch)

    def close(self, late: Late = _NONE) -> None:
        self._withdraw(set(late.values()))
        if late and self._open is not None:
            number, tickets = self._open.round, self._tickets_of(late)
            self._open = self._round_file.open(number, self._shown, tickets, late=True)
        else:
            self._open = None
            self._round_file.close()

    def clear(self, late: Late = _NONE) -> None:
        kept = set(self._tickets_of(late))
        self._depot.clear(self._run, self._tickets - kept)
        self._tickets = kept

    def _tickets_of(self, rounds: Late) -> list[str]:
        return [ticket(self._run, number, key) for key, number in sorted(rounds.items())]

    @property
    def _shown(self) -> dict[str, int]:
        """The files that nodes may fetch."""
        return {sha256: size for files in self._files.values() for sha256, size in files.items()}

    def _is_away(self, payload: Payload) -> bool:
        """Whether a payload lies in a file; a difference does, because not all nodes want it."""
        return payload.manifest.size > self._inside or payload.manifest.kind == "delta"

    def _withdraw(self, keep: Collection[int]) -> None:
        """Remove the files of every other round."""
        before = self._shown
        self._files = {number: files for number, files in self._files.items() if number in keep}
        for sha256 in before.keys() - self._shown.keys():
            self._depot.withdraw(self._run, sha256)


class NodeEnd:
    """A node's end, for one round's message.

    Parameters
    ----------
    carrier
        Makes the way to the coordinator's files over a line, if it is needed.
    line
        What the owner lends; by default all of it, and nothing is counted.
    """

    def __init__(self, carrier: Callable[[Line], Carrier], line: Line | None = None) -> None:
        self._make = carrier
        self._line = line or Line(LimitsSettings())
        self._carrier: Carrier | None = None
        self._route: Route | None = None
        self._task: WithWeights
        self._offered: Payload  #: all that the message names
        self._pieces: dict[str, Pieces] = {}  #: by their manifest's hash

    def task(
        self, record: RecordDict, held: Callable[[], str] = lambda: ""
    ) -> tuple[Train, Payload | None]:
        """The round's message; weights that lie elsewhere come while they are read.

        Parameters
        ----------
        held
            Manifest hash of the weights that the learner holds. A difference to them is taken in
            place of the whole, and a payload without tensors if they are the round's own.

        Raises
        ------
        Zk0dError
            If the owner's line does not hold the round, before any of those has moved.
        """
        self._route = route_of(record)
        task, offered = from_record(record, Train, self._fetch)
        self._task = task
        if offered is None:
            return task, None
        self._offered = offered
        return task, self._begin(offered, _needed(task, offered, held))

    def measure(self, record: RecordDict) -> tuple[Measure, Payload | None]:
        """The same of a message that only asks for an evaluation."""
        self._route = route_of(record)
        task, offered = from_record(record, Measure, self._fetch)
        self._task = task
        if offered is None:
            return task, None
        self._offered = offered
        return task, self._begin(offered, offered)

    def whole(self) -> Payload:
        """The whole weights, for a learner that could not use what :meth:`task` gave.

        Raises
        ------
        Zk0dError
            As :meth:`task`.
        """
        offered = self._once_more()
        return self._begin(offered, offered)

    def again(self, held: Callable[[], str] = lambda: "") -> Payload:
        """The same as :meth:`task` gives, for a learner that was lost with what it had taken.

        Raises
        ------
        Zk0dError
            As :meth:`task`.
        """
        offered = self._once_more()
        return self._begin(offered, _needed(self._task, offered, held))

    def _once_more(self) -> Payload:
        """All that the message names; what was given on comes once more."""
        first, *beside = (
            self._fetch(each.manifest, self._pieces[each.manifest.sha256])
            if isinstance(each, Streamed)
            else each
            for each in (self._offered, *self._offered.beside)
        )
        return first.with_beside(*beside)

    def _begin(self, offered: Payload, weights: Payload) -> Payload:
        """What comes, with ``weights`` as these are needed; the line has room for it."""
        beside = (each for each in offered.beside if each.manifest.kind != "delta")
        payload = weights.with_beside(*beside)
        down = {True: 0, False: 0}  #: by whether they are still to come
        for each in (payload, *payload.beside):
            down[isinstance(each, Streamed)] += each.manifest.size
        self._line.count(down=down[False])
        task, up = self._task, _update_bytes(self._task, offered.manifest)
        self._line.begin_round(task.run, down=down[True], up=up, seconds=task.deadline_seconds)
        return payload

    def answer(self, reply: Message, update: Payload | None) -> RecordDict:
        """The answer's message; a large update has been sent then."""
        route = self._route
        if update is None or route is None or not route.up:
            if update is not None:
                self._line.count(up=sum(e.manifest.size for e in (update, *update.beside)))
            return to_record(reply, update)
        self._line.begin_upload()
        # One after the other: they may be one stream.
        away = [self._send(each, route) for each in (update, *update.beside)]
        return to_record(reply, update, away=away)

    def close(self) -> None:
        if self._carrier is not None:
            self._carrier.close()
        self._line.close()

    def _fetch(self, manifest: Manifest, pieces: Pieces) -> Payload:
        self._pieces[manifest.sha256] = pieces

        def stream() -> Iterator[bytes]:
            assert self._route is not None
            for piece in pieces:
                yield from self._way().download(piece, self._route)

        return Streamed(manifest, stream())

    def _send(self, payload: Payload, route: Route) -> tuple[Piece, ...]:
        return self._way().upload(payload.stream(), route)

    def _way(self) -> Carrier:
        if self._carrier is None:
            self._carrier = self._make(self._line)
        return self._carrier


def carrier_of(
    line: Line,
    environment: os._Environ[str] | dict[str, str] = os.environ,
    *,
    authorities: str = "",
) -> Carrier:
    """The way that the SuperExec told its ClientApps.

    Parameters
    ----------
    authorities
        By which the SuperNode knows the coordinator (PEM), if not by those that the SuperExec told.

    Raises
    ------
    UnavailableError
        If it told none.
    """
    url, ca = environment.get(COORDINATOR_VARIABLE), environment.get(CA_VARIABLE)
    if not url:
        raise UnavailableError("the ClientApp was not told where the coordinator's files are.")
    return Carrier(url, Path(ca) if ca else None, authorities=authorities, line=line)


def _needed(task: WithWeights, offered: Payload, held: Callable[[], str]) -> Payload:
    """What a learner that holds these weights needs of the round's."""
    difference, own = offered.companion("delta"), held() if task.hold else ""
    if own and own == task.base:
        return Payload.of({}, "delta", DELTA_CODEC)
    if own and own == task.difference_to and difference is not None:
        return difference
    return offered


def _update_bytes(task: WithWeights, model: Manifest) -> int:
    """Length of a node's update, with its variate if there is one; an evaluation has none."""
    if not isinstance(task, Train):
        return 0
    training, counts = task.training, [entry.count for entry in model.tensors]
    codecs = [training.uplink_codec]
    if training.drift_correction != "none":
        codecs.append(training.variate_codec)
    return sum(encoded_size(codec, count) for codec in codecs for count in counts)
