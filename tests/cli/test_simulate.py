from __future__ import annotations

import json
from pathlib import Path

import pytest
from lerobot.policies.factory import get_policy_class
from typer.testing import CliRunner

from tests.learning.damage import make_dataset
from zk0d.cli.main import app
from zk0d.cli.simulate import reading
from zk0d.config.families import FAMILIES, NEW
from zk0d.config.machine import ReadingSettings
from zk0d.errors import ConfigError, UsageError
from zk0d.record.events import RunStarted
from zk0d.record.journal import committed_rounds, read_journal

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


@pytest.mark.parametrize("verb", ["compare", "demo"])
def test_policies_are_compared_by_one_normalization(verb: str) -> None:
    done = runner.invoke(app, [verb, "-c", "normalize-by=node"])
    assert isinstance(done.exception, ConfigError), done.output
    assert "normalize-by" in str(done.exception)
    assert "leave it out, or use zk0bot simulate" in str(done.exception)


@pytest.mark.parametrize("verb", ["train", "simulate"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("cache.memory=3", "unknown key 'cache.memory'"),
        ("device=cpu", "unknown key 'device'"),
        ("max-bad-frames=-1", "'max-bad-frames' is wrong"),
        ("cache", "is not of the form key=value"),
    ],
)
def test_a_wrong_learner_setting_is_named(verb: str, given: str, said: str) -> None:
    done = runner.invoke(app, [verb, "x", "--learner", given])
    assert isinstance(done.exception, ConfigError), done.output
    assert said in str(done.exception)
    assert "--learner" in str(done.exception)


def test_learner_settings_are_read_from_the_command_line() -> None:
    found = reading(["max-bad-frames=3 cache.memory-gib=8", "cache.folder=/data"])
    assert (found.max_bad_frames, found.cache.memory_gib) == (3, 8.0)
    assert found.cache.folder == Path("/data")
    assert found.cache.disk_gib == ReadingSettings().cache.disk_gib


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


@pytest.mark.slow
@pytest.mark.long  # at its usual size diffusion takes minutes and 10 GB
@pytest.mark.parametrize(
    "policy", [n for n, known in FAMILIES.items() if known.base == NEW and not known.encoder]
)
def test_a_family_without_a_published_model_is_trained_from_the_start(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make_dataset(tmp_path / "arm", [9, 8, 9])
    words = ["train", str(tmp_path / "arm"), "--rounds", "1", "--device", "cpu"]
    settings = f"policy={policy} local-steps=1 eval-frames=4"
    folder = tmp_path / "t"
    done = runner.invoke(app, [*words, "-c", settings, "--folder", str(folder)])
    assert done.exit_code == 0, (done.output, done.exception)
    # Diffusion's backbone is always random: LeRobot's default, since group norms replace its own.
    noticed = done.output.count("begins with a resnet18 of random weights")
    assert noticed == (policy == "act")
    kept = json.loads((folder / "simulation.json").read_text())["settings"]
    usual = FAMILIES[policy].usual
    assert (kept["model-name"], kept["batch-size"]) == (NEW, usual.batch_size)
    (started, *_) = read_journal(folder / "runs" / "1")
    assert isinstance(started, RunStarted)
    assert started.settings["initial-lr"] == usual.initial_lr
    loaded = get_policy_class(policy).from_pretrained(folder / "checkpoint")
    assert loaded.config.image_features["observation.images.top"].shape == (3, 32, 32)
