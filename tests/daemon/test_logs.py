"""Records as systemd's journal takes them."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from logging_journald import JournaldTransport

from zk0d.daemon.logs import JournalHandler


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A datagram socket in the place of journald's."""
    path = tmp_path / "journal"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(path))
        listening.settimeout(5)
        monkeypatch.setattr(JournaldTransport, "SOCKET_PATH", path)
        yield listening


def test_a_record_has_priority_and_fields(journal: socket.socket) -> None:
    handler = JournalHandler()
    record = logging.LogRecord("zk0d", logging.WARNING, "", 0, "left is %s", ("out",), None)
    record.run, record.round, record.node = "17", 3, "left"
    handler.handle(record)
    lines = journal.recv(4096).decode().splitlines()
    assert set(lines) == {
        "MESSAGE=left is out",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=zk0d",
        "LOGGER=zk0d",
        "ZK0D_RUN=17",
        "ZK0D_ROUND=3",
        "ZK0D_NODE=left",
    }


def test_a_record_has_only_fields_with_values(journal: socket.socket) -> None:
    record = logging.LogRecord("zk0d", logging.INFO, "", 0, "ready", (), None)
    JournalHandler().handle(record)
    text = journal.recv(4096).decode()
    assert "ZK0D_" not in text
    assert "PRIORITY=6" in text
