"""The demo's federation with the smallest policy, and how a test runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import processes
from tests.processes import wait_until
from zk0d.demo.federation import Federation
from zk0d.demo.layout import Layout
from zk0d.flower.control import FINISHED

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
#: Each look at a run is a request to the SuperLink, and costs it as much as a node's.
LOOK_SECONDS = 0.5
TINY: dict[str, Any] = {
    "model-name": "tiny",
    "num-server-rounds": 2,
    "local-steps": 5,
    "batch-size": 8,
    "initial-lr": 2e-3,
    "eval-frames": 40,
}


def layout(folder: Path, recordings: Path, count: int = 2) -> Layout:
    made = Layout.make(folder, count)
    for contributor in made.contributors:
        shutil.copytree(recordings, made.recordings(contributor))
        shutil.copytree(recordings, made.held_out(contributor))
    return made


def finished(running: Federation, run_id: int) -> Any:
    """Wait for a run's end; its state."""
    wait_until(
        lambda: running.state(run_id).status == FINISHED,
        "the run's end",
        180,
        running.children,
        interval=LOOK_SECONDS,
    )
    return running.state(run_id)


def zk0bot_run(running: Federation, **settings: Any) -> int:
    """``zk0bot run`` with the smallest policy; the run's number."""
    said = subprocess.run(
        [
            str(BIN / "zk0bot"),
            "run",
            *("-c", " ".join(f"{key}={value}" for key, value in {**TINY, **settings}.items())),
            *("--superlink", running.control.address),
            *("--ca", str(running.certificates.ca)),
            *("--secret", str(running.layout.coordinator / "control.secret")),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(said.stdout)


def flwr_run(address: str, ca: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Flower's own ``flwr run`` from a checkout, with the smallest policy.

    The checkout is a copy without an environment in it, because Flower looks at every file.
    """
    shutil.copytree(ROOT / "zk0d", folder / "zk0d", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    home = folder / "home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink.lab]\naddress = "{address}"\nroot-certificates = "{ca}"\n'
    )
    overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in TINY.items())
    return processes.run(
        [str(BIN / "flwr"), "run", ".", "lab", "--run-config", overrides, "--format", "json"],
        cwd=folder,
        env={**os.environ, "FLWR_HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}"},
        text=True,
    )
