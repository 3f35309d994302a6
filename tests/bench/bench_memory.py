"""Peak private memory of the server by number of nodes, with a payload of 25M float32.

The peer is Flower's FedAvg, which holds all replies, at two nodes and more.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.bench.lab import PeakMemory, fake_federation, run_ours, run_stock, stock_nodes
from tests.bench.table import show

PARAMETERS = 25_000_000
ROUNDS = 2
MOMENTUM = 0.5  # the default: one more copy of the weights
COUNTS = (2, 8)
STOCK_COUNTS = (2, 4)
SERVER_APP, SUPERLINK = "serverapp", "zk0d.flower.superlink"


def main() -> None:
    rows: list[tuple[str, ...]] = []
    ours: dict[int, dict[str, float]] = {}
    for nodes in COUNTS:
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_federation(Path(folder) / "lab", nodes, PARAMETERS) as running,
            PeakMemory((SERVER_APP, SUPERLINK)) as memory,
        ):
            lines = run_ours(running, ROUNDS, nodes, {"server-momentum": MOMENTUM})
        ours[nodes] = memory.peaks
        last = [line for line in lines if line["kind"] == "round.committed"][-1]
        rows.append(_row("zk0d", nodes, memory.peaks, sum(last["seconds"].values())))
    for nodes in STOCK_COUNTS:
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_federation(Path(folder) / "lab", nodes, 1000) as running,
            stock_nodes(running),
            PeakMemory((SERVER_APP, SUPERLINK)) as memory,
        ):
            ends = run_stock(running, ROUNDS, nodes, PARAMETERS)
        rows.append(_row("Flower's FedAvg", nodes, memory.peaks, ends[-1] - ends[-2]))
    few, many = COUNTS
    growth = {word: ours[many][word] / ours[few][word] for word in (SERVER_APP, SUPERLINK)}
    show(
        f"peak private memory, {PARAMETERS / 1e6:.0f}M float32 ({PARAMETERS * 4 / 1e6:.0f} MB);"
        f" zk0d from {few} to {many} nodes: ServerApp x {growth[SERVER_APP]:.2f},"
        f" SuperLink x {growth[SUPERLINK]:.2f}",
        ("variant", "nodes", "ServerApp", "SuperLink", "last round"),
        rows,
    )


def _row(variant: str, nodes: int, peaks: dict[str, float], seconds: float) -> tuple[str, ...]:
    return (
        variant,
        str(nodes),
        f"{peaks[SERVER_APP]:.0f} MB",
        f"{peaks[SUPERLINK]:.0f} MB",
        f"{seconds:.1f} s",
    )
