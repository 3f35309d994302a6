"""A round of 100M float32 values and no training with NVFlare's FedAvg, two clients.

NVFlare has an environment of its own, never ours, so it runs only where that is named:
``python -m tests.bench.bench_nvflare --python VENV/bin/python``. Its POC mode starts a server and
clients as processes of this machine, with certificates for both ends (mTLS). A round is from the
time when the first client has the weights to that of the next round. Weights are one array, as
NVFlare's own persistor for numpy has them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import psutil

from tests.bench.lab import PeakMemory
from tests.bench.table import show, spread

JOB = Path(__file__).parent / "nvflare_app" / "job.py"
SECONDS = 1800.0
#: The server's parent process, and the one that it starts for the job.
PARENT, WORKER = "fed.app.server.server_train", "fed.app.server.runner_process"


def main(arguments: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="bench_nvflare")
    parser.add_argument("--python", type=Path, required=True, help="a Python that has nvflare")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--values", type=int, default=100_000_000)
    given = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory() as folder,
        PeakMemory((PARENT, WORKER), lambda: _started(folder)) as memory,
    ):
        try:
            times = _run(
                given.python.absolute(), Path(folder), given.nodes, given.rounds, given.values
            )
        finally:
            _end(folder)
    seconds = [end - begin for begin, end in pairwise(times)]
    show(
        f"a round of {given.values / 1e6:.0f}M values, {given.nodes} clients, POC mode with mTLS",
        ("variant", "seconds", "server's peak, private", "resident"),
        [
            (
                "NVFlare's FedAvg",
                spread(seconds),
                f"{sum(memory.peaks.values()):.0f} MB",
                f"{sum(memory.resident.values()):.0f} MB",
            )
        ],
    )


def _started(folder: str) -> list[psutil.Process]:
    """NVFlare's processes of this bench; they are no children of ours, but name its folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(word.startswith(f"{folder}/poc/") for word in process.cmdline()):
                found.append(process)
    return found


def _end(folder: str) -> None:
    """End what NVFlare's own stop has left; a shell script starts a process that ended again."""
    # In the order of their start: the scripts first.
    for process in sorted(_started(folder), key=lambda each: each.create_time()):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(_started(folder), timeout=20)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _run(python: Path, folder: Path, nodes: int, rounds: int, values: int) -> list[float]:
    """Times at which the first client had each round's weights."""
    times = folder / "times"
    times.mkdir()
    # Its programs call each other by name, and keep what they know in the home folder.
    environment = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "NVFLARE_POC_WORKSPACE": str(folder / "poc"),
    }
    done = subprocess.run(
        [str(python), str(JOB), str(folder), str(nodes), str(rounds), str(values)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    sites = [[float(line) for line in path.read_text().split()] for path in times.iterdir()]
    if done.returncode or len(sites) != nodes or {len(each) for each in sites} != {rounds}:
        raise SystemExit(f"bench: NVFlare: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return [min(each) for each in zip(*sites, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1:])
