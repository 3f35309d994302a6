"""Programs that a test starts: they end with it, also when it fails or runs out of time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psutil

from zk0d.daemon import child

#: How much slower than a quiet machine of two cores another may be before a wait gives up. A wait
#: that ends well takes no longer for it.
PATIENCE = 4.0
#: Tie a program to us, and let Ctrl-C end it: a shell has what it starts in the background ignore
#: that. Programs and no ``preexec_fn``, for which Python would copy this process, torch and all.
TIED = (
    *("/usr/bin/env", "--default-signal=INT"),
    *("/usr/bin/setpriv", "--pdeathsig=KILL", "--"),
)


def words_of(process: psutil.Process) -> str:
    """A process's command line; empty if it ended since it was found."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def started(argv: Sequence[Any], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a program in a session of its own; leaving the block kills it and what it started.

    pytest-timeout raises in the test's thread, so the block is left then, too. If pytest itself is
    killed, the kernel kills the program.
    """
    with subprocess.Popen([*TIED, *argv], start_new_session=True, **how) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(
    argv: Sequence[Any],
    *,
    input: Any = None,  # noqa: A002 - as subprocess names it
    timeout: float | None = None,
    check: bool = False,
    **how: Any,
) -> subprocess.CompletedProcess[Any]:
    """As ``subprocess.run`` with its output captured, for a program that starts others.

    ``timeout`` is what a quiet machine may take.
    """
    patience = None if timeout is None else PATIENCE * timeout
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(argv, **{**pipes, **how}) as process:
        out, err = process.communicate(input, patience)
    done = subprocess.CompletedProcess(argv, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def wait_until(
    ready: Callable[[], bool],
    what: str,
    timeout: float,
    children: Sequence[child.Child] = (),
    interval: float = 0.1,
) -> None:
    """As ``zk0d.daemon.child.wait_until``, where ``timeout`` is what a quiet machine may take."""
    child.wait_until(ready, what, PATIENCE * timeout, children, interval)
