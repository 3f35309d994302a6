"""What nodes without work cost their coordinator, by their number and by how they wait.

``python -m tests.bench.bench_waiting [NUMBER ...]``; without arguments 10, 100 and 1000.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric import ec

from tests.bench.nodes import IS_TOLD, POLLS, Protocol, Seen, waiting_nodes
from tests.bench.table import show
from tests.processes import wait_until
from tests.services.lab import Lab, lab
from zk0d.machine.keys import load_private_key, make_node_key

NUMBERS = (10, 100, 1000)
SETTLE_SECONDS, SECONDS = 10.0, 60.0
PARTS = ("SuperLink", "zk0d superlink", "gateway")


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()] or list(NUMBERS)
    rows = []
    for number in numbers:
        of_polls = 0.0
        for protocol in (POLLS, IS_TOLD):
            cores, row = _measure(number, protocol)
            of_polls = of_polls or cores
            rows.append([str(number), protocol.name, *row, f"{cores / of_polls:.2f}"])
    show(
        f"nodes that wait, {SECONDS:.0f} s",
        ("nodes", "a node", *PARTS, "together", "requests/s", "ms, median", "ms, 95 %", "ratio"),
        rows,
    )


def _measure(number: int, protocol: Protocol) -> tuple[float, list[str]]:
    """The coordinator's cores, and a row of the table."""
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), Path("/nothing")) as made,
    ):
        keys = [_enrol(made, each) for each in range(number)]
        service = made.start("superlink", "superlink", "--config", str(made.server_toml))
        made.start_gateway()
        wait_until(lambda: f"of {number} nodes" in service.told.status, "the nodes", 300)
        trust = ssl.create_default_context(cafile=str(made.certificates.ca))
        processes = {
            "SuperLink": [made.child_of("superlink", "zk0d.flower.superlink")],
            "zk0d superlink": [psutil.Process(service.child.pid)],
            "gateway": _family(psutil.Process(made.others[0].pid)),
        }
        used, seen = asyncio.run(_wait(keys, made.gateway, trust, protocol, processes))
    if seen.refused or seen.broken:
        print(f"{number} nodes: refused {dict(seen.refused)}, broken {seen.broken}")
    took = [1000 * s for kind, each in seen.seconds.items() if kind != "zk0d-wait" for s in each]
    cores = sum(used.values())
    return cores, [
        *(f"{used[part]:.1%}" for part in PARTS),
        f"{cores:.1%}",
        f"{sum(map(len, seen.seconds.values())) / SECONDS:.1f}",
        f"{statistics.median(took):.0f}",
        f"{statistics.quantiles(took, n=20)[-1]:.0f}",
    ]


async def _wait(
    keys: list[ec.EllipticCurvePrivateKey],
    port: int,
    trust: ssl.SSLContext,
    protocol: Protocol,
    processes: dict[str, list[psutil.Process]],
) -> tuple[dict[str, float], Seen]:
    async with waiting_nodes(keys, port, trust, protocol) as seen:
        await asyncio.sleep(SETTLE_SECONDS)
        seen.clear()
        before, own, began = _cpu(processes), sum(os.times()[:2]), time.monotonic()
        await asyncio.sleep(SECONDS)
        lasted = time.monotonic() - began
        after = _cpu(processes)
        print(f"{len(keys)} nodes: the load took {(sum(os.times()[:2]) - own) / lasted:.0%}")
        return {part: (after[part] - before[part]) / lasted for part in processes}, seen


def _enrol(made: Lab, number: int) -> ec.EllipticCurvePrivateKey:
    path = made.root / f"node-{number}"
    make_node_key(path)
    path.with_suffix(".pub").rename(made.root / "roster.d" / f"node-{number}.pub")
    return load_private_key(path)


def _family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu(processes: dict[str, list[psutil.Process]]) -> dict[str, float]:
    def seconds(process: psutil.Process) -> float:
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            return times.user + times.system
        return 0.0

    return {part: sum(map(seconds, each)) for part, each in processes.items()}


if __name__ == "__main__":
    main()
