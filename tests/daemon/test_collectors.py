"""Disks and certificates, as a scrape sees them."""

from __future__ import annotations

import datetime
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from zk0d.daemon.disk import DiskCollector
from zk0d.daemon.expiry import LOOK_SECONDS, ExpiryCollector, expiry_of_ca
from zk0d.machine.certificates import (
    CA_DAYS,
    SERVER_DAYS,
    expiry_of,
    make_certificates,
    shown_expiry,
)


def values(collector: object, name: str) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)  # type: ignore[arg-type]
    return {
        next(iter(sample.labels.values())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_free_space_equals_dfs_even_before_the_folder_exists(tmp_path: Path) -> None:
    disks = DiskCollector({"runs": tmp_path / "not/yet", "state": tmp_path})
    free, size = (values(disks, f"zk0d_filesystem_{what}_bytes") for what in ("free", "size"))
    usage = shutil.disk_usage(tmp_path)
    assert size == {"runs": usage.total, "state": usage.total}
    assert abs(free["runs"] - usage.free) < 0.05 * usage.total


@contextmanager
def showing(certificate: Path, key: Path) -> Iterator[int]:
    """A TLS server on loopback that shows a certificate; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            try:
                connection, _ = listening.accept()
                with context.wrap_socket(connection, server_side=True) as spoken:
                    spoken.recv(1)
            except OSError:
                return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(5)


def test_the_ends_of_certificates(tmp_path: Path) -> None:
    made = make_certificates(tmp_path, ["localhost"])
    now = datetime.datetime.now(datetime.UTC).timestamp()
    days = {name: (expiry_of(tmp_path / name) - now) / 86400 for name in ("ca.crt", "server.crt")}
    assert days["ca.crt"] == pytest.approx(CA_DAYS, abs=1)
    assert days["server.crt"] == pytest.approx(SERVER_DAYS, abs=1)
    assert expiry_of_ca(made.ca) == expiry_of(made.ca), "the standard library reads the same"
    with showing(tmp_path / "server.crt", tmp_path / "server.key") as port:
        assert shown_expiry(port) == expiry_of(tmp_path / "server.crt")
    with pytest.raises(OSError, match=r"refused|reset"):
        shown_expiry(port)


def test_certificates_are_read_now_and_then_and_missing_ones_are_left_out() -> None:
    clock, ends, asked = [0.0], [5.0], []

    def read() -> float:
        asked.append(1)
        return ends[0]

    def away() -> float:
        raise OSError("refused")

    collector = ExpiryCollector(lambda: clock[0])
    collector.watch("gateway", read)
    collector.watch("link", away)
    name = "zk0d_certificate_expiry_timestamp_seconds"
    assert values(collector, name) == {"gateway": 5.0}
    ends[0], clock[0] = 9.0, LOOK_SECONDS / 2
    assert values(collector, name) == {"gateway": 5.0}
    seen = len(asked)
    clock[0] = 2 * LOOK_SECONDS
    assert values(collector, name) == {"gateway": 9.0}
    assert seen == 1
    assert len(asked) == 2
