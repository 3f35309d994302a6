"""Log lines for systemd's journal: one line an event, with priority and fields."""

from __future__ import annotations

import logging
import os

from logging_journald import JournaldTransport, check_journal_stream

#: syslog's priorities, by the logging module's levels.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
#: What a record may be about, given as ``extra``; ``journalctl ZK0D_NODE=left`` finds it.
FIELDS = ("run", "round", "node")


class JournalHandler(logging.Handler):
    """Sends records to the journal with their fields; a record that cannot be sent is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._transport = JournaldTransport(connected=False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        pairs: list[tuple[str, object]] = [
            # A traceback keeps its lines.
            ("MESSAGE", self.format(record)),
            ("PRIORITY", priority),
            ("SYSLOG_IDENTIFIER", "zk0d"),
            ("LOGGER", record.name),
        ]
        pairs += [
            (f"ZK0D_{name.upper()}", str(getattr(record, name)))
            for name in FIELDS
            if getattr(record, name, None) is not None
        ]
        try:
            self._transport.send(pairs)
        except OSError:
            self.handleError(record)


def log_to_stderr() -> None:
    """Log to the journal where that is what stderr leads to, and plainly to stderr elsewhere."""
    handler: logging.Handler
    if "JOURNAL_STREAM" in os.environ and check_journal_stream():
        handler = JournalHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
