"""Recordings for tests, made by another process.

Suites with guests run for long. Their process ended with a segmentation fault more than once, in
Python's garbage collector, and the cause was not found. It had encoded videos before, with native
libraries that these suites need for nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.processes import run

_MAKE = """
import sys
from pathlib import Path
from zk0d.demo.recordings import make_recordings
from zk0d.simulators.task import Sector
folder, index, of, episodes, seed = sys.argv[1:]
make_recordings(Path(folder), Sector(int(index), int(of)), int(episodes), first_seed=int(seed))
"""


def record(folder: Path, episodes: int, sector: tuple[int, int] = (0, 2), seed: int = 7) -> Path:
    """SoReach demonstrations in a slice of the table, the first of two by default."""
    words = [folder, *sector, episodes, seed]
    done = run([sys.executable, "-c", _MAKE, *map(str, words)], timeout=300, text=True)
    assert done.returncode == 0, done.stderr
    return folder
