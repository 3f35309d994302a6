"""A process that does not outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have this process get ``death_signal`` when its parent's thread that started it ends.

    A child calls it first, as ``preexec_fn`` for example. By the parent's number it sees a parent
    that died before.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        os._exit(1)
