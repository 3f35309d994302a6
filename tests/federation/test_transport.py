"""Payloads beside messages: what each end makes of them, and what is left of them."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from tests.federation.fakes import FakeEvaluator, FakeGrid, FakeNode, refuse
from tests.processes import run
from tests.record.lines import read_lines
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ServerSettings, TransferSettings
from zk0d.config.run import run_settings
from zk0d.daemon.line import LineBook
from zk0d.errors import Zk0dError
from zk0d.federation.capability import OPEN_ROUND, Capability, Denied, OpenRounds
from zk0d.federation.depot import Depot
from zk0d.federation.envelope import from_record, route_of, to_record
from zk0d.federation.line import Line
from zk0d.federation.messages import Piece, Refusal, Route, Train, TrainReply
from zk0d.federation.run import Run
from zk0d.federation.spool import Spool, SpoolReader
from zk0d.federation.streams import cut
from zk0d.federation.transport import BesideMessages, NodeEnd
from zk0d.federation.update import Payload, Streamed, UpdateError
from zk0d.learner.held import HeldWeights
from zk0d.record.journal import Journal


class FakeCarrier:
    """Stands for HTTP: it reads and writes the coordinator's folder."""

    def __init__(self, settings: TransferSettings, piece_bytes: int) -> None:
        self.depot = Depot(settings)
        self._piece_bytes = piece_bytes
        self.downloads = 0

    def download(self, piece: Piece, route: Route) -> Iterator[bytes]:
        assert route.down
        self.downloads += 1
        data = self.depot.weights("1", piece.sha256).read_bytes()
        assert len(data) == piece.size
        yield from cut(iter([data]), 7)

    def upload(self, source: Iterator[bytes], route: Route) -> tuple[Piece, ...]:
        assert route.up
        pieces = []
        for block in cut(source, self._piece_bytes):
            name = hashlib.sha256(block).hexdigest()
            with self.depot.writing(route.ticket, name) as file:
                file.write(block)
            pieces.append(Piece(sha256=name, size=len(block)))
        return tuple(pieces)

    def close(self) -> None: ...


class BesideNode(FakeNode):
    """A node whose update comes in pieces; ``change`` alters what it says of them."""

    change: Any = staticmethod(lambda pieces, route: pieces)
    carrier: FakeCarrier
    away: tuple[int, ...] = ()  #: rounds in which it refuses before anything moves
    dies = False  #: once, before it answers
    line: Line | None = None

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self.held: list[int] = []  #: pieces that were there when a round began
        self.weights = HeldWeights()
        self.came: list[str] = []  #: how each round's weights came
        self.routes: list[Route] = []

    def answer_train(self, task: Train, payload: Payload) -> tuple[RecordDict | None, float]:
        raise NotImplementedError

    def answer(self, record: RecordDict) -> tuple[RecordDict | None, float]:
        end = NodeEnd(lambda line: self.carrier, self.line)  # type: ignore[arg-type,return-value]
        route = route_of(record)
        if _task_of(record).round in self.away:
            return refuse("dropped")()
        try:
            task, payload = end.task(record, lambda: self.weights.sha256)
        except Zk0dError as error:
            refusal = Refusal(reason=error.reason, message=error.message)
            return to_record(refusal), self.seconds
        assert payload is not None
        self.trained.append(task)
        came, weights = self.weights.take(task, payload)
        self.came.append(came)
        assert isinstance(payload, Streamed) == (came != "held")
        weights = weights.with_beside(*payload.beside)
        reply, update = from_record(self.update(task, weights, weights=came), TrainReply)
        assert update is not None
        assert route is not None
        self.routes.append(route)
        self.held.append(len(self.carrier.depot.held(route.ticket)))
        answer = end.answer(reply, update)
        if self.dies:
            self.dies = False
            return refuse("flower_error")()
        header: Any = answer["message"]
        key = "pieces/payload"
        header[key] = json.dumps(self.change(json.loads(str(header[key])), route))
        return answer, self.seconds


