"""What a round costs the server's memory beside the weights: a few pieces, and no second copy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import numpy as np
import pytest

from tests.federation.fakes import SPEC
from tests.federation.test_aggregate import task
from zk0d.config.machine import TransferSettings
from zk0d.config.run import CodecName, DownlinkName, RuleName, RunSettings
from zk0d.federation.answers import Accepted
from zk0d.federation.body import write_body
from zk0d.federation.codec import PIECE, NotFinite
from zk0d.federation.depot import Depot
from zk0d.federation.messages import Query, TrainReply
from zk0d.federation.model import GlobalModel
from zk0d.federation.nodes import Node
from zk0d.federation.normalization import Normalization
from zk0d.federation.spool import Spool, SpooledUpdate, SpoolReader
from zk0d.federation.update import Payload, encoding
from zk0d.record.journal import WEIGHTS, Journal

TENSORS, VALUES = 24, 300_000
WHOLE = TENSORS * VALUES * 4


class Bench:
    """A model, of 29 MB unless fewer tensors are wanted, and nodes' updates to it."""

    def __init__(self, folder: Path, tensors: int = TENSORS, **settings: Any) -> None:
        self.tensors = tensors
        self.random = np.random.default_rng(0)
        self.journal = Journal(folder / "run", "1")
        self.depot = Depot(TransferSettings(folder=folder / "transfer"))
        self.depot.make()
        self.spool = Spool(folder / "spool")
        self.weights = self.some(1.0)
        flat = {"server-momentum": 0.0, "drift-correction": "none"} | settings
        self.model = GlobalModel(
            SPEC,
            cast(Normalization, SimpleNamespace(statistics=None)),
            {name: array.copy() for name, array in self.weights.items()},
            RunSettings.parse(flat, where="this test"),
            self.journal.folder,
        )

    def some(self, scale: float) -> dict[str, np.ndarray]:
        return {
            f"t{n:02}": self.random.standard_normal(VALUES, np.float32) * np.float32(scale)
            for n in range(self.tensors)
        }

    def accepted(self, nodes: str = "ab") -> list[Accepted]:
        """Updates of nodes, which weigh the same."""
        updates = [self.spool.take(n, Payload.of(self.some(0.01), "delta", "int8")) for n in nodes]
        reply = cast(TrainReply, SimpleNamespace(figures=SimpleNamespace(samples=10)))
        node = Node(0, "", "", online=True, activated=0.0)
        return [Accepted(node, 1, 0, reply, each, None, 0, "", 0.0) for each in updates]

    def publish(self) -> None:
        payload = self.model.for_nodes()
        for each in (payload, *payload.beside):
            self.depot.publish("1", each)


@contextmanager
def no_copy(what: str) -> Iterator[None]:
    """Fails if the block takes memory of more than a few pieces."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < WHOLE / 3, f"{what} takes {peak / 1e6:.0f} MB beside {WHOLE / 1e6:.0f} MB"


@pytest.mark.parametrize("codec", get_args(DownlinkName))
def test_no_step_of_a_round_has_a_second_copy_of_the_weights(tmp_path: Path, codec: str) -> None:
    settings: dict[str, Any] = {"downlink-codec": codec}
    bench = Bench(tmp_path, **settings)
    accepted = bench.accepted()
    for number in (1, 2):
        with no_copy("sending"):
            bench.publish()
        with no_copy("adding up"):
            bench.model.advance(accepted, task())
        with no_copy("evaluating"):
            query = Query(run="1", spec=SPEC)
            sent = sum(len(piece) for piece in write_body(query, bench.model.payload()))
            assert sent > WHOLE
        with no_copy("committing"):
            bench.model.commit(bench.journal, number)


def test_weights_come_back_from_disk_to_the_bit(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.model.commit(bench.journal, 0)
    written = (bench.journal.round_folder(0) / WEIGHTS).read_bytes()
    bench.model.advance(bench.accepted(), task())
    bench.model.load(bench.journal, 0)
    for name, array in bench.weights.items():
        assert bench.model.weights[name].tobytes() == array.tobytes()
    bench.model.commit(bench.journal, 1)
    assert (bench.journal.round_folder(1) / WEIGHTS).read_bytes() == written


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_what_is_encoded_while_it_is_read_is_what_was_encoded_at_once(codec: CodecName) -> None:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"a": (PIECE + 4099,), "b": (3, 5), "c": (), "d": (0,)}
    tensors = {n: np.asarray(random.standard_normal(s), np.float32) for n, s in shapes.items()}
    once = Payload.of(tensors, "weights", codec)
    anew = encoding("weights", codec, lambda: sorted(tensors.items()))
    for _ in range(2):
        assert b"".join(anew.stream()) == b"".join(once.chunks)
    assert (anew.manifest, anew.sizes) == (once.manifest, once.sizes)
    assert anew.with_beside(once).chunks == once.chunks
    tensors["b"][1, 1] = np.nan
    with pytest.raises(NotFinite, match="'b'"):
        encoding("weights", codec, lambda: sorted(tensors.items()))


@pytest.mark.parametrize("rule", get_args(RuleName))
@pytest.mark.parametrize(
    "step",
    [
        {},
        {"server-momentum": 0.5, "server-nesterov": False},
        {"server-momentum": 0.9, "server-nesterov": True},
    ],
    ids=["no momentum", "momentum", "nesterov"],
)
def test_rounds_are_those_of_numpy_to_the_bit(
    tmp_path: Path, rule: RuleName, step: dict[str, Any]
) -> None:
    """The whole tensors at once, in plain float32, and what a node of each round receives."""
    settings: dict[str, Any] = {"aggregation": rule, "min-fit-clients": 3} | step
    bench = Bench(tmp_path, 2, **settings)
    expected = {name: array.copy() for name, array in bench.weights.items()}
    velocity = {name: np.zeros_like(array) for name, array in expected.items()}
    momentum = np.float32(step.get("server-momentum", 0.0))
    for number in (1, 2):
        bench.publish()
        sent = b"".join(bench.model.for_nodes().stream())
        assert sent == b"".join(Payload.of(expected, "weights", "bf16").chunks)
        accepted = bench.accepted("abc")
        arrived = [_decoded(each.update) for each in accepted]
        bench.model.advance(accepted, task())
        shares = np.array([10 / task().training.frames] * 3, np.float32)
        for name, array in expected.items():
            stack = np.stack([each[name] for each in arrived])
            if rule == "mean":
                change = (stack * (shares / shares.sum())[:, None]).sum(axis=0)
            else:  # of three, the median is what a trimmed mean leaves
                change = np.sort(stack, axis=0)[1]
            velocity[name] = momentum * velocity[name] + change
            ahead = change + momentum * velocity[name]
            array += ahead if step.get("server-nesterov") else velocity[name]
            assert bench.model.weights[name].tobytes() == array.tobytes()
        bench.model.commit(bench.journal, number)
        # A run that is resumed goes on with the same bits.
        bench.model.load(bench.journal, number)


def _decoded(update: SpooledUpdate) -> dict[str, np.ndarray]:
    found = {}
    with SpoolReader(update) as reader:
        for entry in update.manifest.tensors:
            found[entry.name] = np.empty(entry.count, np.float32)
            for start in range(0, entry.count, PIECE):
                reader.read(entry.name, start, found[entry.name][start : start + PIECE])
    return found
