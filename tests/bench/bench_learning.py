"""What an encoding costs in learning: the demo's federation at each codec, three seeds.

The peer is float32 both ways. Measured: the seeded held-out loss at the end, and success in
closed loop.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench.lab import _finish
from tests.bench.table import show
from tests.record.lines import read_lines
from zk0d.config.run import RunSettings
from zk0d.demo import main as demo
from zk0d.demo.federation import federation
from zk0d.demo.layout import Layout
from zk0d.demo.progress import Progress

SEEDS = (0, 1, 2)
ROUNDS = 16
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32 both ways": {"uplink-codec": "fp32", "downlink-codec": "fp32"},
    "int8 up, bf16 down": {},
    "int4 up, bf16 down": {"uplink-codec": "int4"},
}


def main() -> None:
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    cores = os.cpu_count() or 1
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            options = demo.DemoOptions(seed=seed, folder=Path(folder) / "lab")
            layout = Layout.make(Path(folder) / "lab", options.contributors)
            progress = Progress(Console(quiet=True), "bench", [demo.RECORDINGS])
            demo._make_recordings(options, layout, progress, cores)
            with federation(layout, cpu_threads=max(1, cores // options.contributors)) as running:
                for name, codecs in VARIANTS.items():
                    values = options.run_settings().to_flat() | {
                        "num-server-rounds": ROUNDS,
                        "eval-frequency": ROUNDS,
                        "eval-frames": 0,
                        "eval-rollouts": 50,
                        **codecs,
                    }
                    run_id = running.start_run(RunSettings.parse(values, where="bench"))
                    _finish(running, run_id)
                    lines = list(read_lines(layout.runs / str(run_id)))
                    last = [line for line in lines if line["kind"] == "round.committed"][-1]
                    found = last["evaluation"]
                    results[name].append((found["loss"], found["success"]))
                    print(
                        f"seed {seed}, {name}: {found['loss']:.5f} {found['success']:.2f}",
                        flush=True,
                    )
    base = [loss for loss, _ in results["fp32 both ways"]]
    rows = []
    for name, found in results.items():
        ratios = [loss / peer for (loss, _), peer in zip(found, base, strict=True)]
        rows.append(
            (
                name,
                ", ".join(f"{loss:.4f}" for loss, _ in found),
                ", ".join(f"{ratio:.3f}" for ratio in ratios),
                f"{sum(ratios) / len(ratios):.3f}",
                ", ".join(f"{success:.2f}" for _, success in found),
            )
        )
    show(
        f"held-out loss after {ROUNDS} rounds of 60 steps, seeds {', '.join(map(str, SEEDS))}",
        ("codecs", "loss", "of fp32's", "mean", "success"),
        rows,
    )
