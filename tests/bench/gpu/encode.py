"""Work on updates of 99.9M values: on the CPU, as zk0d does it, and on the GPU.

A node encodes and hashes one update; the coordinator checks each (hash, norm) and folds four of
them into the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from zk0d.federation.aggregate import ServerStep, Weighted, aggregate, weighted_mean
from zk0d.federation.spool import Spool
from zk0d.federation.update import Payload, PayloadEncoder

VALUES, TENSORS = 99_880_992, 155
BLOCK = 4096
NODES = 4
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="'cpu' to try this file")
    parser.add_argument("--values", type=int, default=VALUES)
    chosen = parser.parse_args()
    device = torch.device(chosen.device)
    sizes = [chosen.values // TENSORS] * (TENSORS - 1)
    sizes.append(chosen.values - sum(sizes))
    generator = torch.Generator(device).manual_seed(0)
    deltas = [torch.randn(n, device=device, generator=generator) for n in sizes]
    names = [f"t{number:03d}" for number in range(TENSORS)]
    lost = [np.zeros(n, np.float32) for n in sizes]
    gigabytes = 4e-9 * chosen.values

    def to_cpu() -> list[np.ndarray]:
        return [delta.cpu().numpy() for delta in deltas]

    on_cpu = to_cpu()

    def encode_on_cpu() -> Payload:
        encoder = PayloadEncoder("delta", "int8")
        for name, delta, rest in zip(names, on_cpu, lost, strict=True):
            encoder.add(name, delta, rest)
        return encoder.finish()

    def quantize_on_gpu() -> list[tuple[torch.Tensor, torch.Tensor]]:
        out = []
        for delta in deltas:
            padded = torch.nn.functional.pad(delta, (0, -len(delta) % BLOCK)).view(-1, BLOCK)
            scale = padded.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            coded = (padded / scale).round_().clamp_(-127, 127).to(torch.int8)
            _ = padded - coded * scale  # what is kept for the next round
            out.append((coded, scale))
        return out

    def encode_on_gpu() -> None:
        digest = hashlib.sha256()
        for coded, _ in quantize_on_gpu():
            digest.update(coded.cpu().numpy())

    def hash_on_cpu() -> None:
        digest = hashlib.sha256()
        for delta in on_cpu:
            digest.update(delta)

    def norms_on_gpu() -> None:
        torch.stack(torch._foreach_norm(deltas)).norm().item()

    def norms_on_cpu() -> None:
        sum(float(np.dot(delta, delta)) for delta in on_cpu)

    weights = dict(zip(names, to_cpu(), strict=True))
    weights_on_gpu = [delta.clone() for delta in deltas]
    # As a coordinator has them: encoded, in its memory.
    arrived = [[(c.cpu(), s.cpu()) for c, s in quantize_on_gpu()] for _ in range(NODES)]

    def fold_on_gpu() -> None:
        for number, whole in enumerate(weights_on_gpu):
            mean = torch.zeros(whole.numel() + -whole.numel() % BLOCK, device=device)
            for update in arrived:
                coded, scale = (part.to(device) for part in update[number])
                mean += (coded * scale).view(-1) / NODES
            whole += mean[: whole.numel()]
            whole.cpu()

    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder) / "spool")
        updates = [Weighted(spool.take(f"n{i}", encode_on_cpu()), 1.0) for i in range(NODES)]

        def fold_on_cpu() -> None:
            aggregate(weights, updates, weighted_mean, ServerStep(0.0, 1.0))

        for name, work, many in (
            ("copy of float32 to the CPU", to_cpu, 1),
            ("int8 with residual and SHA-256 on the CPU", encode_on_cpu, 1),
            ("int8 with residual on the GPU", quantize_on_gpu, 1),
            ("int8 with residual on the GPU, copied and hashed", encode_on_gpu, 1),
            ("SHA-256 of float32 on the CPU", hash_on_cpu, 1),
            ("norm on the CPU", norms_on_cpu, 1),
            ("norm on the GPU", norms_on_gpu, 1),
            (f"fold of {NODES} int8 updates from disk on the CPU", fold_on_cpu, NODES),
            (f"fold of {NODES} int8 updates on the GPU, to it and back", fold_on_gpu, NODES),
        ):
            rate = many * gigabytes / _best(work, device)
            print(f"{name}: {rate:.2f} GB/s of float32", flush=True)


def _best(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS + 1):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
