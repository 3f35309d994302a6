"""From an evaluator to a folder that LeRobot alone loads."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.release.test_gate import summary
from zk0d.config.machine import EvaluationDataset, EvaluatorSettings, ServerSettings
from zk0d.errors import ConfigError
from zk0d.federation.messages import Release, ReleaseReply, Start
from zk0d.federation.update import Payload
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learner.tasks import TaskControl
from zk0d.learning.statistics import RunStatistics, merge_groups
from zk0d.release.card import BEGIN, END
from zk0d.release.checkpoint import PROVENANCE, Releases, code_sha256, judge_folder

#: What a robot's owner does, in a process that finds no zk0d.
LOAD = """
import sys
sys.modules["zk0d"] = None  # whoever imports it fails
import json
from pathlib import Path
import torch
folder = Path(sys.argv[1])
code = (folder / "README.md").read_text().split("```python\\n")[1].split("```")[0]
exec(code.replace('folder = "."', f"folder = {str(folder)!r}"))
batch = torch.load(sys.argv[2], weights_only=True)
batch["task"] = ["reach"]
torch.manual_seed(0)
action = postprocess(policy.select_action(preprocess(batch)))
print(json.dumps(action.double().tolist()))
"""


@pytest.fixture
def evaluator(tmp_path: Path, recordings_folder: Path) -> CoordinatorEvaluator:
    dataset = EvaluationDataset(name="held-out", dataset_uri=f"local:{recordings_folder}")
    settings = ServerSettings(
        state=tmp_path / "server", evaluation=[dataset], evaluator=EvaluatorSettings(device="cpu")
    )
    made = CoordinatorEvaluator(settings)
    made.open()
    return made


def statistics_of(evaluator: CoordinatorEvaluator) -> RunStatistics:
    return merge_groups("cohort", {"": [evaluator._datasets[0].recordings.statistics()]})


def release(
    evaluator: CoordinatorEvaluator, *losses: float, run: str = "7", scale: float = 1.5
) -> ReleaseReply:
    start = Start(policy="smolvla", model_name="tiny", seed=0)
    reply, payload = evaluator.run(start, None, TaskControl())
    assert payload is not None
    weights = {name: array * scale for name, array in payload.decode(consume=True)}
    moved = Payload.of(weights, "weights")
    told = summary(*losses, run=run)
    task = Release(
        run=run,
        round=told.round,
        spec=reply.spec,  # type: ignore[attr-defined]
        base=moved.manifest.sha256,
        statistics=statistics_of(evaluator),
        summary=told,
        keep=1,
    )
    done, nothing = evaluator.run(task, moved, TaskControl())
    assert nothing is None
    assert isinstance(done, ReleaseReply)
    return done


@pytest.mark.slow
@pytest.mark.long
def test_lerobot_alone_gives_the_same_actions(
    evaluator: CoordinatorEvaluator, tmp_path: Path
) -> None:
    assert release(evaluator, 1.0, 0.5).passed
    folder = Releases.of(evaluator.settings).checkpoint("7", 1)
    policy = evaluator._policy
    assert policy is not None
    preprocess, postprocess = policy.processors(statistics_of(evaluator))
    generator = torch.Generator().manual_seed(1)
    batch = {
        "observation.state": torch.rand(1, policy.spec.state_width, generator=generator),
        **{
            f"observation.images.{name}": torch.rand(1, *shape, generator=generator)
            for name, shape in policy.spec.cameras.items()
        },
    }
    torch.save(batch, tmp_path / "batch.pt")
    policy.policy.eval()
    policy.policy.reset()
    torch.manual_seed(0)
    ours = postprocess(policy.policy.select_action(preprocess({**batch, "task": ["reach"]})))
    command = [sys.executable, "-c", LOAD, str(folder), str(tmp_path / "batch.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == ours.double().tolist()


@pytest.mark.slow
def test_a_checkpoint_has_its_other_files(evaluator: CoordinatorEvaluator) -> None:
    release(evaluator, 1.0, 0.5)
    folder = Releases.of(evaluator.settings).checkpoint("7", 1)
    origin = json.loads((folder / PROVENANCE).read_text())
    assert (origin["run"], origin["round"], origin["parent"]["model"]) == ("7", 1, "tiny")
    settings = json.dumps(origin["settings"], sort_keys=True).encode()
    assert origin["settings_sha256"] == hashlib.sha256(settings).hexdigest()
    assert origin["code_sha256"] == code_sha256()
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.eval_results[0].metric_value == 0.5
    assert "Quality gate: passed (it beats the baseline" in card.text
    assert card.text.count("```") == 4, "every fence is closed"
    titles = re.findall(r"^## (.+)$", card.text, re.M)
    assert titles == [
        *("Training Details", "Hyperparameters", "Training Datasets", "Evaluation Datasets"),
        *("Final Evaluation Metrics", "Per-Dataset Results", "Training Insights", "Usage"),
        *("Model Format", "Limitations", "Citation"),
    ], "zk0's sections"
    (picture,) = re.findall(r"!\[.*\]\((.+)\)", card.text)
    with Image.open(folder / picture) as image:
        assert image.width > 1000
    assert re.search(f"{BEGIN}.*{END}", card.text, re.S)
    assert judge_folder(folder, None).passed
    wanted = folder.stat().st_mode & 0o044
    modes = {path.name: path.stat().st_mode & 0o044 for path in folder.rglob("*")}
    assert set(modes.values()) == {wanted}, "who may read the folder may read its files"


@pytest.mark.slow
def test_latest_is_the_last_that_passed(evaluator: CoordinatorEvaluator) -> None:
    releases = Releases.of(evaluator.settings)
    assert not release(evaluator, 1.0, 1.1, run="5").passed
    with pytest.raises(ConfigError, match="there is no release 'latest'"):
        releases.find("latest")
    assert release(evaluator, 1.0, 0.5, run="6").passed
    assert not release(evaluator, 1.0, 0.6, run="7").passed, "6 was better"
    assert releases.find("latest") == releases.checkpoint("6", 1)
    assert releases.find("6") == releases.checkpoint("6", 1)
    # A third checkpoint of run 6 pushes the oldest out, but not the one that is named.
    release(evaluator, 1.0, 0.5, 0.7, run="6")
    assert releases.checkpoint("6", 1).is_dir()


@pytest.mark.slow
def test_a_run_can_begin_from_a_release(evaluator: CoordinatorEvaluator) -> None:
    release(evaluator, 1.0, 0.5, scale=3.0)
    fresh = Start(policy="smolvla", model_name="tiny", seed=0)
    _, first = evaluator.run(fresh, None, TaskControl())
    assert first is not None
    from_it = fresh.model_copy(update={"start_from": "latest"})
    said, second = evaluator.run(from_it, None, TaskControl())
    assert second is not None
    assert said.start_from == "7/1"  # type: ignore[attr-defined]
    before, after = first.arrays(), second.arrays()
    for name, array in before.items():
        torch.testing.assert_close(
            torch.tensor(after[name]), torch.tensor(array * 3.0), rtol=0, atol=0
        )
    with pytest.raises(ConfigError, match="there is no release 'nothing'"):
        evaluator.run(fresh.model_copy(update={"start_from": "nothing"}), None, TaskControl())


def test_a_run_of_a_wild_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a run's name"):
        Releases(tmp_path).checkpoint("../../etc", 1)
