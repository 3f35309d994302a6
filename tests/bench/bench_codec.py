"""What a core encodes, hashes, admits and folds of float32 values, in GB a second, by codec.

One thread. The peer is ``numpy.copyto`` of the same values: what memory alone allows.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import itertools
import tempfile
import time
from pathlib import Path
from typing import get_args

import numpy as np

from tests.bench.table import show
from zk0d.config.run import CodecName
from zk0d.federation.aggregate import ServerStep, Weighted, aggregate, weighted_mean
from zk0d.federation.spool import Spool
from zk0d.federation.update import Payload, PayloadEncoder

TENSOR, TENSORS, REPEATS = 1_000_000, 50, 3


def main() -> None:
    values = np.random.default_rng(0).standard_normal(TENSOR).astype(np.float32)
    weights = {f"t{n:03d}": np.zeros(TENSOR, np.float32) for n in range(TENSORS)}
    lost = {name: np.zeros_like(array) for name, array in weights.items()}
    size = 4e-9 * TENSOR * TENSORS
    began = time.perf_counter()
    for array in lost.values():
        np.copyto(array, values)
    copied = time.perf_counter() - began
    rows = [("numpy.copyto", "", "", "", f"{size / copied:.2f}", "")]
    for codec in get_args(CodecName):
        best = min((_once(codec, values, weights, lost) for _ in range(REPEATS)), key=sum)
        total = sum(best)
        rows.append(
            (
                codec,
                *(f"{size / part:.2f}" for part in best),
                f"{size / total:.2f}",
                f"{total / copied:.1f} x",
            )
        )
    show(
        f"GB/s of float32 values on one core, {TENSORS * TENSOR / 1e6:.0f}M values",
        ("codec", "encode + hash", "verify + norm + spool", "fold", "in all", "time of a copy"),
        rows,
    )


def _once(
    codec: CodecName,
    values: np.ndarray,
    weights: dict[str, np.ndarray],
    lost: dict[str, np.ndarray],
) -> tuple[float, float, float]:
    with tempfile.TemporaryDirectory() as folder:
        times = [time.perf_counter()]
        encoder = PayloadEncoder("delta", codec)
        for name in weights:
            encoder.add(name, values, None if codec == "fp32" else lost[name])
        payload: Payload = encoder.finish()
        times.append(time.perf_counter())
        update = Spool(Path(folder)).take("n", payload)
        times.append(time.perf_counter())
        aggregate(weights, [Weighted(update, 1.0)], weighted_mean, ServerStep(0.0, 1.0))
        times.append(time.perf_counter())
    first, second, third = (b - a for a, b in itertools.pairwise(times))
    return first, second, third