class BesideGrid(FakeGrid):
    """Hands a train message over as it is."""

    def push_messages(self, messages: Any) -> list[str]:
        for message in messages:
            node = self.nodes[message.metadata.dst_node_id]
            if message.metadata.message_type == "train":
                record = message.content
                node.train = lambda n, *_, record=record: n.answer(record)
                node.answer_train = lambda *_, n=node: n.train(n)  # type: ignore[method-assign]
                inner = to_record(_task_of(record), Payload.of({}, "weights"))
                message.content = inner
        return super().push_messages(messages)


def _task_of(record: RecordDict) -> Train:
    return from_record(record, Train, lambda manifest, pieces: Payload(manifest, []))[0]


class World:
    """A run whose payloads lie beside its messages."""

    def __init__(
        self,
        folder: Path,
        nodes: list[BesideNode],
        *,
        mirrors: Any = (),
        message_kib: Any = 0,
        **settings: Any,
    ) -> None:
        transfer = {"message-kib": message_kib, "mirrors": mirrors}
        self.server = ServerSettings.parse(
            {"state": str(folder), "transfer": transfer}, where="test"
        )
        self.transfers = self.server.transfers
        self.carrier = FakeCarrier(self.transfers, 11)
        for node in nodes:
            node.carrier = self.carrier
        self.grid = BesideGrid(nodes)
        self.journal = Journal(self.server.runs / "1", "1")
        self.settings = run_settings(
            {
                "policy": "act",
                "model-name": "tiny",
                "num-server-rounds": 2,
                "min-fit-clients": 1,
                "max-update-ratio": 0.0,
                **settings,
            }
        )
        self.transport = BesideMessages(self.transfers, self.journal.folder, "1", self.grid.clock)

    def run(self) -> list[dict[str, Any]]:
        Run(
            self.grid,
            self.settings,
            self.server,
            self.journal,
            FakeEvaluator(),
            transport=self.transport,
            clock=self.grid.clock,
            sleep=self.grid.sleep,
        ).run()
        return list(read_lines(self.journal.folder))

    def left(self) -> list[Path]:
        """Bytes that outlived the run."""
        assert self.transfers.folder is not None
        files = [path for path in self.transfers.folder.rglob("*") if path.is_file()]
        return files + list(self.journal.folder.glob("spool/*"))


@pytest.mark.parametrize("drift", ["none", "control-variates"])
def test_a_run_by_files_leaves_none(tmp_path: Path, drift: str) -> None:
    nodes = [BesideNode("a", step=1.0), BesideNode("b", step=3.0)]
    world = World(tmp_path, nodes, **{"drift-correction": drift, "server-momentum": 0.0})
    lines = world.run()
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert [line["round"] for line in committed] == [0, 1, 2]
    assert all(line["bytes_up"] for line in committed[1:])
    assert committed[1]["mean_update_norm"] == pytest.approx(2.0 * np.sqrt(10), rel=0.01)
    assert not world.left()
    assert not (world.journal.folder / OPEN_ROUND).exists()


def test_a_late_nodes_way_stays_open_and_only_its_own(tmp_path: Path) -> None:
    """Its pieces and its capability outlive its round; those of nodes that answered do not."""

    class Looks(BesideNode):
        def answer(self, record: RecordDict) -> tuple[RecordDict | None, float]:
            number = _task_of(record).round
            if number > 1:
                look(number)
            return super().answer(record)

    nodes = [Looks("a"), BesideNode("b"), BesideNode("late", step=2.0, seconds=103.0)]
    for node in nodes:
        node.query = lambda node, task: (to_record(node.query_reply()), 1.0)
    how = {"min-fit-clients": 2, "round-deadline": 100.0, "drift-correction": "none"}
    world = World(tmp_path, nodes, **how, **{"num-server-rounds": 3, "server-momentum": 0.0})
    opened = OpenRounds(world.server.runs, world.grid.clock)
    seen: dict[int, dict[str, bool]] = {}

    def look(number: int) -> None:
        def may(node: BesideNode, way: str) -> bool:
            try:
                opened.check(getattr(node.routes[0], way), way)  # type: ignore[arg-type]
            except Denied:
                return False
            return True

        ticket = nodes[2].routes[0].ticket
        seen[number] = {f"{n.name} {way}": may(n, way) for n in nodes for way in ("up", "down")}
        seen[number]["pieces"] = bool(world.transport._depot.held(ticket))

    lines = world.run()
    ways = [f"{name} {way}" for name in ("a", "b", "late") for way in ("up", "down")]
    assert seen[2] == {way: "late" in way for way in ways} | {"pieces": True}
    assert seen[3] == dict.fromkeys([*ways, "pieces"], False)
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert [(n["node"], n["staleness"]) for n in committed[2]["nodes"]][-1] == ("late", 1)
    assert committed[2]["bytes_down"] == 2 * 20, "it had fetched its weights before"
    assert not world.left()
    assert not (world.journal.folder / OPEN_ROUND).exists()


