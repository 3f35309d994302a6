"""A report of a long run against reading its journal alone, and memory over many of them."""

from __future__ import annotations

import math
import resource
import tempfile
import time
from pathlib import Path

from tests.bench.table import show, spread
from tests.record.lines import read_lines
from tests.record.lines import write as note
from tests.report.test_report import Told
from zk0d.report.folder import write_report

NODES = 12


def _told(folder: Path, rounds: int) -> Path:
    told = Told(folder)
    for number in range(rounds + 1):
        nodes = {f"n{at}": 2 / (1 + number) + 0.1 * at for at in range(NODES)}
        told.round(number, 0.5 + 1.5 * math.exp(-number / 100), nodes)
    note(told.journal, "run.finished", rounds=rounds, reason="rounds", best_round=rounds)
    return folder


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print the table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_report(_told(Path(folder) / "warm", 3))
        for rounds, count in ((100, 20), (1000, 100)):
            runs = [_told(Path(folder) / f"{rounds}-{at}", rounds) for at in range(count)]
            read, wrote, peaks = [], [], []
            for run in runs:
                began = time.perf_counter()
                for _ in read_lines(run):
                    pass
                read.append(time.perf_counter() - began)
                began = time.perf_counter()
                write_report(run)
                wrote.append(time.perf_counter() - began)
                peaks.append(_peak())
            ratio = [report / journal for report, journal in zip(wrote, read, strict=True)]
            rows.append(
                (
                    f"{count} runs of {rounds} rounds, {NODES} nodes",
                    spread(read, "{:.3f} s"),
                    spread(wrote, "{:.2f} s"),
                    spread(ratio, "{:.0f}"),
                    f"{peaks[len(peaks) // 10]:.0f} MiB",
                    f"{peaks[-1]:.0f} MiB",
                )
            )
    columns = ("", "read the journal", "report", "ratio", "peak after a tenth", "peak at the end")
    show("A report, with its charts, against reading its journal", columns, rows)


if __name__ == "__main__":
    main()
