"""Writes a run's report once the run has ended, also one that died without saying so."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from zk0d.daemon.clock import Stillness
from zk0d.record.journal import JOURNAL
from zk0d.report import PAGE, REPORT

LOOK_SECONDS = 10.0
#: A journal that says nothing for so long belongs to a run that waits, or that died.
IDLE_SECONDS = 300.0
TAIL_BYTES = 65536
ENDS = {"run.finished", "run.failed"}

log = logging.getLogger("zk0d")


class Reports:
    """Keeps ``report/`` of every run as new as its journal, one run at a time, in another process.

    Parameters
    ----------
    runs
        The folder with one folder for each run.
    clock
        Seconds.
    """

    def __init__(self, runs: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._runs = runs
        self._clock = clock
        self._next_look = float("-inf")
        self._still: dict[Path, Stillness] = {}  #: by run, its journal
        self._tried: dict[Path, int] = {}  #: by run, the journal's mark when one was last made
        self._writing: tuple[subprocess.Popen[str], Path, int] | None = None

    def look(self) -> None:
        """Begin a report that is due, or notice that one is written; never waits."""
        if self._writing is not None:
            self._finish(*self._writing)
            return
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        for journal in self._runs.glob(f"*/{JOURNAL}"):
            if self._due(journal):
                self._begin(journal)
                return

    def stop(self) -> None:
        """Give up what is being written; the report of before stays."""
        if self._writing is not None:
            self._writing[0].kill()
            self._writing[0].wait()
            self._writing = None

    def _due(self, journal: Path) -> bool:
        run = journal.parent
        try:
            told, page = journal.stat().st_mtime_ns, run / REPORT / PAGE
            still = self._still.setdefault(run, Stillness(self._clock)).seconds(told)
            # Made by a service before this one: both times are then of one clock.
            if run not in self._tried and page.exists() and page.stat().st_mtime_ns >= told:
                self._tried[run] = told
            if self._tried.get(run) == told:
                return False
            return still > IDLE_SECONDS or _last_kind(journal) in ENDS
        except OSError:
            return False

    def _begin(self, journal: Path) -> None:
        told = journal.stat().st_mtime_ns
        env = {**os.environ, "MPLCONFIGDIR": str(Path(tempfile.gettempdir()) / "zk0d-charts")}
        command = [sys.executable, "-m", "zk0d.report.folder", str(journal.parent)]
        process = subprocess.Popen(
            ["nice", "-n", "19", *command],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._writing = (process, journal.parent, told)

    def _finish(self, process: subprocess.Popen[str], run: Path, told: int) -> None:
        if process.poll() is None:
            return
        self._writing = None
        self._tried[run] = told
        said = process.communicate()[1].strip()
        if process.returncode:
            log.warning("run %s: its report could not be written (%s)", run.name, said[-300:])
        else:
            log.info("run %s: its report is in %s", run.name, run / REPORT / PAGE)


def _last_kind(journal: Path) -> str:
    """The kind of the last whole line."""
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - TAIL_BYTES))
        lines = file.read().rpartition(b"\n")[0].rpartition(b"\n")
    try:
        return str(json.loads(lines[2])["kind"])
    except (ValueError, KeyError, TypeError):
        return ""
