"""How every program of zk0d ends: with an exit code and, for a mistake, one sentence."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Callable

from zk0d.errors import ExitCode, Zk0dError, disk_trouble


def guarded(name: str, function: Callable[[], int | None]) -> int:
    """Run ``function``; the exit code of the process.

    A :class:`Zk0dError` is one sentence on stderr, never a traceback, and so is a disk that is full
    or read-only, and a file that this process has no right to. Anything else is a bug of ours and
    shows where.
    """
    _reach_this_machine_directly()
    end_quickly()
    try:
        return function() or ExitCode.OK
    except Zk0dError as error:
        print(f"{name}: {error.message}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if trouble := disk_trouble(error):
            print(
                f"{name}: a disk cannot be written ({trouble}); free space there, or in the folder"
                " for temporary files (TMPDIR), or make it writable.",
                file=sys.stderr,
                flush=True,
            )
            return ExitCode.TRY_AGAIN
        if isinstance(error, PermissionError) and error.filename:
            print(
                f"{name}: {error.filename}: this process may not use it ({error.strerror}, user"
                f" {os.geteuid()}); give it the right, or run this as a user who has it.",
                file=sys.stderr,
                flush=True,
            )
            return ExitCode.UNAVAILABLE
        traceback.print_exc()
        print(f"{name}: a bug in zk0d; please report the lines above", file=sys.stderr)
        return ExitCode.BUG


def end_quickly() -> None:
    """At its end this process does not search all that it imported for garbage: seconds of CPU."""
    atexit.register(gc.freeze)


def _reach_this_machine_directly() -> None:
    """A proxy that the environment names does not come between the programs of one machine."""
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if said != "*":  # which means that there is no proxy at all
        os.environ["no_proxy"] = ",".join(filter(None, ("localhost,127.0.0.1,::1", said)))