def test_a_rounds_mirrors_have_one_capability_for_all_nodes(tmp_path: Path) -> None:
    nodes = [BesideNode("a", step=1.0), BesideNode("b", step=3.0)]
    urls = ("http://one.example", "https://two.example/zk0d")
    World(tmp_path, nodes, mirrors=urls).run()
    for one, other in zip(nodes[0].routes, nodes[1].routes, strict=True):
        assert [mirror.url for mirror in one.mirrors] == list(urls)
        assert one.mirrors == other.mirrors, "or each node gave it a budget"
        assert one.down != other.down
        shown = [one.down, other.down, *(mirror.down for mirror in one.mirrors)]
        held = [
            Capability.model_validate_json(base64.urlsafe_b64decode(token.partition(".")[0]))
            for token in shown
        ]
        assert [each.is_mirrors for each in held] == [False, False, True, True]
        assert len({each.key for each in held}) == 4
        assert {each.direction for each in held} == {"down"}
    assert nodes[0].routes[0].mirrors != nodes[0].routes[1].mirrors, "it ends with the round"


def test_a_round_that_a_line_does_not_hold_moves_no_byte(tmp_path: Path) -> None:
    """The message names what goes down, and what the update will have."""
    node = BesideNode("b")
    fresh: list[tuple[int, int]] = []

    class Told(Line):
        def begin_round(self, run: str, *, down: int, up: int, seconds: float) -> None:
            fresh.append((down, up))
            if len(fresh) == 1:
                LineBook(tmp_path / "line").add(up=2_000_000)
                super().begin_round(run, down=down, up=up, seconds=seconds)

    node.line = Told(LimitsSettings(bytes_per_day=2_000_000), LineBook(tmp_path / "line"))
    world = World(tmp_path / "server", [node], **{"drift-correction": "none"})
    lines = world.run()
    refused = [line for line in lines if line["kind"] == "update.refused"]
    assert [(line["reason"], line["strike"]) for line in refused] == [("line_rests", False)]
    assert "2 MB of the day's 2 MB are spent" in refused[0]["message"]
    assert len(node.trained) == world.carrier.downloads == 2, "none of the refused round's"
    # Ten bf16 weights, and ten int8 differences with their two scales.
    assert fresh == [(20, 18)] * 3
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert {line["bytes_up"] for line in committed[1:]} == {18}


#: A difference to what nodes hold. Ten weights: 20 bytes as bf16, as int8 with two scales 18.
DELTA: dict[str, Any] = {"downlink-codec": "int8-delta", "drift-correction": "none"}


