from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from zk0d.cli.main import app
from zk0d.errors import ConfigError, UsageError
from zk0d.record.journal import committed_rounds

runner = CliRunner()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "--engine", "slurm"], "--engine"),
        (["simulate", "--ray-address", "x:1", "--workers", "2"], "--workers"),
        (["simulate", "--by", "age"], "--by"),
        (["simulate", "--drop", "1"], "--drop"),
        (["simulate", "a", "b", "-n", "3"], "--contributors"),
        (["simulate", "a", "--file", "b"], "--file"),
        (["simulate", "--model", "x"], "--model"),
        (["simulate", "--resume", "/nothing"], "holds nothing to resume"),
        (["compare", "--seeds", "1 1"], "--seeds"),
        (["train"], "DATASET"),
        (["train", "x", "--resume", "y"], "--resume"),
    ],
)
def test_wrong_words(words: list[str], said: str) -> None:
    done = runner.invoke(app, words)
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)


def test_unknown_settings_are_errors(tmp_path: Path, recordings_folder: Path) -> None:
    done = runner.invoke(app, ["simulate", "-c", "local-stepz=3"])
    assert isinstance(done.exception, ConfigError)
    words = ["train", str(recordings_folder), "--folder", str(tmp_path / "t")]
    done = runner.invoke(app, [*words, "-c", "server-momentum=0.5"])
    assert isinstance(done.exception, UsageError)


@pytest.mark.slow
def test_simulate_with_faults(tmp_path: Path, recordings_folder: Path) -> None:
    words = ["simulate", str(recordings_folder), "-n", "3", "--tiny", "--hold-out", "0.2"]
    settings = "num-server-rounds=2 local-steps=2"
    faults = ["--drop", "0.2", "--slow", "1@1.5x", "--poison", "1", "--engine", "in-process"]
    folder = tmp_path / "s"
    done = runner.invoke(
        app, [*words, *faults, "-c", settings, "--device", "cpu", "--folder", str(folder)]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert "in this process, one contributor after another" in done.output
    assert "round 2/2" in done.output
    assert committed_rounds(folder / "runs" / "1") == [0, 1, 2]
    plan = json.loads((folder / "simulation.json").read_text())["plan"]
    assert [node["slow"] for node in plan["nodes"]] == [1.5, 1.0, 1.0]
    assert [node["poisoned"] for node in plan["nodes"]] == [False, False, True]


@pytest.mark.slow
def test_train_and_its_checkpoint(tmp_path: Path, recordings_folder: Path) -> None:
    words = ["train", str(recordings_folder), "--rounds", "2", "--hold-out", "0.2"]
    settings = "local-steps=2 batch-size=4 eval-frames=20 eval-rollouts=0"
    folder = tmp_path / "t"
    done = runner.invoke(app, [*words, "-c", settings, "--device", "cpu", "--folder", str(folder)])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "nothing was pushed" in done.output
    assert (folder / "checkpoint" / "model.safetensors").is_file()
    assert (folder / "checkpoint" / "config.json").is_file()
