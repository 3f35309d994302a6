"""A policy of another package trains in a federation where the machine's settings allow it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.release.test_portable import PLAIN
from tests.simulation.test_simulation import lines_of, make, uri  # noqa: F401
from zk0d.cli.simulate import reading
from zk0d.config.limits import LimitsSettings
from zk0d.config.machine import ReadingSettings
from zk0d.config.run import run_settings
from zk0d.errors import ConfigError, UnavailableError, Zk0dError
from zk0d.learning.policies import family
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.untrusted import refuse_code
from zk0d.record.state import RunState
from zk0d.release.card import usage
from zk0d.simulation.alone import TrainOptions, train_alone
from zk0d.simulation.engine import simulate

#: A package of policies, a stand-in of what others write.
PACKAGES = Path(__file__).parents[1] / "packages"
LINE, PIN = "lerobot_policy_line:line", "lerobot_policy_line==1.2.0"
ALLOWED = ReadingSettings(policy_packages=(PIN,))
WISHES: dict[str, Any] = {"policy": LINE, "model-name": "new", "initial-lr": 0.02}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGES))


@pytest.mark.slow
def test_a_federation_trains_it(tmp_path: Path, uri: str) -> None:  # noqa: F811
    made = make(tmp_path / "s", uri, {**WISHES, "eval-rollouts": 2}, plan={"reading": ALLOWED})
    plan = made.plan.model_copy(update={"model_name": "new"})
    run = simulate(replace(made, plan=plan))
    losses = [line["evaluation"]["loss"] for line in lines_of(run, "round.committed")]
    assert losses[-1] < 0.9 * losses[0]
    spec = RunState.read(run).spec
    assert spec is not None
    assert (spec.policy, spec.package_version) == (LINE, "1.2.0")


@pytest.mark.slow
def test_lerobot_loads_its_checkpoint(tmp_path: Path, uri: str) -> None:  # noqa: F811
    folder = Path(uri.removeprefix("local:"))
    checkpoint = train_alone(
        TrainOptions(
            str(folder),
            overrides=tuple({**WISHES, "num-server-rounds": 1, "local-steps": 5}.items()),
            hold_out=0.2,
            device="cpu",
            reading=ALLOWED,
            folder=tmp_path / "alone",
        ),
        Console(quiet=True),
    )
    recordings = open_recordings(uri)
    batch = {"observation.state": torch.zeros(1, recordings.summary.state_width)}
    for camera, shape in recordings.summary.cameras.items():
        batch[f"observation.images.{camera}"] = torch.zeros(1, *shape)
    torch.save(batch, tmp_path / "batch.pt")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import lerobot_policy_line\n{PLAIN}",
            checkpoint,
            tmp_path / "batch.pt",
        ],
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (action,) = json.loads(done.stdout.splitlines()[-1])
    assert len(action) == recordings.summary.action_width
    name = str(checkpoint)
    spec = spec_for(LINE, name, 0, recordings.summary, {name: checkpoint}, packages=[PIN])
    kept = load_policy(spec, models={name: checkpoint}, device="cpu", packages=[PIN])
    planned = kept.policy.predict_action_chunk(batch)
    assert planned.shape[-1] == len(action)


@pytest.mark.parametrize(
    ("packages", "policy", "error", "said"),
    [
        ([], LINE, ConfigError, "that this machine's settings do not allow"),
        (["lerobot_policy_line==1.3.0"], LINE, UnavailableError, "version 1.2.0 is installed here"),
        (
            ["lerobot_policy_none==1.0"],
            "lerobot_policy_none:x",
            UnavailableError,
            "it is not installed here; pip install lerobot_policy_none==1.0",
        ),
        (
            [PIN],
            "lerobot_policy_line:act",
            UnavailableError,
            "package lerobot_policy_line has no policy 'act'; it has line",
        ),
    ],
)
def test_what_is_not_allowed_or_not_there_is_refused(
    packages: list[str], policy: str, error: type[Zk0dError], said: str
) -> None:
    with pytest.raises(error) as refused:
        family(policy, packages)
    assert said in str(refused.value)


def test_a_tiny_one_is_nobodys(uri: str) -> None:  # noqa: F811
    spec = spec_for(LINE, "tiny", 0, open_recordings(uri).summary, {}, packages=[PIN])
    with pytest.raises(UnavailableError, match="take model-name=new"):
        load_policy(spec, device="cpu", packages=[PIN])


def test_another_version_at_the_coordinator_is_refused(uri: str) -> None:  # noqa: F811
    spec = spec_for(LINE, "new", 0, open_recordings(uri).summary, {}, packages=[PIN])
    other = spec.model_copy(update={"package_version": "1.1.0"})
    with pytest.raises(Zk0dError, match=r"version 1\.1\.0 at the coordinator and of 1\.2\.0 here"):
        load_policy(other, device="cpu", packages=[PIN])


def test_its_losses_repeat_and_leave_the_generator_alone(uri: str) -> None:  # noqa: F811
    recordings = open_recordings(uri)
    loaded = load_policy(
        spec_for(LINE, "new", 0, recordings.summary, {}, packages=[PIN]),
        device="cpu",
        packages=[PIN],
    )
    width = recordings.summary.action_width
    batch = {
        "observation.state": torch.ones(2, recordings.summary.state_width),
        "action": torch.ones(2, 12, width),
        "action_is_pad": torch.zeros(2, 12, dtype=torch.bool),
    }
    before = torch.get_rng_state()
    losses = [loaded.seeded_losses(batch, torch.tensor([3, 4]), seed).item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("line", "is none of"),
        ("other:line", "write it as lerobot_policy_NAME:TYPE"),
        ("lerobot_policy_line:", "write it as lerobot_policy_NAME:TYPE"),
    ],
)
def test_a_name_that_is_none_is_refused_by_settings(policy: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_settings({"policy": policy, "model-name": "new"})


def test_a_package_is_allowed_in_one_version_only() -> None:
    with pytest.raises(ConfigError, match=r"write it as lerobot_policy_NAME==1\.2\.0"):
        ReadingSettings.parse({"policy-packages": ["lerobot_policy_line"]}, where="[learner]")
    assert reading([f"policy-packages={PIN}"]).policy_packages == (PIN,)
    with pytest.raises(ConfigError, match="is none of"):
        LimitsSettings.parse({"policies": [LINE]}, where="[limits]")


def test_a_card_says_how_it_is_loaded() -> None:
    text = usage(LINE, carries_vlm=False)
    assert "import lerobot_policy_line\n" in text
    assert 'get_policy_class("line").from_pretrained(folder)' in text


def test_steps_are_the_packages_own(tmp_path: Path) -> None:
    steps = {"steps": [{"registry_name": "line_straight"}]}
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps(steps))
    refuse_code(tmp_path, "m", LINE)
    with pytest.raises(UnavailableError, match="its step 'line_straight' is not one"):
        refuse_code(tmp_path, "m", "act")
    (tmp_path / "policy_preprocessor.json").write_text('{"steps": [{"class": "os.system"}]}')
    with pytest.raises(UnavailableError, match="its 'class' names code to run"):
        refuse_code(tmp_path, "m", LINE)
