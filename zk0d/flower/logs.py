"""What Flower's programs write, passed on to our log."""

from __future__ import annotations

import logging
import re

#: What Flower puts before its words, and its separators between messages.
_PREFIX = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR)\s*:\s*")
_ACCESS = re.compile(r"\S* ?INFO\s*:?\s+(ControlServicer\.|\[uvicorn\.access\]|\S+:\d+ - \")")


def relay(line: str) -> None:
    """Pass a line of Flower's on with its own level, but for empty ones and its web server's."""
    words = _PREFIX.sub("", line).strip()
    if not words or _ACCESS.match(line):
        return
    level = next(
        (
            number
            for word, number in (
                ("ERROR", logging.ERROR),
                ("WARNING", logging.WARNING),
                ("DEBUG", logging.DEBUG),
            )
            if word in line[:24]
        ),
        logging.INFO,
    )
    logging.getLogger("flower").log(level, "%s", words)
