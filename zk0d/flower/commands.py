"""Command lines and environments of Flower's programs.

Each has its own ``FLWR_HOME``; telemetry and update checks are off everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w

from zk0d.config.machine import AUTHORITIES_KEY, SOCKET_KEY
from zk0d.daemon.environment import child_environment
from zk0d.files import write_file

if TYPE_CHECKING:
    from zk0d.machine.certificates import Certificates

#: Messages of 4 MiB go through a pool of threads: with glibc's arena for each thread, and without
#: giving such blocks back, a server kept 40 % more than it used, and more for each object that a
#: sender has under way (tests/bench/bench_memory.py).
_LEAN = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1048576",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": "1",
}


@dataclass(frozen=True)
class Command:
    """A program to start: arguments, and its whole environment."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)


def superlink(
    port: int,
    certificates: Certificates,
    database: Path,
    secret: Path,
    home: Path,
    *,
    control_secret: Path | None,
) -> Command:
    """The SuperLink, on loopback, with TLS, node keys and a database on disk.

    Without ``control_secret`` every user of this machine may use its Control API.
    """
    guard = {"ZK0D_CONTROL_SECRET_FILE": str(control_secret)} if control_secret else {}
    return Command(
        [
            sys.executable,
            *("-m", "zk0d.flower.superlink"),
            *("--host", "127.0.0.1"),
            *("--port", str(port)),
            *("--isolation", "process"),
            *("--database", str(database)),
            *("--ssl-certfile", str(certificates.certificate)),
            *("--ssl-keyfile", str(certificates.key)),
            *("--ssl-ca-certfile", str(certificates.ca)),
            "--enable-supernode-auth",
            *("--superexec-auth-secret-file", str(secret)),
        ],
        child_environment(FLWR_HOME=str(home), **_LEAN, **guard),
    )


def superexec(
    role: str,
    runtime: str,
    secret: Path,
    home: Path,
    *,
    ca: Path | None,
    poll_seconds: float,
    env: Mapping[str, str],
) -> Command:
    """A SuperExec beside a SuperLink (``server``, ``ca`` given) or a SuperNode (``client``, plain
    on loopback).
    """
    trust = ["--root-certificates", str(ca)] if ca else ["--insecure"]
    return Command(
        [
            sys.executable,
            *("-m", "zk0d.flower.superexec", role),
            *trust,
            *("--runtime-api-address", runtime),
            *("--superexec-auth-secret-file", str(secret)),
        ],
        child_environment(
            FLWR_HOME=str(home),
            FLWR_SUPEREXEC_TASK_POLL_INTERVAL=str(poll_seconds),
            **_LEAN,
            **env,
        ),
    )


def supernode(
    superlink: str, ca: Path, key: Path, secret: Path, port: int, config: Path, home: Path
) -> Command:
    """A SuperNode with a key; its own Runtime API listens on loopback at ``port``."""
    return Command(
        [
            sys.executable,
            *("-m", "zk0d.flower.supernode"),
            *("--superlink", superlink),
            *("--root-certificates", str(ca)),
            *("--auth-supernode-private-key", str(key)),
            *("--isolation", "process"),
            *("--host", "127.0.0.1"),
            *("--port", str(port)),
            *("--superexec-auth-secret-file", str(secret)),
            *("--node-config", str(config)),
        ],
        child_environment(FLWR_HOME=str(home), **_LEAN),
    )


def write_node_config(path: Path, learner_socket: Path, authorities: str = "") -> None:
    """What a SuperNode tells its ClientApps.

    Parameters
    ----------
    authorities
        By which they know the coordinator (PEM), if not by those of ``coordinator.ca``.
    """
    told = {SOCKET_KEY: str(learner_socket)}
    if authorities:
        told[AUTHORITIES_KEY] = authorities
    write_file(path, tomli_w.dumps(told))
