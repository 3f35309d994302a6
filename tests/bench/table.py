"""Prints a bench's figures."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Median, with minimum and maximum."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{form.format(median)} ({form.format(low)} to {form.format(high)})"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=f"{title}\n{len(os.sched_getaffinity(0))} cores", title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=110).print(table)
