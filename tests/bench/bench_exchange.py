"""A round of 100M float32 values and no training, ours against Flower's FedAvg.

Real processes on loopback with TLS, node keys and a database on disk. Ours with its default codecs
and with the same float32 bytes both ways that Flower sends. The default's last round is also shown
phase by phase.

``python -m tests.bench.bench_exchange --nodes 4 --values 50000000`` measures another size.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.bench.lab import (
    PeakMemory,
    RunFailed,
    fake_federation,
    run_ours,
    run_stock,
    stock_nodes,
)
from tests.bench.table import show, spread
from zk0d.demo.federation import Federation

PARAMETERS = 100_000_000
COUNTS = (2, 4)
DEFAULT, PEER = "zk0d, int8 up, bf16 down", "Flower's FedAvg"
VARIANTS = {
    DEFAULT: {},
    "zk0d, int4 up, bf16 down": {"uplink-codec": "int4"},
    "zk0d, float32 both ways": {"uplink-codec": "fp32", "downlink-codec": "fp32"},
}
#: Runs of the peer, one after the other, until one comes to its end.
STOCK_TRIES = 3
#: The journal's phases of a round on the coordinator, in order.
PHASES = {
    "send": "encode the weights, write them for the nodes, send the messages",
    "collect": "until all updates are there, verified",
    "aggregate": "add them up and step",
    "evaluate": "evaluate (switched off here)",
    "commit": "write the round's folder, hash and fsync it",
}


@dataclass(frozen=True)
class Measured:
    """One variant: its rounds' seconds, bytes a node, and the ServerApp's peaks in MB."""

    seconds: list[float]
    up: float
    down: float
    private: float
    resident: float


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="bench_exchange")
    parser.add_argument("--nodes", type=int, nargs="*", default=list(COUNTS))
    parser.add_argument("--values", type=int, default=PARAMETERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peer", action="store_true", help="ours alone, and no ratio")
    given = parser.parse_args(arguments)
    for nodes in given.nodes:
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_federation(Path(folder) / "lab", nodes, given.values) as running,
        ):
            measured = {}
            for variant, settings in VARIANTS.items():
                measured[variant], rounds = _ours(running, given.rounds, nodes, settings)
                _phases(f"{variant}, {nodes} nodes", rounds)
            if not given.without_peer:
                measured[PEER] = _stock(running, nodes, given.values)
        _show(measured, nodes, given.values)


def _ours(
    running: Federation, rounds: int, nodes: int, settings: dict[str, str]
) -> tuple[Measured, list[dict[str, Any]]]:
    with PeakMemory(("serverapp",)) as peaks:
        lines = run_ours(running, rounds, nodes, settings)
    committed = [line for line in lines if line["kind"] == "round.committed"]
    last = committed[-1]
    return Measured(
        [end["time"] - begin["time"] for begin, end in pairwise(committed)],
        last["bytes_up"] / nodes,
        last["bytes_down"] / nodes,
        peaks.peaks["serverapp"],
        peaks.resident["serverapp"],
    ), committed[1:]


def _stock(running: Federation, nodes: int, values: int) -> Measured:
    with stock_nodes(running), PeakMemory(("serverapp",)) as peaks:
        ends = _stock_ends(running, nodes, values)
    return Measured(
        [end - begin for begin, end in pairwise(ends)],
        4.0 * values,
        4.0 * values,
        peaks.peaks["serverapp"],
        peaks.resident["serverapp"],
    )


def _stock_ends(running: Federation, nodes: int, values: int) -> list[float]:
    """Flower's SuperLink answers its own ServerApp with a 500 now and then, which ends the run."""
    for left in reversed(range(STOCK_TRIES)):
        try:
            return run_stock(running, 2, nodes, values)
        except RunFailed as failed:
            if not left:
                raise
            print(f"{PEER}, {nodes} nodes: {failed}; it is run again.", flush=True)
    raise AssertionError


def _show(measured: dict[str, Measured], nodes: int, values: int) -> None:
    peer = measured.get(PEER)
    theirs = sum(peer.seconds) / len(peer.seconds) if peer else None
    rows = [
        (
            variant,
            spread(each.seconds),
            f"{sum(each.seconds) / len(each.seconds) / theirs:.2f}" if theirs else "-",
            f"{each.up / 1e6:.0f} MB",
            f"{each.down / 1e6:.0f} MB",
            f"{each.private:.0f} MB",
            f"{each.resident:.0f} MB",
        )
        for variant, each in measured.items()
    ]
    show(
        f"a round of {values / 1e6:.0f}M values, {nodes} nodes; the ServerApp's peak",
        ("variant", "seconds", "of Flower's", "up a node", "down a node", "private", "resident"),
        rows,
    )


def _phases(title: str, rounds: list[dict[str, Any]]) -> None:
    """Seconds of each phase over all rounds; of the nodes', the slowest one's in each round."""
    rows = [
        (said, spread([line["seconds"].get(name, 0.0) for line in rounds]))
        for name, said in PHASES.items()
    ]
    names = {name for line in rounds for node in line["nodes"] for name in node["seconds"]}
    for name in sorted(names):
        slowest = [max(n["seconds"].get(name, 0.0) for n in line["nodes"]) for line in rounds]
        rows.append((f"… of that on a node: {name}", spread(slowest)))
    between = [b["time"] - a["time"] - sum(b["seconds"].values()) for a, b in pairwise(rounds)]
    if between:
        rows.append(("between rounds", spread(between)))
    show(title, ("phase", "seconds"), rows)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
