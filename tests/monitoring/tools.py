"""Prometheus' own programs: from PATH, or out of Debian's packages without installing them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

CACHE = Path("~/.cache/zk0d-tests/prometheus").expanduser()
PACKAGES = ("prometheus", "prometheus-alertmanager")


def program(name: str) -> str:
    """The path of ``prometheus``, ``promtool``, ``prometheus-alertmanager`` or ``amtool``.

    Skips the test where it is neither installed nor to be had.
    """
    found = shutil.which(name)
    if found:
        return found
    unpacked = CACHE / "usr/bin" / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):
        if not unpacked.exists():
            why = _unpack()
            if not unpacked.exists():
                pytest.skip(f"{name} is not here and Debian's packages cannot be had: {why}")
    return str(unpacked)


def _unpack() -> str:
    """Fetch and unpack the packages; what went wrong. No service of theirs is ever started."""
    try:
        got = subprocess.run(
            ["apt-get", "download", *PACKAGES], cwd=CACHE, capture_output=True, text=True
        )
        if got.returncode:
            return (got.stderr.strip().splitlines() or ["apt-get failed"])[-1]
        for package in CACHE.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(CACHE)], check=True)
            package.unlink()
    except (OSError, subprocess.CalledProcessError) as error:
        return str(error)
    return ""
