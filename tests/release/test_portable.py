"""A checkpoint names no place of the machine that wrote it, and LeRobot loads it elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.release.hub_stand_in import HubStandIn
from tests.release.test_checkpoint import LOAD, statistics_of
from tests.release.test_gate import summary
from zk0d.config.families import FAMILIES
from zk0d.config.machine import EvaluationDataset, EvaluatorSettings, ServerSettings
from zk0d.config.run import RunSettings
from zk0d.federation.messages import Release, Start
from zk0d.federation.update import Payload
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learner.tasks import TaskControl
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import open_recordings
from zk0d.learning.spec import PolicySpec
from zk0d.release import hub
from zk0d.release.checkpoint import Releases, joints_of, rate_of

pytestmark = pytest.mark.slow

#: What a user types who knows nothing of the card.
PLAIN = """
import sys
sys.modules["zk0d"] = None
import json
from pathlib import Path
import torch
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
kind = json.loads((Path(sys.argv[1]) / "config.json").read_text())["type"]
policy = get_policy_class(kind).from_pretrained(sys.argv[1])
preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=sys.argv[1])
batch = torch.load(sys.argv[2], weights_only=True)
batch["task"] = ["reach"]
torch.manual_seed(0)
action = postprocess(policy.select_action(preprocess(batch)))
print(json.dumps(action.double().tolist()))
"""


def evaluator_at(
    folder: Path, recordings: Path, models: dict[str, Path] | None = None
) -> CoordinatorEvaluator:
    dataset = EvaluationDataset(name="held-out", dataset_uri=f"local:{recordings}")
    made = CoordinatorEvaluator(
        ServerSettings(
            state=folder,
            evaluation=[dataset],
            models=models or {},
            evaluator=EvaluatorSettings(device="cpu"),
        )
    )
    made.open()
    return made


def released(evaluator: CoordinatorEvaluator, policy: str, model: str) -> Path:
    """The checkpoint of a run's first round."""
    reply, payload = evaluator.run(
        Start(policy=policy, model_name=model, seed=0), None, TaskControl()
    )
    assert payload is not None
    moved = Payload.of({n: a * 1.25 for n, a in payload.decode(consume=True)}, "weights")
    run = RunSettings.parse(
        # A demo's run names a folder in its settings.
        {"policy": policy, "model-name": model, "dataset-uri": f"local:{recordings_of(evaluator)}"},
        where="test",
    )
    task = Release(
        run="7",
        round=1,
        spec=reply.spec,  # type: ignore[attr-defined]
        base=moved.manifest.sha256,
        statistics=statistics_of(evaluator),
        summary=summary(1.0, 0.5, settings=run.public()),
        keep=1,
    )
    evaluator.run(task, moved, TaskControl())
    return Releases.of(evaluator.settings).checkpoint("7", 1)


def recordings_of(evaluator: CoordinatorEvaluator) -> str:
    return evaluator.settings.evaluation[0].dataset_uri.removeprefix("local:")


def base_model(folder: Path, recordings: Path) -> Path:
    """A policy of LeRobot's own making whose vision-language model lies in a folder of its own."""
    spec = spec_for("smolvla", "tiny", 3, open_recordings(f"local:{recordings}").summary, {})
    loaded = load_policy(spec, device="cpu")
    config = loaded.policy.config
    shutil.copytree(config.vlm_model_name, folder / "vlm-of-ann")
    for name in ("config.json", "tokenizer_config.json"):  # as older versions of transformers did
        path = folder / "vlm-of-ann" / name
        kept = json.loads(path.read_text()) | {"_name_or_path": str(folder / "vlm-of-ann")}
        path.write_text(json.dumps(kept))
    (folder / "vlm-of-ann" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "vlm-of-ann" / "model.safetensors").write_bytes(b"gigabytes")
    config.vlm_model_name = str(folder / "vlm-of-ann")
    config.pretrained_path = folder / "somewhere-else"
    config.repo_id = "ann/private"
    loaded.policy.save_pretrained(folder / "base")
    return folder / "base"


def actions_of(policy: LoadedPolicy, evaluator: CoordinatorEvaluator, file: Path) -> Any:
    generator = torch.Generator().manual_seed(1)
    batch: dict[str, Any] = {
        "observation.state": torch.rand(1, policy.spec.state_width, generator=generator),
        **{
            f"observation.images.{name}": torch.rand(1, *shape, generator=generator)
            for name, shape in policy.spec.cameras.items()
        },
    }
    torch.save(batch, file)
    preprocess, postprocess = policy.processors(statistics_of(evaluator))
    policy.policy.eval()
    policy.policy.reset()
    torch.manual_seed(0)
    actions = postprocess(policy.policy.select_action(preprocess({**batch, "task": ["reach"]})))
    return actions.double().tolist()


