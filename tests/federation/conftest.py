"""Prints the table of attacks."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        dict(report.user_properties)
        for report in terminalreporter.stats.get("passed", [])
        if report.when == "call" and "attack" in dict(report.user_properties)
    ]
    if rows:
        terminalreporter.section("attacks")
        for row in rows:
            terminalreporter.write_line(f"{row['attack']:35} {row['became']}")
