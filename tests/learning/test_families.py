"""Every policy family does what a run asks of a policy, and only its own file knows which it is."""

from __future__ import annotations

import ast
import hashlib
import pkgutil
import re
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import lerobot
import pytest
import torch
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.xvla.configuration_xvla import XVLAConfig

import zk0d
from tests.learning.damage import make_dataset
from zk0d.config.families import CLIP, FAMILIES, NEW, TINY, UNTRAINED
from zk0d.config.machine import CacheSettings
from zk0d.config.run import TrainingSettings, run_settings
from zk0d.errors import ConfigError, UnavailableError
from zk0d.learning import backbones, policies
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.evaluate import action_errors, roll_out, seeded_loss
from zk0d.learning.policies import family, tiny_clip
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.schedule import CosineSchedule
from zk0d.learning.step import PlainStep
from zk0d.learning.train import Moments, StepPlan, TrainResult, train
from zk0d.learning.untrusted import STEPS
from zk0d.simulators.soreach import SoReach

ROOT = Path(__file__).parents[2]
ROWS = torch.tensor([0, 17, 60])


@pytest.fixture(params=FAMILIES)
def loaded(request: pytest.FixtureRequest, recordings: Recordings) -> LoadedPolicy:
    return load_policy(spec_for(request.param, "tiny", 0, recordings.summary, {}), device="cpu")


@pytest.fixture
def prepared(loaded: LoadedPolicy, recordings: Recordings) -> PreparedRecordings:
    return PreparedRecordings(recordings, loaded, CacheSettings())


def trained(prepared: PreparedRecordings, steps: int = 2) -> TrainResult:
    schedule = CosineSchedule(peak=1e-3, end=1e-4, warmup_steps=0, total_steps=2 * steps)
    return train(
        prepared.policy,
        prepared.batches(prepared.statistics()),
        prepared.usable,
        Moments(prepared.policy).begin("run", 1, 0.01),
        StepPlan(TrainingSettings(local_steps=steps, batch_size=4), 0, schedule, seed=1),
    )


def test_the_error_of_planned_actions_repeats_and_belongs_to_the_frame(
    prepared: PreparedRecordings, loaded: LoadedPolicy
) -> None:
    statistics = prepared.statistics()
    batches = prepared.batches(statistics)
    first = action_errors(loaded, batches, statistics, ROWS)
    assert first.shape == ROWS.shape
    assert torch.equal(action_errors(loaded, batches, statistics, ROWS), first)
    alone = action_errors(loaded, batches, statistics, ROWS[1:2])
    # Another shape of batch adds up in another order.
    assert alone.item() == pytest.approx(first[1].item(), rel=1e-3)


def evaluated(prepared: PreparedRecordings, seed: int = 0) -> float:
    batches = prepared.batches(prepared.statistics())
    return seeded_loss(prepared.policy, batches, prepared.usable[:20], seed).mean


def test_every_family_has_a_file_and_every_file_is_registered() -> None:
    files = {module.name for module in pkgutil.iter_modules(policies.__path__)}
    assert set(FAMILIES) <= files
    shared = {"base", "noise", "of_packages", "several_frames", "tiny_clip", "tiny_vlm"}
    assert files - shared == set(FAMILIES)
    for name in FAMILIES:
        assert issubclass(family(name), LoadedPolicy)


