"""Flower's lines in our log."""

from __future__ import annotations

import logging

import pytest

from zk0d.flower.logs import relay


@pytest.mark.parametrize(
    ("line", "level", "words"),
    [
        ("INFO :      Sent successfully", logging.INFO, "Sent successfully"),
        ("ERROR :     it broke", logging.ERROR, "it broke"),
        ("WARNING :   careful", logging.WARNING, "careful"),
        ("Exit Code: 305", logging.INFO, "Exit Code: 305"),
    ],
)
def test_a_line_keeps_its_level_and_loses_its_prefix(
    line: str, level: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="flower"):
        relay(line)
    assert [(record.levelno, record.message) for record in caplog.records] == [(level, words)]


@pytest.mark.parametrize(
    "line",
    [
        "INFO :",
        "INFO :      ",
        'INFO:     127.0.0.1:5 - "POST /v1"',
        "INFO :      ControlServicer.ListNodes",
    ],
)
def test_noise_is_dropped(line: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="flower"):
        relay(line)
    assert caplog.records == []
