"""Log lines for the journal: one line an event, with systemd's priority in front."""

from __future__ import annotations

import logging
import os

#: syslog's priorities, by the logging module's levels.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


class JournalFormatter(logging.Formatter):
    """``<6>name: message``: systemd takes the number as the line's priority."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return f"<{priority}>{record.name}: {' '.join(super().format(record).split())}"


def log_to_stderr() -> None:
    """Log to stderr: for the journal where that is the journal, plainly elsewhere."""
    handler = logging.StreamHandler()
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