def test_the_instructions_that_a_family_reads_are_lerobots() -> None:
    for usual, tokenizer in (
        (SmolVLAConfig(device="cpu"), "vlm_model_name"),
        (MultiTaskDiTConfig(device="cpu"), "text_encoder_name"),
        (XVLAConfig(device="cpu"), "tokenizer_name"),
    ):
        known = FAMILIES[usual.type]
        assert usual.tokenizer_max_length == known.reads_tokens
        assert getattr(usual, tokenizer) == known.tokenizer
    for name, family_ in FAMILIES.items():
        assert bool(family_.reads_tokens) == bool(family_.tokenizer)
        reads = hasattr(family(name).tiny_config(64), "tokenizer_max_length")
        assert bool(family_.reads_tokens) == reads


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_facts_hold_for_the_loaded_policy(name: str) -> None:
    known, config = FAMILIES[name], family(name).tiny_config(TINY["tiny"])
    policy_class = get_policy_class(name)
    assert known.policy_class == f"{policy_class.__module__}.{policy_class.__name__}"
    assert config.type == name
    padded: list[Any] = [getattr(config, f"max_{what}_dim", None) for what in ("state", "action")]
    assert known.widest == (min(padded) if all(padded) else None)
    for key in known.companion.keys if known.companion else ():
        assert key in {field.name for field in fields(config)}
        assert Path(getattr(config, key)).is_dir()
    steps = {
        step._registry_name
        for pipeline in make_pre_post_processors(config, dataset_stats={})
        for step in pipeline.steps
    }
    assert known.steps <= steps <= STEPS


REGISTERED = re.compile(r'@PreTrainedConfig\.register_subclass\(\s*(?:name=)?"([^"]+)"')


def test_every_policy_of_lerobots_is_a_family_or_has_a_reason_why_not() -> None:
    # zk0d keeps LeRobot from importing all of them, so what it knows depends on what ran before.
    folder = Path(lerobot.__file__).parent / "policies"
    sources = (path.read_text(encoding="utf-8") for path in folder.glob("*/configuration_*.py"))
    lerobots = {name for text in sources for name in REGISTERED.findall(text)}
    assert lerobots == FAMILIES.keys() | UNTRAINED.keys()
    assert not FAMILIES.keys() & UNTRAINED.keys()
    for name, why in UNTRAINED.items():
        with pytest.raises(ConfigError) as caught:
            run_settings({"policy": name})
        assert f"'{name}' is not trained here: {why}; take {', '.join(FAMILIES)}" in str(
            caught.value.message
        )


def test_the_page_of_policies_has_every_policy_of_lerobots() -> None:
    page = ROOT / "docs" / "policies.md"
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for line in page.read_text(encoding="utf-8").splitlines()
        if len(cells := line.split("|")) > 3 and cells[1].startswith(" `")
    }
    for name, known in FAMILIES.items():
        assert rows[f"`{name}`"][0].startswith(f"`{known.base}`"), name
    for name, why in UNTRAINED.items():
        assert rows[f"`{name}`"] == [why], name


def test_every_family_begins_with_a_published_model_or_is_built_new() -> None:
    for name, known in FAMILIES.items():
        own = family(name)
        if known.base == NEW:
            assert own.usual_config().type == name
            assert run_settings({"policy": name}).model_name == NEW
            continue
        with pytest.raises(ConfigError, match=f"take model-name={known.base}"):
            run_settings({"policy": name, "model-name": NEW})


#: Warm-up and batch, ours and LeRobot's, where docs/policies.md says that they differ.
OURS_AND_LEROBOTS = {"smolvla": ((20, 32), (1000, 8)), "xvla": ((20, 8), (1000, 8))}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_usual_numbers_are_those_of_lerobots_trainer(name: str) -> None:
    usual, config = FAMILIES[name].usual, family(name).tiny_config(64)
    scheduler = config.get_scheduler_preset()
    (batch,) = (f.default for f in fields(TrainPipelineConfig) if f.name == "batch_size")
    lerobots = (scheduler.num_warmup_steps if scheduler else 0, batch)
    ours = (usual.warmup_steps, usual.batch_size)
    assert (ours, lerobots) == OURS_AND_LEROBOTS.get(name, (ours, ours))
    preset = config.get_optimizer_preset()
    assert (usual.initial_lr, usual.weight_decay) == (preset.lr, preset.weight_decay)
    assert preset.grad_clip_norm == TrainingSettings().grad_clip_norm
    settings = run_settings({"policy": name, "model-name": "tiny", "batch-size": "auto"})
    assert settings.training.batch_size == usual.batch_size
    assert settings.schedule.initial_lr == usual.initial_lr
    prefix = family(name).backbone_prefix
    if prefix is None:
        return
    own_rate = config.optimizer_lr_backbone / config.optimizer_lr
    assert settings.training.backbone_lr_factor == own_rate


