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
from zk0d.config.run import DownlinkName, RunSettings
from zk0d.federation.answers import Accepted
from zk0d.federation.body import write_body
from zk0d.federation.depot import Depot
from zk0d.federation.messages import Query
from zk0d.federation.model import GlobalModel
from zk0d.federation.normalization import Normalization
from zk0d.federation.spool import Spool
from zk0d.federation.update import Payload
from zk0d.record.journal import WEIGHTS, Journal

TENSORS, VALUES = 24, 300_000
WHOLE = TENSORS * VALUES * 4


class Bench:
    """A model of 29 MB and two nodes' updates to it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
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
            for n in range(TENSORS)
        }

    def accepted(self) -> list[Accepted]:
        updates = [self.spool.take(n, Payload.of(self.some(0.01), "delta", "int8")) for n in "ab"]
        figures = SimpleNamespace(figures=SimpleNamespace(samples=10))
        return [cast(Accepted, SimpleNamespace(update=each, reply=figures)) for each in updates]

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
    bench = Bench(tmp_path, **{"downlink-codec": codec})
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