def actions_elsewhere(code: str, checkpoint: Path, batch: Path, cwd: Path, **env: str) -> list[Any]:
    """The actions that each of the programs in ``code`` prints."""
    command = [sys.executable, "-c", code, str(checkpoint), str(batch)]
    # A convolution adds up in another order with another number of threads.
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **env}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=200, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]


@pytest.mark.parametrize(
    ("policy", "model"),
    [
        ("smolvla", "tiny"),
        pytest.param("smolvla", "tiny-wide", marks=pytest.mark.long),
        pytest.param("act", "tiny", marks=pytest.mark.long),
        pytest.param("diffusion", "tiny", marks=pytest.mark.long),
        pytest.param("multi_task_dit", "tiny", marks=pytest.mark.long),
        pytest.param("xvla", "tiny", marks=pytest.mark.long),
        pytest.param("smolvla", "anns-base", marks=pytest.mark.long),
    ],
)
def test_a_checkpoint_is_at_home_anywhere(
    policy: str,
    model: str,
    recordings_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    home = tmp_path / "machine-of-the-lab"
    home.mkdir()
    shutil.copytree(recordings_folder, home / "recordings")
    models = {}
    if model == "anns-base":
        models = {model: base_model(home, home / "recordings")}
    evaluator = evaluator_at(home / "server", home / "recordings", models)
    checkpoint = released(evaluator, policy, model)
    for path in checkpoint.rglob("*"):
        assert not path.is_symlink()
        if path.is_file():
            content = path.read_bytes()
            for told in (str(home), f"{tempfile.gettempdir()}/"):
                assert told.encode() not in content, f"{path.name} names {told}"
            assert b"ann/private" not in content
    loaded = evaluator._policy
    assert loaded is not None
    ours = actions_of(loaded, evaluator, tmp_path / "batch.pt")
    assert hub.check(checkpoint), "it may be pushed"
    info = json.loads((recordings_folder / "meta/info.json").read_text())
    names = [tuple(info["features"][what]["names"]) for what in ("observation.state", "action")]
    assert [*joints_of(checkpoint)] == names, "whoever has an arm can compare it"
    assert rate_of(checkpoint) == info["fps"]
    moved = tmp_path / "another" / "place"
    moved.parent.mkdir()
    checkpoint.rename(moved)
    shutil.rmtree(home)
    with HubStandIn() as hub_:  # which knows no such model
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub_.url}
        elsewhere = {"HF_HUB_CACHE": str(tmp_path / "none")}  # a machine that never saw it
        places = [(PLAIN + LOAD, tmp_path, {**elsewhere, **online})]
        if FAMILIES[policy].companion:  # which LeRobot looks for below the current folder
            outside = f"\nimport os\nos.chdir({str(tmp_path)!r})\n"
            places = [
                (PLAIN, tmp_path, {"HF_HUB_CACHE": str(cache)}),
                (PLAIN + outside + LOAD, moved, {**elsewhere, **online}),
            ]
        found = [
            theirs
            for code, cwd, env in places
            for theirs in actions_elsewhere(code, moved, tmp_path / "batch.pt", cwd, **env)
        ]
    assert len(found) == (3 if FAMILIES[policy].companion else 2)
    for theirs in found:
        torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), rtol=1e-5, atol=1e-5)
    if policy == "smolvla":
        name = json.loads((moved / "config.json").read_text())["vlm_model_name"]
        assert re.fullmatch(r"zk0d/vlm-[0-9a-f]{12}", name)
        assert not (moved / name / "model.safetensors").exists(), "no weights of the base"


def test_a_checkpoint_is_a_model_for_the_next_run(recordings_folder: Path, tmp_path: Path) -> None:
    """Under ``[models]``, from wherever it lies; and what is made of it is at home anywhere too."""
    first = released(evaluator_at(tmp_path / "a", recordings_folder), "smolvla", "tiny")
    moved = tmp_path / "models" / "arm"
    moved.parent.mkdir()
    first.rename(moved)
    models = {"our-arm": moved}
    evaluator = evaluator_at(tmp_path / "b", recordings_folder, models)
    second = released(evaluator, "smolvla", "our-arm")
    names = [
        json.loads((path / "config.json").read_text())["vlm_model_name"] for path in (moved, second)
    ]
    assert names[0] == names[1], "the same files, the same name"
    assert (second / names[1] / "tokenizer.json").is_file()
    for path in second.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
    spec: PolicySpec = evaluator._policy.spec  # type: ignore[union-attr]
    loaded = load_policy(spec, models={"our-arm": moved}, device="cpu")
    assert loaded.spec.sha256 == spec.sha256
