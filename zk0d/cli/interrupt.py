"""What Ctrl-C does to verbs that compute in threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def ends_at_once(what: str) -> Iterator[None]:
    """End the process at Ctrl-C: its threads train on, and Ray's workers die with their driver."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"zk0bot: interrupted; committed rounds of the {what} stay.", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
