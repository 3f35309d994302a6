"""Owners whose recordings differ: in resolution, which federates, and in rate, which does not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.record.lines import read_lines
from tests.recordings.shapes import CAMERA, camera, so101, write
from zk0d.cli.main import app
from zk0d.config.families import FAMILIES
from zk0d.errors import ExitCode, Zk0dError
from zk0d.simulation.main import Options, run_simulation

pytestmark = pytest.mark.slow

SETTINGS = {"local-steps": 2, "batch-size": 4, "eval-frames": 8, "model-name": "tiny"}


def federated(folder: Path, *owners: Path, policy: str = "act") -> Path:
    """Two simulated rounds of owners with a dataset each; the run's folder."""
    return run_simulation(
        Options(
            tuple(f"local:{owner}" for owner in owners),
            hold_out=0.25,
            rounds=2,
            overrides=tuple({**SETTINGS, "policy": policy}.items()),
            device="cpu",
            folder=folder,
            engine="in-process",
        ),
        Console(file=io.StringIO()),
    )


@pytest.mark.parametrize(
    "policy",
    [pytest.param(name, marks=() if name == "smolvla" else pytest.mark.long) for name in FAMILIES],
)
def test_owners_with_unlike_resolutions_federate(tmp_path: Path, policy: str) -> None:
    for owner, shape in (("left", (48, 64, 3)), ("right", (72, 120, 3))):
        write(tmp_path / owner, so101("front") | {CAMERA + "front": camera(shape)})
    run = federated(tmp_path / "run", tmp_path / "left", tmp_path / "right", policy=policy)
    done = [line for line in read_lines(run) if line["kind"] == "round.committed"]
    trained = [[node["node"] for node in line["nodes"]] for line in done]
    assert trained == [[], ["left", "right"], ["left", "right"]]
    for line in done:
        told = {each["name"]: each["error"] for each in line["evaluation"]["datasets"]}
        assert told == {"left": None, "right": None}


def test_owners_with_unlike_rates_do_not_federate(tmp_path: Path) -> None:
    for owner, fps in (("left", 30), ("right", 20)):
        write(tmp_path / owner, so101("front"), fps=fps)
    said = (
        f"local:{tmp_path}/right: recorded at 20 frames per second, the policy's is 30; an action"
        " chunk would span another time. Record or resample at 30."
    )
    with pytest.raises(Zk0dError) as caught:
        federated(tmp_path / "run", tmp_path / "left", tmp_path / "right")
    assert caught.value.message == said
    words = ["data", "check", str(tmp_path / "left"), str(tmp_path / "right")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == ExitCode.UNAVAILABLE
    assert f"together wrong: {said}" in done.output
