"""A round of 100M float32 values and no training, ours against Flower's FedAvg.

Real processes on loopback with TLS, node keys and a database on disk. Ours with its default codecs
and with the same float32 bytes both ways that Flower sends.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

from tests.bench.lab import PeakMemory, fake_federation, run_ours, run_stock, stock_nodes
from tests.bench.table import show, spread

PARAMETERS, ROUNDS = 100_000_000, 3
COUNTS = (2, 4)
VARIANTS = {
    "zk0d, int8 up, bf16 down": {},
    "zk0d, int4 up, bf16 down": {"uplink-codec": "int4"},
    "zk0d, float32 both ways": {"uplink-codec": "fp32", "downlink-codec": "fp32"},
}


def main() -> None:
    for nodes in COUNTS:
        rows = []
        seconds: dict[str, list[float]] = {}
        bytes_: dict[str, tuple[float, float]] = {}
        memory: dict[str, float] = {}
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_federation(Path(folder) / "lab", nodes, PARAMETERS) as running,
        ):
            for variant, settings in VARIANTS.items():
                with PeakMemory(("serverapp",)) as peaks:
                    lines = run_ours(running, ROUNDS, nodes, settings)
                memory[variant] = peaks.peaks["serverapp"]
                committed = [line for line in lines if line["kind"] == "round.committed"]
                times = [line["time"] for line in committed]
                seconds[variant] = [end - begin for begin, end in pairwise(times)]
                last = committed[-1]
                bytes_[variant] = (last["bytes_up"] / nodes, last["bytes_down"] / nodes)
                print(variant, nodes, last["seconds"], last["nodes"][0]["seconds"], flush=True)
            with stock_nodes(running), PeakMemory(("serverapp",)) as peaks:
                ends = run_stock(running, 2, nodes, PARAMETERS)
            seconds["Flower's FedAvg"] = [end - begin for begin, end in pairwise(ends)]
            bytes_["Flower's FedAvg"] = (4.0 * PARAMETERS, 4.0 * PARAMETERS)
            memory["Flower's FedAvg"] = peaks.peaks["serverapp"]
        theirs = sum(seconds["Flower's FedAvg"]) / len(seconds["Flower's FedAvg"])
        for variant, each in seconds.items():
            up, down = bytes_[variant]
            rows.append(
                (
                    variant,
                    spread(each),
                    f"{sum(each) / len(each) / theirs:.2f}",
                    f"{up / 1e6:.0f} MB",
                    f"{down / 1e6:.0f} MB",
                    f"{memory[variant]:.0f} MB",
                )
            )
        show(
            f"a round of {PARAMETERS / 1e6:.0f}M values, {nodes} nodes",
            ("variant", "seconds", "of Flower's", "up a node", "down a node", "ServerApp's peak"),
            rows,
        )
