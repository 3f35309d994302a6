"""A round of a trivial model over real Flower processes, ours against Flower's own.

Both run on one SuperLink (TLS, node keys, database on disk), two nodes each. Ours: the round loop,
ClientApp and SuperNode of zk0d with a learner that trains nothing. Peer: Flower's FedAvg with stock
SuperNodes and SuperExecs at their default intervals.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from tests.bench.lab import fake_federation, run_ours, run_stock, stock_nodes
from tests.bench.table import show, spread

ROUNDS = 8
NODES = 2
PARAMETERS = 1000


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        fake_federation(Path(folder) / "lab", NODES, PARAMETERS) as running,
    ):
        committed = [
            line["time"]
            for line in run_ours(running, ROUNDS, NODES)
            if line["kind"] == "round.committed"
        ]
        ours = [end - begin for begin, end in pairwise(committed)][1:]
        with stock_nodes(running):
            ends = run_stock(running, ROUNDS, NODES, PARAMETERS)
        theirs = [end - begin for begin, end in pairwise(ends)][1:]
    ratios = [b / a for a, b in zip(ours, theirs, strict=False)]
    show(
        f"a round of a trivial model, {NODES} nodes, {ROUNDS} rounds (the first left out)",
        ("variant", "seconds per round", "against Flower"),
        [
            ("Flower's FedAvg and nodes", spread(theirs), "1.00 x"),
            ("zk0d", spread(ours), f"{spread(ratios)} x faster"),
        ],
    )
