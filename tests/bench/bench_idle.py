"""What each supervisor costs while nothing happens: memory, a core's share, seconds to READY.

The peer is Flower's own process that it supervises.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import psutil

from tests.bench.table import show
from tests.services.lab import Running, lab
from zk0d.daemon.child import wait_until

IDLE_SECONDS = 30.0


def main() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), Path("/nothing")) as made,
    ):
        # No learner: what it holds is the policy's size.
        server, node = str(made.server_toml), str(made.add_node("left"))
        made.start_gateway()
        starts = {
            "superlink": ("superlink", "--config", server),
            "server-superexec": ("superexec", "server", "--config", server),
            "supernode": ("supernode", "--config", node),
            "client-superexec": ("superexec", "client", "--config", node),
        }
        services: dict[str, Running] = {}
        seconds: dict[str, float] = {}
        for name, arguments in starts.items():
            began = time.monotonic()
            services[name] = made.start(name, *arguments, watchdog=60.0)
            wait_until(lambda told=services[name].told: told.ready, f"{name}'s READY", 60)  # type: ignore[misc]
            seconds[name] = time.monotonic() - began
        made.wait_for_status("supernode", "online", 90)
        processes = {name: psutil.Process(run.child.pid) for name, run in services.items()}
        before = {name: _cpu(process) for name, process in processes.items()}
        time.sleep(IDLE_SECONDS)  # the measurement itself
        rows = []
        for name, process in processes.items():
            (flower,) = process.children()
            busy = (_cpu(process) - before[name]) / IDLE_SECONDS
            rows.append(
                (
                    name,
                    f"{process.memory_info().rss / 1e6:.0f} MB",
                    f"{process.memory_full_info().pss / 1e6:.0f} MB",
                    f"{busy:.2%}",
                    f"{seconds[name]:.1f} s",
                    f"{flower.memory_info().rss / 1e6:.0f} MB",
                )
            )
    show(
        "idle supervisors",
        ("service", "resident", "proportional", "of a core", "to READY", "Flower's process"),
        rows,
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system
