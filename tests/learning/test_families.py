"""Every policy family does what a run asks of a policy, and only its own file knows which it is."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies import get_policy_class, make_pre_post_processors

import zk0d
from tests.learning.damage import make_dataset
from zk0d.config.families import FAMILIES
from zk0d.config.machine import CacheSettings
from zk0d.config.run import TrainingSettings
from zk0d.learning import policies
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.evaluate import seeded_loss
from zk0d.learning.policies import family
from zk0d.learning.policies.base import BUILT, LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.train import Moments, StepPlan, TrainResult, train
from zk0d.learning.untrusted import STEPS

ROWS = torch.tensor([0, 17, 60])


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, recordings: Recordings) -> LoadedPolicy:
    return load_policy(spec_for(request.param, "tiny", 0, recordings.summary, {}), device="cpu")


@pytest.fixture
def prepared(loaded: LoadedPolicy, recordings: Recordings) -> PreparedRecordings:
    return PreparedRecordings(recordings, loaded, CacheSettings())


def trained(prepared: PreparedRecordings) -> TrainResult:
    schedule = CosineSchedule(peak=1e-3, end=1e-4, warmup_steps=0, total_steps=4)
    return train(
        prepared.policy,
        prepared.batches(prepared.statistics()),
        prepared.usable,
        Moments(prepared.policy).begin("run", 1, 0.01),
        StepPlan(TrainingSettings(local_steps=2, batch_size=4), 0, schedule, seed=1),
    )


def evaluated(prepared: PreparedRecordings, seed: int = 0) -> float:
    batches = prepared.batches(prepared.statistics())
    return seeded_loss(prepared.policy, batches, prepared.usable[:20], seed).mean


def test_every_family_has_a_file_and_every_file_is_registered() -> None:
    files = {module.name for module in pkgutil.iter_modules(policies.__path__)}
    assert set(FAMILIES) <= files
    shared = {"base", "noise", "tiny_vlm"}
    assert files - shared == set(FAMILIES)
    for name in FAMILIES:
        assert issubclass(family(name), LoadedPolicy)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_facts_hold_for_the_loaded_policy(name: str) -> None:
    known, config = FAMILIES[name], family(name).tiny_config(BUILT["tiny"])
    policy_class = get_policy_class(name)
    assert known.policy_class == f"{policy_class.__module__}.{policy_class.__name__}"
    assert config.type == name
    padded = [getattr(config, key, None) for key in ("max_state_dim", "max_action_dim")]
    assert padded == [known.widest, known.widest]
    if known.companion:
        assert known.companion in {field.name for field in fields(config)}
        assert Path(getattr(config, known.companion)).is_dir()
    steps = {
        step._registry_name
        for pipeline in make_pre_post_processors(config, dataset_stats={})
        for step in pipeline.steps
    }
    assert known.steps <= steps <= STEPS


def test_a_family_trains(prepared: PreparedRecordings) -> None:
    before = prepared.policy.weights()
    result = trained(prepared)
    assert (result.steps, result.bad_batches) == (2, 0)
    after = prepared.policy.weights()
    assert any((after[name] != weights).any() for name, weights in before.items())


def test_an_evaluation_repeats_to_the_bit(prepared: PreparedRecordings) -> None:
    torch.manual_seed(1)
    first = evaluated(prepared)
    torch.manual_seed(2)
    assert evaluated(prepared) == first


def test_a_plan_repeats_to_the_bit(prepared: PreparedRecordings) -> None:
    prepared.policy.policy.eval()
    preprocess, _ = prepared.policy.processors(prepared.statistics())
    planned = []
    for number in range(2):
        torch.manual_seed(number)
        with torch.no_grad():
            seen = preprocess(observations(prepared))
            planned.append(prepared.policy.plan(seen, episodes=ROWS, frame=3))
    assert torch.equal(*planned)
    assert planned[0].shape[0] == len(ROWS)


def test_the_noise_before_a_step_equals_the_policys_own(
    prepared: PreparedRecordings,
) -> None:
    loaded = prepared.policy
    if not loaded.recordable:
        assert loaded.drawn(3) == {}
        return
    batch = prepared.batches(prepared.statistics()).batch(ROWS)
    images = loaded.embedded_images() if prepared.features else loaded.whole_images()
    with images:
        torch.manual_seed(0)
        drawn = loaded.policy.forward(dict(batch), **loaded.drawn(len(ROWS)))[0]
        torch.manual_seed(0)
        assert torch.equal(loaded.policy.forward(dict(batch))[0], drawn)
        assert not torch.equal(loaded.policy.forward(dict(batch))[0], drawn)


def observations(prepared: PreparedRecordings) -> dict[str, Any]:
    """What a robot would give the policy in the frames at ``ROWS``."""
    recordings = prepared.recordings
    cameras = prepared.policy.spec.cameras
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.state": recordings.columns["observation.state"][ROWS],
        **{
            f"observation.images.{name}": torch.rand(len(ROWS), *shape, generator=generator)
            for name, shape in cameras.items()
        },
        "task": [recordings.tasks[row] for row in ROWS.tolist()],
    }


def test_plain_lerobot_loads_the_checkpoint_and_plans_the_same(
    prepared: PreparedRecordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    trained(prepared)
    statistics = prepared.statistics()
    folder = write_checkpoint(prepared.policy, statistics, tmp_path / "checkpoint")
    monkeypatch.chdir(folder)  # LeRobot looks there for what the policy is built on
    again = get_policy_class(prepared.policy.spec.policy).from_pretrained(folder)
    planned = []
    for policy, (preprocess, postprocess) in (
        (prepared.policy.policy, prepared.policy.processors(statistics)),
        (again, make_pre_post_processors(again.config, pretrained_path=str(folder))),
    ):
        policy.eval()
        policy.reset()
        torch.manual_seed(0)
        with torch.no_grad():
            planned.append(postprocess(policy.select_action(preprocess(observations(prepared)))))
    assert torch.equal(*planned)
    assert planned[0].std() > 0


@pytest.mark.parametrize("name", [n for n, known in FAMILIES.items() if not known.widest])
def test_a_family_without_a_limit_trains_on_states_of_any_width(name: str, tmp_path: Path) -> None:
    make_dataset(tmp_path / "wide", [9, 8], state=40, action=33)
    recordings = open_recordings(f"local:{tmp_path / 'wide'}")
    policy = load_policy(spec_for(name, "tiny", 0, recordings.summary, {}), device="cpu")
    assert trained(PreparedRecordings(recordings, policy, CacheSettings())).steps == 2


def branches(tree: ast.AST) -> Iterator[str]:
    """Where a program asks which family it has: a comparison, a Literal, a class of LeRobot's."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare() | ast.Subscript(value=ast.Name(id="Literal")) | ast.MatchValue():
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and part.value in tuple(FAMILIES):
                        yield f"line {part.lineno}: {part.value!r}"
            case ast.ImportFrom(module=str(module)):
                of_a_family = [f"lerobot.policies.{name}" for name in FAMILIES]
                if module.startswith(tuple(of_a_family)):
                    yield f"line {node.lineno}: {module}"


@pytest.mark.parametrize(
    "text",
    [
        'if policy == "act": pass',
        'if policy in ("act", "smolvla"): pass',
        'policy: Literal["act"]',
        'match policy:\n    case "act": pass',
        "from lerobot.policies.act.modeling_act import ACTPolicy",
    ],
)
def test_a_branch_on_a_family_is_found(text: str) -> None:
    assert list(branches(ast.parse(text)))


def test_nothing_else_asks_which_family_it_has() -> None:
    source = Path(zk0d.__file__).parent
    own = source / "learning" / "policies"
    found = [
        f"{path.relative_to(source)}, {branch}"
        for path in source.rglob("*.py")
        if own not in path.parents
        for branch in branches(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []
