"""How a simulation grows with its contributors: wall time, memory, disk, by round.

    python -m tests.bench.scale --contributors 100 [--engine ray] [--steps 2] [--rounds 3]

Prints one line of JSON. Memory is the most that the whole tree of processes held at once (PSS, so
that what they share counts once), by kind of process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from zk0d.federation.journal import read_journal

LOOK_SECONDS = 2.0


def measure(contributors: int, engine: str, rounds: int, steps: int) -> dict[str, Any]:
    """Run one simulation as a child and watch it."""
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "s"
        settings = (
            f"local-steps={steps} batch-size=8 eval-frequency={rounds} eval-rollouts=0"
            " eval-frames=64 warmup-steps=2"
        )
        command = [
            str(Path(sys.executable).with_name("zk0bot")),
            *("simulate", "--tiny", "-n", str(contributors), "--engine", engine),
            *("--rounds", str(rounds), "-c", settings, "--folder", str(at)),
            *("--demonstrations", str(contributors)),
        ]
        began = time.monotonic()
        with (Path(folder) / "log").open("w+") as log:
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            peak: dict[str, float] = {}
            while child.poll() is None:
                _look(child.pid, peak)
                time.sleep(LOOK_SECONDS)
            if child.returncode:
                log.seek(0)
                raise SystemExit(log.read()[-2000:])
        lines = list(read_journal(at / "runs" / "1"))
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
            "kept_mb": round(_size(at / "contributors") / 1e6, 1),
            "up_mb_a_round": round(committed[-1]["bytes_up"] / 1e6, 1),
        }


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
