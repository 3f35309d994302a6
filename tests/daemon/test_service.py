"""The base of every service, against a real notify socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests import processes
from tests.processes import wait_until
from tests.services.listener import NotifyListener
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.notify import Notify
from zk0d.daemon.service import Condition, Service
from zk0d.errors import UnavailableError

PROGRAM = """
import sys
from pathlib import Path
from zk0d.daemon.metrics import Metrics
from zk0d.daemon.service import Condition, Service

folder = Path(sys.argv[1])

class Probe(Service):
    name = "probe"
    interval = 0.05
    reloads = 0
    def look(self):
        stuck = "no_progress" if (folder / "stuck").exists() else ""
        ready = (folder / "ready").exists()
        return Condition(f"bänder {self.reloads}", ready=ready, stuck=stuck)
    def reload(self):
        self.reloads += 1
    def stop(self):
        (folder / "stopped").touch()

Probe(Metrics("probe")).run()
"""


@pytest.fixture
def told(tmp_path: Path) -> Iterator[NotifyListener]:
    made = NotifyListener(tmp_path / "notify")
    yield made
    made.close()


@pytest.fixture
def probe(tmp_path: Path, told: NotifyListener) -> Iterator[subprocess.Popen[bytes]]:
    with processes.started(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)],
        env={**os.environ, "NOTIFY_SOCKET": str(told.path), "WATCHDOG_USEC": "200000"},
    ) as process:
        yield process


def test_ready_comes_when_it_is_and_the_sentence_at_once(
    probe: subprocess.Popen[bytes], told: NotifyListener, tmp_path: Path
) -> None:
    wait_until(lambda: told.status == "bänder 0", "the status", 20)
    assert not told.ready
    (tmp_path / "ready").touch()
    wait_until(lambda: told.ready, "READY=1", 20)


def test_the_watchdog_is_fed_out_of_progress_only(
    probe: subprocess.Popen[bytes], told: NotifyListener, tmp_path: Path
) -> None:
    wait_until(lambda: told.sent.count("WATCHDOG=1") >= 3, "pings", 20)
    (tmp_path / "stuck").touch()
    pings = -1

    def silent() -> bool:
        nonlocal pings
        before, pings = pings, told.sent.count("WATCHDOG=1")
        return before == pings

    wait_until(silent, "silence", 20, interval=0.5)
    (tmp_path / "stuck").unlink()
    wait_until(lambda: told.sent.count("WATCHDOG=1") > pings, "pings again", 20)


def test_a_reload_reports_its_time(probe: subprocess.Popen[bytes], told: NotifyListener) -> None:
    wait_until(lambda: told.status == "bänder 0", "the start", 20)
    probe.send_signal(signal.SIGHUP)
    wait_until(lambda: told.status == "bänder 1", "the reload", 20)
    reloading = next(text for text in told.sent if text.startswith("RELOADING=1"))
    assert "MONOTONIC_USEC=" in reloading
    assert told.sent.index("READY=1") > told.sent.index(reloading)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_reported_and_done(
    probe: subprocess.Popen[bytes], told: NotifyListener, tmp_path: Path, number: int
) -> None:
    wait_until(lambda: bool(told.status), "the start", 20)
    probe.send_signal(number)
    assert probe.wait(20) == 0
    assert "STOPPING=1" in told.sent
    assert (tmp_path / "stopped").exists()


def test_a_child_cannot_speak_for_its_service(
    told: NotifyListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(told.path))
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notify = Notify()
    assert notify.watchdog_seconds == 60
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    notify.extend_start(30)
    wait_until(lambda: told.sent == ["EXTEND_TIMEOUT_USEC=30000000"], "the message", 10)


def test_another_process_watchdog_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert Notify().watchdog_seconds is None


class Ending(Service):
    name = "ending"
    interval = 0.01

    def look(self) -> Condition:
        raise UnavailableError("it is gone")

    def stop(self) -> None:
        self.stopped = True


def test_an_error_stops_the_service_and_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    service = Ending(Metrics("ending"))
    with pytest.raises(UnavailableError, match="it is gone"):
        service.run()
    assert service.stopped


def test_metrics_are_served_and_a_taken_port_is_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    metrics = Metrics("probe", port=port)

    class Stuck(Service):
        stuck_reasons = ("no_answer", "no_poll")

        def look(self) -> Condition:
            raise NotImplementedError

    Stuck(metrics)._tell(Condition("it does not answer", stuck="no_answer"))
    metrics.serve()
    try:
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'zk0d_watchdog_pings_withheld_total{reason="no_answer"} 1.0' in text
        assert 'zk0d_watchdog_pings_withheld_total{reason="no_poll"} 0.0' in text
        assert 'zk0d_build_info{service="probe"' in text
        (started,) = re.findall(r"^process_start_time_seconds (\S+)$", text, re.MULTILINE)
        assert abs(float(started) - psutil.Process().create_time()) < 5
        with pytest.raises(UnavailableError, match=rf"127.0.0.1:{port} cannot be opened"):
            Metrics("other", port=port).serve()
    finally:
        metrics.close()


def test_progress_is_status_and_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Walker(Service):
        def look(self) -> Condition:
            raise NotImplementedError

    walker = Walker(Metrics("walker"))
    with caplog.at_level("INFO", logger="zk0d"):
        for sentence in ("step 1/60, 9.5 s left", "step 2/60, 9.1 s left", "ready", "ready"):
            walker._tell(Condition(sentence))
    assert caplog.messages == ["step 1/60, 9.5 s left", "ready"]
