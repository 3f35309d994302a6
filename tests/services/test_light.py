"""The supervisors stay small: what they must not load."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "without"),
    [
        ("superexec", ("flwr", "numpy", "torch", "cryptography", "httpx", "google.protobuf")),
        ("supernode", ("flwr", "numpy", "torch", "cryptography", "httpx", "google.protobuf")),
        ("superlink", ("torch", "lerobot")),
        ("foreground", ("flwr", "numpy", "torch")),
    ],
)
def test_a_supervisor_loads_only_needed_packages(service: str, without: tuple[str, ...]) -> None:
    code = (
        f"import sys, zk0d.services.main, zk0d.services.{service}\n"
        f"print([name for name in {without!r} if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip() == "[]", said.stdout + said.stderr
