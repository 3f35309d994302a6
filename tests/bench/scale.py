"""How a simulation grows with its contributors: wall time, memory, disk, by round.

    python -m tests.bench.scale --contributors 100 [--engine ray] [--steps 2] [--rounds 3]

Prints one line of JSON. Memory is the most that the whole tree of processes held at once (PSS, so
that what they share counts once), by kind of process.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.record.lines import read_lines
from zk0d.config.machine import EvaluationDataset
from zk0d.config.run import RunSettings
from zk0d.daemon.workers import worker_pool
from zk0d.demo.recordings import make_recordings
from zk0d.flower.simulation import RayOptions
from zk0d.simulation.engine import Engine, Simulation, simulate
from zk0d.simulation.main import TINY
from zk0d.simulation.plan import Plan, VirtualNode
from zk0d.simulation.sources import numbered
from zk0d.simulators.task import Sector

LOOK_SECONDS = 2.0


def measure(contributors: int, engine: Engine, rounds: int, steps: int) -> dict[str, Any]:
    """Run one simulation and watch this process and its children."""
    peak: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        with worker_pool(1, at / "log") as pool:
            pool.submit(make_recordings, at / "recordings", Sector(), 12, 0).result()
        uri = f"local:{at / 'recordings'}"
        settings = {
            **TINY,
            "num-server-rounds": rounds,
            "local-steps": steps,
            "batch-size": 8,
            "eval-frequency": rounds,
            "eval-rollouts": 0,
            "min-fit-clients": contributors,
        }
        plan = Plan(
            # The same recordings for all: what is measured is their number.
            nodes=[
                VirtualNode(name=name, dataset_uri=uri, episodes=list(range(10)))
                for name in numbered(contributors)
            ],
            state=at / "contributors",
            model_name="tiny",
            device="cpu",
            cpu_threads=1,
        )
        held = EvaluationDataset(name="held-out", dataset_uri=uri, episodes=[10, 11])
        simulation = Simulation(
            at,
            plan,
            RunSettings.parse(settings, where="scale"),
            (held,),
            engine,
            RayOptions(workers=2),
        )
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(peak, over))
        watch.start()
        began = time.monotonic()
        try:
            lines = list(read_lines(simulate(simulation)))
        finally:
            over.set()
            watch.join()
        committed = [line for line in lines if line["kind"] == "round.committed"][1:]
        asked = next(line["time"] for line in lines if line["kind"] == "model.ready")
        joined = next(line["time"] for line in lines if line["kind"] == "statistics.merged")
        return {
            "contributors": contributors,
            "engine": engine,
            "steps": steps,
            "wall_s": round(time.monotonic() - began, 1),
            "query_s": round(joined - asked, 1),
            "rounds": [
                {name: round(value, 2) for name, value in line["seconds"].items()}
                for line in committed
            ],
            "nodes": [len(line["nodes"]) for line in committed],
            "peak_mb": {name: round(value) for name, value in sorted(peak.items())},
            "kept_mb": round(_size(plan.state) / 1e6, 1),
            "up_mb_a_round": round(committed[-1]["bytes_up"] / 1e6, 1),
            "load": os.getloadavg()[1],
        }


def _watch(peak: dict[str, float], over: threading.Event) -> None:
    while not over.wait(LOOK_SECONDS):
        _look(os.getpid(), peak)


def _look(pid: int, peak: dict[str, float]) -> None:
    now: dict[str, float] = {}
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            name = process.name()
            size = process.memory_full_info().pss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        kind = "driver" if process.pid == pid else "workers" if "ray::" in name else "other"
        now[kind] = now.get(kind, 0.0) + size
    now["all"] = sum(now.values())
    for kind, size in now.items():
        peak[kind] = max(peak.get(kind, 0.0), size)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contributors", type=int, default=100)
    parser.add_argument("--engine", default="in-process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    print(json.dumps(measure(asked.contributors, asked.engine, asked.rounds, asked.steps)))