def test_a_node_that_holds_the_last_rounds_weights_gets_a_difference(tmp_path: Path) -> None:
    """Who was away gets all of them, which have the same bits."""
    steady, away = BesideNode("a"), BesideNode("b", step=3.0)
    away.away = (3,)
    asked: list[tuple[int, int]] = []

    class Told(Line):
        def begin_round(self, run: str, *, down: int, up: int, seconds: float) -> None:
            asked.append((down, up))

    steady.line = Told(LimitsSettings())
    world = World(tmp_path, [steady, away], **DELTA, **{"num-server-rounds": 4})
    lines = world.run()
    assert steady.came == ["whole", "difference", "difference", "difference"]
    assert asked == [(20, 18)] + [(18, 18)] * 3, "the line is asked for what comes"
    assert away.came == ["whole", "difference", "whole"]
    assert world.carrier.downloads == 7, "nobody fetches what it does not need"
    assert steady.weights.sha256 == away.weights.sha256 == steady.trained[-1].base
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert [node["weights"] for node in committed[4]["nodes"]] == ["difference", "whole"]
    assert [node["bytes_down"] for node in committed[4]["nodes"]] == [18, 20]
    # Of a node that did not answer nobody knows how far it came.
    assert [line["bytes_down"] for line in committed] == [0, 40, 36, 18 + 20, 18 + 20]
    for route in (*steady.routes, *away.routes):
        token = base64.urlsafe_b64decode(route.down.partition(".")[0])
        assert Capability.model_validate_json(token).budget == 4 * 20, "of all or the difference"
    assert not world.left()


def test_a_round_that_is_sent_again_brings_no_weights_that_are_held(tmp_path: Path) -> None:
    node = BesideNode("a")
    node.dies = True
    world = World(tmp_path, [node], **DELTA)
    lines = world.run()
    assert node.came == ["whole", "held", "difference"]
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert [line["bytes_down"] for line in committed] == [0, 0, 18]
    assert world.carrier.downloads == 2


def test_the_whole_weights_come_in_the_same_round_if_the_difference_is_of_no_use(
    tmp_path: Path,
) -> None:
    """With what is beside them, which comes once more, too."""

    class Forgets(BesideNode):
        def answer(self, record: RecordDict) -> tuple[RecordDict | None, float]:
            end = NodeEnd(lambda line: self.carrier)  # type: ignore[arg-type,return-value]
            task, payload = end.task(record, lambda: self.weights.sha256)
            assert payload is not None
            if task.round == 2:
                assert payload.manifest.kind == "delta"
                before = [list(each.stream()) for each in (payload, *payload.beside)]
                payload = end.whole()
                assert list(payload.beside[0].chunks) == [b"".join(before[1])]
            came, weights = self.weights.take(task, payload)
            self.came.append(came)
            own = weights.with_beside(*payload.beside)
            reply, update = from_record(self.update(task, own, weights=came), TrainReply)
            return end.answer(reply, update), self.seconds

    node = Forgets("a")
    world = World(tmp_path, [node], **{**DELTA, "drift-correction": "control-variates"})
    world.run()
    assert node.came == ["whole", "whole"]


def test_weights_inside_the_message_come_whole(tmp_path: Path) -> None:
    node = FakeNode("a")
    world = World(tmp_path, [], message_kib=256, **DELTA)
    world.grid = FakeGrid([node])
    lines = world.run()
    assert [(task.hold, task.difference_to) for task in node.trained] == [(False, "")] * 2
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert [line["bytes_down"] for line in committed] == [0, 20, 20]


def _missing(pieces: Any, route: Route) -> Any:
    del route
    return [{**pieces[0], "sha256": "0" * 64}, *pieces[1:]]


def _shorter(pieces: Any, route: Route) -> Any:
    del route
    return pieces[:-1]


def _swapped(pieces: Any, route: Route) -> Any:
    del route
    return [pieces[1], pieces[0], *pieces[2:]]


def _elsewhere(pieces: Any, route: Route) -> Any:
    del route
    return [{**pieces[0], "sha256": "../" * 21 + "x"}, *pieces[1:]]


@pytest.mark.parametrize("change", [_missing, _shorter, _swapped, _elsewhere])
def test_an_answer_whose_pieces_are_not_its_update_is_a_strike(tmp_path: Path, change: Any) -> None:
    bad = BesideNode("bad")
    bad.change = change
    world = World(tmp_path, [BesideNode("good"), bad])
    lines = world.run()
    refused = [line for line in lines if line["kind"] == "update.refused"]
    assert {(line["node"], line["reason"], line["strike"]) for line in refused} == {
        ("bad", "manifest_mismatch", True)
    }
    assert len(bad.notices) == len(refused) == 2, "it is told"
    assert not world.left(), "and its bytes are gone"


