"""What nodes without work cost their coordinator, by their number and by how they wait.

``python -m tests.bench.bench_waiting [NUMBER ...]``; without arguments 10, 100 and 1000. The load
takes a part of the same cores. One coordinator serves all; its nodes become more.
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
from functools import partial
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric import ec

from tests.bench.nodes import Protocol, WaitingNodes
from tests.bench.table import show
from tests.services.lab import Lab, lab
from zk0d.daemon.child import wait_until
from zk0d.flower.waiting_room import HOLD_SECONDS, PATH
from zk0d.machine.keys import load_private_key, make_node_key

NUMBERS = (10, 100, 1000)
#: Until what was asked before the nodes came, or waited otherwise, is answered.
SETTLE_SECONDS = HOLD_SECONDS + 5.0
SECONDS = 30.0
PARTS = ("SuperLink", "zk0d superlink", "gateway")


def main() -> None:
    numbers = sorted(int(word) for word in sys.argv[1:] if word.isdigit()) or list(NUMBERS)
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), Path("/nothing")) as made,
    ):
        made.start("superlink", "superlink", "--config", str(made.server_toml))
        made.start_gateway()
        rows = asyncio.run(_measure_all(made, numbers))
    show(
        f"nodes that wait, {SECONDS:.0f} s",
        ("nodes", "a node", *PARTS, "together", "requests/s", "ms, median", "ms, 95 %", "ratio"),
        rows,
    )


async def _measure_all(made: Lab, numbers: list[int]) -> list[list[str]]:
    rows: list[list[str]] = []
    keys: list[ec.EllipticCurvePrivateKey] = []
    trust = ssl.create_default_context(cafile=str(made.certificates.ca))
    nodes = WaitingNodes(made.gateway, trust)
    for number in numbers:
        nodes.seen.protocol = Protocol.IS_TOLD
        began = time.monotonic()
        more = [_enrol(made, each) for each in range(len(keys), number)]
        keys += more
        await asyncio.to_thread(wait_until, partial(_registered, made, number), "nodes", 600)
        print(f"{number} nodes are enrolled after {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        await nodes.add(more)
        print(f"and online after {time.monotonic() - began:.0f} s", flush=True)
        cores: dict[Protocol, float] = {}
        # The gentle one first: a thousand that ask are more than one process can answer.
        for protocol in (Protocol.IS_TOLD, Protocol.ASKS):
            nodes.seen.protocol = protocol
            await asyncio.sleep(SETTLE_SECONDS)
            cores[protocol], row = await _measure(made, nodes)
            rows.append([str(number), protocol.value, *row])
            print(rows[-1], flush=True)
        rows[-2].append(f"{cores[Protocol.IS_TOLD] / cores[Protocol.ASKS]:.2f}")
        rows[-1].append("1.00")
    await nodes.leave()
    return rows


async def _measure(made: Lab, nodes: WaitingNodes) -> tuple[float, list[str]]:
    """The coordinator's cores, and a row of the table."""
    service, seen = psutil.Process(made.services["superlink"].child.pid), nodes.seen
    processes = {
        "SuperLink": [made.child_of("superlink", "zk0d.flower.superlink")],
        "zk0d superlink": [service],
        "gateway": _family(psutil.Process(made.others[0].pid)),
    }
    seen.clear()
    before, own, began = _cpu(processes), sum(os.times()[:2]), time.monotonic()
    await asyncio.sleep(SECONDS)  # the measurement itself
    lasted, after = time.monotonic() - began, _cpu(processes)
    load = (sum(os.times()[:2]) - own) / lasted
    kinds = {kind: len(each) for kind, each in seen.seconds.items()}
    print(
        f"the load took {load:.0%} of a core; {kinds}; not held {dict(seen.refused)}, broken"
        f" {seen.broken}; memory {processes['SuperLink'][0].memory_info().rss / 1e6:.0f} MB"
    )
    waits = PATH.rpartition("/")[2]
    took = [1000 * s for kind, each in seen.seconds.items() if kind != waits for s in each]
    used = {part: (after[part] - before[part]) / lasted for part in processes}
    cores = sum(used.values())
    return cores, [
        *(f"{used[part]:.1%}" for part in PARTS),
        f"{cores:.1%}",
        f"{sum(kinds.values()) / lasted:.1f}",
        f"{statistics.median(took):.0f}",
        f"{statistics.quantiles(took, n=20)[-1]:.0f}",
    ]


def _registered(made: Lab, number: int) -> bool:
    return f"of {number} nodes" in made.services["superlink"].told.status


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
