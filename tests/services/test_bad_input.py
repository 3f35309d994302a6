"""A mistake ends a service with one sentence and the exit code that its unit waits for."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from tests import processes
from tests.services.lab import Lab
from tests.services.listener import NotifyListener

ZK0D = Path(sys.executable).parent / "zk0d"
Change = Callable[[Lab, Path], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("bad"), Path("/nothing"))


@pytest.fixture
def node(made: Lab) -> Path:
    return made.add_node(f"n{len(list(made.root.iterdir()))}")


def ended(*arguments: str) -> tuple[int, str]:
    said = subprocess.run([str(ZK0D), *arguments], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in said.stderr, said.stderr
    return said.returncode, said.stderr.splitlines()[-1]


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("[coordinator]", "[coordinator", "not valid TOML"),
        ("[coordinator]", "[cordinator]", "did you mean 'coordinator'"),
        ("presence-interval", "presence-intervall", "did you mean 'presence-interval'"),
        (
            "presence-interval = 1.0",
            "presence-interval = 0",
            "'supernode.presence-interval' is wrong",
        ),
        ('address = "', 'address = "hub', "'coordinator.address'"),
        ('dataset-uri = "local:', 'dataset-uri = "ftp:', "is not a dataset address"),
    ],
)
def test_settings_that_are_wrong(node: Path, before: str, after: str, sentence: str) -> None:
    edit(node, before, after)
    if "coordinator.address" in sentence:
        edit(node, "hub127.0.0.1:", "hub127.0.0.1")
    status, said = ended("supernode", "--config", str(node))
    assert status == 78
    assert sentence in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "key"), [("node.key", "supernode.key"), ("superexec.secret", "supernode.secret")]
)
def test_a_key_that_is_not_there_or_empty(node: Path, name: str, key: str) -> None:
    path = node.parent / name
    path.write_bytes(b"")
    status, said = ended("supernode", "--config", str(node))
    assert status == 78
    assert f"{key}: {path} is empty" in said
    path.unlink()
    status, said = ended("supernode", "--config", str(node))
    assert status == 78
    assert f"{key}: {path} cannot be read" in said


def test_a_wrong_key_is_named(node: Path) -> None:
    (node.parent / "node.key").write_text("not a key\n")
    status, said = ended("supernode", "--config", str(node))
    assert status == 78
    assert "node.key" in said


@pytest.mark.slow
@pytest.mark.parametrize(("service", "key"), [("supernode", "port"), ("superlink", "port")])
def test_a_port_that_is_taken(made: Lab, node: Path, service: str, key: str) -> None:
    config = node if service == "supernode" else made.server_toml
    section = config.read_text().split(f"[{service}]")[1]
    port = int(section.split("port = ")[1].split()[0])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        status, said = ended(service, "--config", str(config))
    assert status == 69
    assert f"{service}.{key}: 127.0.0.1:{port} cannot be opened" in said


class FakePresencePage(http.server.BaseHTTPRequestHandler):
    """Stands for a coordinator whose clock is an hour ahead of this machine's."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(time.time() + 3600, usegmt=True)

    def do_GET(self) -> None:
        body = json.dumps({"version": 1, "enrolled": True, "online": False}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def presence() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakePresencePage)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_clock_that_is_an_hour_off_is_a_state_and_no_exit(
    made: Lab, node: Path, presence: str, tmp_path: Path
) -> None:
    edit(node, "[coordinator]\n", f'[coordinator]\npresence = "{presence}"\n')
    told = NotifyListener(tmp_path / "n")
    command = [str(ZK0D), "supernode", "--config", str(node)]
    env = {**os.environ, "NOTIFY_SOCKET": str(told.path)}
    with (
        contextlib.closing(told),
        processes.started(command, env=env, stderr=subprocess.DEVNULL) as process,
    ):
        deadline = time.monotonic() + 60
        while "clock is" not in told.status:
            assert process.poll() is None
            assert time.monotonic() < deadline, told.sent
            time.sleep(0.1)
        assert "behind the coordinator's, which refuses it: set it (timedatectl" in told.status
        assert told.ready
