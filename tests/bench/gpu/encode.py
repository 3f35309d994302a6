"""Encoding an update of 99.9M values: on the CPU, as zk0d does it, and on the GPU."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import numpy as np
import torch

from zk0d.federation.update import PayloadEncoder

VALUES, TENSORS = 99_880_992, 155
BLOCK = 4096
REPEATS = 3


def main() -> None:
    sizes = [VALUES // TENSORS] * (TENSORS - 1)
    sizes.append(VALUES - sum(sizes))
    generator = torch.Generator("cuda").manual_seed(0)
    deltas = [torch.randn(n, device="cuda", generator=generator) for n in sizes]
    lost = [np.zeros(n, np.float32) for n in sizes]
    gigabytes = 4e-9 * VALUES

    def to_cpu() -> list[np.ndarray]:
        return [delta.cpu().numpy() for delta in deltas]

    on_cpu = to_cpu()

    def encode_on_cpu() -> None:
        encoder = PayloadEncoder("delta", "int8")
        for number, (delta, rest) in enumerate(zip(on_cpu, lost, strict=True)):
            encoder.add(f"t{number:03d}", delta, rest)
        encoder.finish()

    def quantize_on_gpu() -> list[torch.Tensor]:
        out = []
        for delta in deltas:
            padded = torch.nn.functional.pad(delta, (0, -len(delta) % BLOCK)).view(-1, BLOCK)
            scale = padded.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
            coded = (padded / scale).round_().clamp_(-127, 127).to(torch.int8)
            _ = padded - coded * scale  # what is kept for the next round
            out.append(coded)
        return out

    def encode_on_gpu() -> None:
        digest = hashlib.sha256()
        for coded in quantize_on_gpu():
            digest.update(coded.cpu().numpy())

    def norms_on_gpu() -> None:
        torch.stack(torch._foreach_norm(deltas)).norm().item()

    def norms_on_cpu() -> None:
        sum(float(np.dot(delta, delta)) for delta in on_cpu)

    for name, work in (
        ("copy of float32 to the CPU", to_cpu),
        ("int8 with residual and SHA-256 on the CPU", encode_on_cpu),
        ("int8 with residual on the GPU", lambda: quantize_on_gpu() and None),
        ("int8 with residual on the GPU, copied and hashed", encode_on_gpu),
        ("norm on the CPU", norms_on_cpu),
        ("norm on the GPU", norms_on_gpu),
    ):
        print(f"{name}: {gigabytes / _best(work):.2f} GB/s of float32", flush=True)


def _best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


if __name__ == "__main__":
    main()
