"""Peak memory of the server by number of nodes, and the SuperLink's database over many rounds.

The payload is 25M float32, without server momentum, which would be one more copy of the weights.
The peer is Flower's FedAvg, which holds all replies.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.lab import (
    PeakMemory,
    database_bytes,
    fake_federation,
    run_ours,
    run_stock,
    stock_nodes,
)
from tests.bench.table import show

PARAMETERS = 25_000_000
ROUNDS = 2
COUNTS = (2, 8, 16)
STOCK_COUNTS = (2, 4)
SERVER_APP, SUPERLINK = "serverapp", "zk0d.flower.superlink"
#: For the database: so many rounds of a payload that does not fit a message.
DATABASE_ROUNDS, DATABASE_VALUES = 50, 1_000_000


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="bench_memory")
    parser.add_argument("--nodes", type=int, nargs="*", default=list(COUNTS))
    parser.add_argument("--peer", type=int, nargs="*", default=list(STOCK_COUNTS))
    parser.add_argument("--values", type=int, default=PARAMETERS)
    parser.add_argument("--database-rounds", type=int, default=DATABASE_ROUNDS, help="0: none")
    given = parser.parse_args(arguments)
    rows: list[tuple[str, ...]] = []
    for nodes in given.nodes:
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_federation(Path(folder) / "lab", nodes, given.values) as running,
            PeakMemory((SERVER_APP, SUPERLINK)) as memory,
        ):
            lines = run_ours(running, ROUNDS, nodes)
        last = [line for line in lines if line["kind"] == "round.committed"][-1]
        rows.append(_row("zk0d", nodes, memory, sum(last["seconds"].values())))
        print(rows[-1], flush=True)
    for nodes in given.peer:
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_federation(Path(folder) / "lab", nodes, 1000) as running,
            stock_nodes(running),
            PeakMemory((SERVER_APP, SUPERLINK)) as memory,
        ):
            ends = run_stock(running, ROUNDS, nodes, given.values)
        rows.append(_row("Flower's FedAvg", nodes, memory, ends[-1] - ends[-2]))
        print(rows[-1], flush=True)
    show(
        f"peak memory, {given.values / 1e6:.0f}M float32 ({given.values * 4 / 1e6:.0f} MB);"
        " private, and all that is resident",
        ("variant", "nodes", "ServerApp", "resident", "SuperLink", "resident", "last round"),
        rows,
    )
    if given.database_rounds:
        _database(given.database_rounds)


def _row(variant: str, nodes: int, memory: PeakMemory, seconds: float) -> tuple[str, ...]:
    return (
        variant,
        str(nodes),
        f"{memory.peaks[SERVER_APP]:.0f} MB",
        f"{memory.resident[SERVER_APP]:.0f} MB",
        f"{memory.peaks[SUPERLINK]:.0f} MB",
        f"{memory.resident[SUPERLINK]:.0f} MB",
        f"{seconds:.1f} s",
    )


def _database(rounds: int) -> None:
    """The database's size after one round, and after many, on a SuperLink of its own each."""
    rows = []
    for count in (1, rounds):
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_federation(Path(folder) / "lab", 2, DATABASE_VALUES) as running,
        ):
            lines = run_ours(running, count, 2)
            size = database_bytes(running)
        moved = sum(
            line["bytes_up"] + line["bytes_down"]
            for line in lines
            if line["kind"] == "round.committed"
        )
        rows.append((str(count), f"{moved / 1e6:.0f} MB", f"{size / 1e6:.2f} MB"))
    show("the SuperLink's database, 2 nodes", ("rounds", "moved", "database"), rows)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
