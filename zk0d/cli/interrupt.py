"""What Ctrl-C does to verbs that compute in threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def ends_at_once(what: str) -> Iterator[None]:
    """End the process at Ctrl-C, with Ray's if it has any; its threads would train on."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"zk0bot: interrupted; committed rounds of the {what} stay.", err=True)
        from zk0d.flower.simulation import stop_ray

        stop_ray()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
