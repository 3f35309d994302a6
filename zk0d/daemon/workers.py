"""A pool of worker processes that cannot outlive us.

They are forked from one process that has LeRobot's imports, which take seconds of a core: the
pools of a program share it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

from zk0d.daemon.program import end_quickly

#: What the process that forks imports, and with it the modules that a worker needs.
PRELOADED = "zk0d.daemon.preloaded"
#: Names the file that its output goes to.
LOG = "ZK0D_WORKERS_LOG"
#: One thread each: workers share the cores. And imports that ask for a GPU ask its driver: what has
#: begun CUDA cannot be forked, and an optimizer asks CUDA even for weights on the CPU.
FORKED = {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def worker_pool(workers: int, log: Path) -> ProcessPoolExecutor:
    """Worker processes whose output goes to ``log`` and that end when this process does."""
    log.touch()  # whoever cannot write there is told so here, and not by workers that break
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with _environment(**FORKED, **{LOG: str(log)}):
        forkserver.ensure_running()
    return ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(str(log), dict(os.environ))
    )


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def write_to(log: str) -> None:
    """Send this process's output to a file. Video encoders write to the descriptors themselves."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)


def _begin(log: str, environment: dict[str, str]) -> None:
    # Its parent is the process that forks, which waits for its forks; so it looks for us itself.
    threading.Thread(target=_end_with_owner, daemon=True).start()
    end_quickly()
    # Ctrl-C goes to the whole terminal; who waits for the workers decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write_to(log)
    os.environ.update(environment, **FORKED)


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    assert owner is not None
    owner.join()
    os.kill(os.getpid(), signal.SIGKILL)
