"""A pool of worker processes that cannot outlive us."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from zk0d.daemon.parent import die_with
from zk0d.daemon.program import end_quickly


def worker_pool(workers: int, log: Path, threads: int = 1) -> ProcessPoolExecutor:
    """Worker processes whose output goes to ``log`` and that get SIGKILL when this process ends.

    Use it from the main thread: the signal comes when the thread that started a worker ends.
    """
    return ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), str(log), threads),
    )


def _begin(parent: int, log: str, threads: int) -> None:
    die_with(parent)
    end_quickly()
    # Ctrl-C goes to the whole terminal; who waits for the workers decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Video encoders write to the file descriptors themselves.
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ["OMP_NUM_THREADS"] = str(threads)