def test_a_node_cannot_name_the_pieces_of_another(tmp_path: Path) -> None:
    honest, thief = BesideNode("honest", seconds=9.0), BesideNode("thief", seconds=10.0)
    told: list[Any] = []

    def note(pieces: Any, route: Route) -> Any:
        del route
        told[:] = pieces
        return pieces

    honest.change = note
    # Its own bytes are others, so that only the honest node's file has the name.
    thief.step = 5.0
    thief.change = lambda pieces, route: told or pieces
    world = World(tmp_path, [honest, thief], **{"num-server-rounds": 1})
    lines = world.run()
    refused = [line for line in lines if line["kind"] == "update.refused"]
    assert [line["node"] for line in refused] == ["thief"]
    assert "has not arrived" in refused[0]["message"]


def test_a_round_that_is_sent_again_finds_what_came(tmp_path: Path) -> None:
    """Its first ClientApp died after it had sent all pieces, and before it answered."""
    node = BesideNode("a")
    node.dies = True
    world = World(tmp_path, [node])
    lines = world.run()
    assert [line["kind"] for line in lines].count("round.failed") == 1
    assert node.held[0] == 0
    assert node.held[1] > 0, "of the same round, so none of it has to come again"
    assert node.held[2] == 0, "of the next round"
    assert not world.left()


def test_a_spooled_update_is_read_across_its_files(tmp_path: Path) -> None:
    values = {
        "a": np.arange(300_000, dtype=np.float32),
        "b": np.linspace(-1, 1, 70_001, dtype=np.float32),
    }
    payload = Payload.of(values, "delta", "int8")
    pieces = list(cut(payload.stream(), 100_003))
    files = []
    for number, data in enumerate(pieces):
        files.append(tmp_path / f"piece{number}")
        files[-1].write_bytes(data)
    spool = Spool(tmp_path / "spool")
    update = spool.take("one", Payload(payload.manifest, list(pieces), files=tuple(files)))
    assert update.files == tuple(files), "not copied"
    whole = {name: array.reshape(-1) for name, array in payload.decode()}
    with SpoolReader(update) as reader:
        for name, array in whole.items():
            for start in range(0, array.size, 131072):
                out = np.empty(min(131072, array.size - start), np.float32)
                reader.read(name, start, out)
                assert np.array_equal(out, array[start : start + out.size])
    spool.clear()
    assert not any(path.exists() for path in files)


def test_an_altered_piece_is_refused_and_removed(tmp_path: Path) -> None:
    payload = Payload.of({"a": np.arange(1000, dtype=np.float32)}, "delta")
    path = tmp_path / "piece"
    data = bytearray(b"".join(payload.stream()))
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UpdateError, match="tensor 'a': its content is not what was sent"):
        Spool(tmp_path / "spool").take("x", Payload(payload.manifest, [bytes(data)], files=(path,)))
    assert not path.exists()


@pytest.mark.slow
def test_what_a_client_app_is_forked_from_has_nothing_of_a_transfer() -> None:
    """No connection, no thread and no carrier comes with the imports."""
    code = (
        "import gc, os, threading\n"
        "import zk0d.federation.client_app\n"
        "from zk0d.federation.carrier import Carrier\n"
        "import httpx\n"
        "kinds = (Carrier, httpx.Client)\n"
        "made = [each for each in gc.get_objects() if isinstance(each, kinds)]\n"
        "links = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')\n"
        "    if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "open_ = [each for each in links if each.startswith('socket:')]\n"
        "print(made, open_, threading.active_count())\n"
    )
    done = run([sys.executable, "-c", code], text=True, check=True)
    assert done.stdout.strip() == "[] [] 1"
