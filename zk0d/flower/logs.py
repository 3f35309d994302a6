"""What Flower's programs write, passed on to our log."""

from __future__ import annotations

import logging
import re

_ACCESS = re.compile(r"\S* ?INFO\s*:?\s+(ControlServicer\.|\[uvicorn\.access\]|\S+:\d+ - \")")


def relay(line: str) -> None:
    """Pass a line of Flower's on with its own level; its web server's access lines are dropped."""
    if _ACCESS.match(line):
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
    logging.getLogger("flower").log(level, "%s", line)