USUAL_SIZES: dict[str, dict[str, Any]] = {
    "act": {"chunk_size": 100, "dim_model": 512, "vision_backbone": "resnet18"},
    "diffusion": {
        "horizon": 64,
        "n_obs_steps": 2,
        "n_action_steps": 32,
        "down_dims": (512, 1024, 2048),
        "vision_backbone": "resnet18",
    },
    "multi_task_dit": {
        "horizon": 32,
        "n_obs_steps": 2,
        "n_action_steps": 24,
        "hidden_dim": 512,
        "num_layers": 6,
        "vision_encoder_name": CLIP,
        "text_encoder_name": CLIP,
        "image_resize_shape": (224, 224),
    },
}


def put_encoder(cache: Path) -> None:
    """A CLIP of toy size in the hub's cache, under the name of the usual one."""
    home = cache / f"models--{CLIP.replace('/', '--')}"
    shutil.copytree(tiny_clip.folder(64).name, home / "snapshots" / "1")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("1")


def test_a_family_that_needs_a_package_has_an_extra_of_its_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, known in FAMILIES.items():
        assert bool(known.needs) == (name in project["optional-dependencies"]), name


def test_an_encoder_that_is_missing_is_named(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in (name for name, known in FAMILIES.items() if known.encoder):
        with pytest.raises(UnavailableError) as caught:
            load_policy(spec_for(name, NEW, 0, recordings.summary, {}), device="cpu")
        assert caught.value.message == (
            f"a new '{name}' begins with the weights of {FAMILIES[name].encoder}, which are not on"
            " this machine; name it under fetch-models and run zk0d fetch."
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, known in FAMILIES.items() if known.base == NEW])
def test_a_new_policy_has_the_usual_size_and_the_recordings_shape(
    name: str, recordings: Recordings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    put_encoder(tmp_path)
    spec = spec_for(name, NEW, 3, recordings.summary, {})
    assert spec.cameras == recordings.summary.cameras
    assert ("begins with a resnet18 of random weights" in spec.notice) == bool(
        FAMILIES[name].backbone
    )
    loaded = load_policy(spec, device="cpu")
    known = loaded.spec
    built = {key: getattr(loaded.config, key) for key in USUAL_SIZES[name]}
    assert built == USUAL_SIZES[name], "LeRobot's usual one"
    usual = family(name).usual_config()
    assert usual.action_delta_indices == loaded.config.action_delta_indices
    assert loaded.config.image_features.keys() == {
        f"observation.images.{camera}" for camera in recordings.summary.cameras
    }
    del loaded  # one of a gigabyte at a time
    assert load_policy(spec, device="cpu").spec == known, "the seed decides every weight"
    other = load_policy(spec.model_copy(update={"seed": 4, "sha256": ""}), device="cpu")
    assert other.spec.sha256 != known.sha256


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A resnet18 in torch hub's cache, of weights that no seed gives."""
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = backbones.path("resnet18")
    assert path.parent == Path(torch.hub.get_dir()) / "checkpoints"
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    assert backbones.URLS["resnet18"] == weights.url
    path.parent.mkdir(parents=True)
    content = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({key: torch.full_like(value, 0.5) for key, value in content.items()}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(backbones, "_digits", lambda backbone: digest[:8])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, known in FAMILIES.items() if known.backbone])
def test_a_new_policy_begins_with_imagenets_backbone_where_it_is(
    name: str, recordings: Recordings, backbone: Path, tmp_path: Path
) -> None:
    spec = spec_for(name, NEW, 0, recordings.summary, {})
    assert (spec.backbone, spec.notice) == ("resnet18", "")
    loaded = load_policy(spec, device="cpu")
    prefix = loaded.backbone_prefix
    assert prefix is not None
    kernels = [weight for key, weight in loaded.trainable().items() if key.startswith(prefix)]
    assert kernels
    assert all((kernel == 0.5).all() for kernel in kernels)
    # A node without the file cannot be in such a run, and says what to fetch.
    backbone.unlink()
    with pytest.raises(UnavailableError, match="'resnet18' under fetch-models and run zk0d fetch"):
        load_policy(loaded.spec, device="cpu")
    # Whoever has it is in a run that began without it all the same.
    without = spec_for(name, NEW, 0, recordings.summary, {})
    assert load_policy(without, device="cpu").spec.sha256 != loaded.spec.sha256
    # A checkpoint has all weights.
    statistics = recordings.statistics()
    folder = write_checkpoint(loaded, statistics, tmp_path / "checkpoint")
    saved = get_policy_class(name).from_pretrained(folder)
    assert torch.equal(saved.state_dict()[f"{prefix}.conv1.weight"].unique(), torch.tensor([0.5]))


@pytest.mark.parametrize("name", [name for name, known in FAMILIES.items() if known.backbone])
def test_a_broken_file_in_torch_hubs_cache_is_not_used(
    name: str, recordings: Recordings, backbone: Path
) -> None:
    backbone.write_bytes(backbone.read_bytes()[:-1])
    assert spec_for(name, NEW, 0, recordings.summary, {}).notice


def test_a_backbone_trains_at_its_own_rate(prepared: PreparedRecordings) -> None:
    loaded = prepared.policy
    if loaded.backbone_prefix is None:
        return
    moments = Moments(loaded)
    optimizer = moments.begin("run", 1, 0.0, backbone_lr_factor=0.25)
    PlainStep(loaded, optimizer, None, 10.0).use_rate(1e-3)
    rates = {
        parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]
    }
    for key, parameter in loaded.trainable().items():
        expected = 2.5e-4 if key.startswith(loaded.backbone_prefix) else 1e-3
        assert rates[parameter] == pytest.approx(expected), key


def test_adam_remembers_as_long_as_in_lerobots_preset(loaded: LoadedPolicy) -> None:
    preset = loaded.config.get_optimizer_preset()
    for group in Moments(loaded).begin("run", 1, 0.0).param_groups:
        assert (group["betas"], group["eps"]) == (tuple(preset.betas), preset.eps)


@pytest.mark.slow
def test_a_family_trains(prepared: PreparedRecordings) -> None:
    before, loss = prepared.policy.weights(), evaluated(prepared)
    result = trained(prepared, steps=20)
    assert (result.steps, result.bad_batches) == (20, 0)
    after = prepared.policy.weights()
    assert any((after[name] != weights).any() for name, weights in before.items())
    assert evaluated(prepared) < loss


def test_each_weight_trains_at_the_rate_that_lerobots_trainer_has(loaded: LoadedPolicy) -> None:
    preset = loaded.config.get_optimizer_preset()
    optimizer = preset.build(loaded.policy.get_optim_params())
    theirs = {
        weight: group["lr"] / preset.lr
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    ours = Moments(loaded).begin("run", 1, 0.0)
    for group in ours.param_groups:
        for weight in group["params"]:
            assert group["lr_factor"] == pytest.approx(theirs[weight])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_family_drives_an_arm(prepared: PreparedRecordings) -> None:
    statistics = prepared.statistics()
    for seeds in ([4], [5, 4]):
        rolled = roll_out(prepared.policy, statistics, lambda: SoReach(cameras=("top",)), seeds)
        assert rolled.episodes == len(seeds)


@pytest.mark.slow
def test_a_family_drives_an_arm_with_short_products(
    prepared: PreparedRecordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU products are bfloat16, which a family's own actions may be, and no arm takes."""
    monkeypatch.setattr(prepared.policy, "precision", torch.bfloat16)
    statistics = prepared.statistics()
    rolled = roll_out(prepared.policy, statistics, lambda: SoReach(cameras=("top",)), [4])
    assert rolled.episodes == 1


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
