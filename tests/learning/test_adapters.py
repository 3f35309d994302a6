"""Adapters: what trains, that its average is exact, that the rest stays, and how it is saved."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors.torch import load_file

from tests.learning.test_split_step import plan, run, shared
from zk0d.config.families import FAMILIES
from zk0d.config.machine import CacheSettings
from zk0d.errors import ConfigError, UnavailableError, Zk0dError
from zk0d.learning import adapters
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.evaluate import seeded_loss
from zk0d.learning.policies import family
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings
from zk0d.learning.spec import Adapter, PolicySpec
from zk0d.learning.train import Moments

LORA = Adapter(kind="lora", rank=4)
#: Layers that a family has for which LeRobot names none.
ACT_LAYERS = ("model.action_head", "model.encoder.layers.0.linear1")


def with_adapter(
    recordings: Recordings, policy: str = "smolvla", adapter: Adapter | None = LORA, **changes: Any
) -> LoadedPolicy:
    spec = spec_for(policy, "tiny", 0, recordings.summary, {}, adapter=adapter)
    return load_policy(spec.model_copy(update=changes), device="cpu")


@pytest.fixture
def loaded(recordings: Recordings) -> LoadedPolicy:
    return with_adapter(recordings)


@pytest.fixture(params=["smolvla", "act"])
def either(request: pytest.FixtureRequest, recordings: Recordings) -> LoadedPolicy:
    """With LeRobot's layers, and a family whose layers a coordinator would have to name."""
    own = LORA if request.param == "smolvla" else LORA.model_copy(update={"targets": ACT_LAYERS})
    return with_adapter(recordings, request.param, own)


def frozen(loaded: LoadedPolicy) -> dict[str, torch.Tensor]:
    mine = loaded.trainable()
    return {n: p.detach().clone() for n, p in loaded.policy.named_parameters() if n not in mine}


def trained(recordings: Recordings, loaded: LoadedPolicy, seed: int = 1) -> dict[str, Any]:
    """After twelve steps, corrected as with control variates."""
    features = loaded.frozen_vision
    run(recordings, loaded, plan(4, seed=seed), features=features, corrected=True)
    return loaded.weights()


def whole(loaded: LoadedPolicy) -> dict[str, torch.Tensor]:
    """The weights of the plain policy that it is."""
    with adapters.merged(loaded.policy):
        return {name: each.clone() for name, each in loaded.policy.state_dict().items()}


def batch_of(loaded: LoadedPolicy, recordings: Recordings) -> dict[str, Any]:
    prepared = PreparedRecordings(recordings, loaded, CacheSettings(vision_features=False))
    return prepared.batches(prepared.statistics()).batch(torch.tensor([0, 17, 60]))


def actions(policy: Any, batch: dict[str, Any]) -> torch.Tensor:
    policy.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        made: torch.Tensor = policy.predict_action_chunk(dict(batch))
    return made


def test_an_adapter_begins_as_the_policy_itself(
    either: LoadedPolicy, recordings: Recordings
) -> None:
    plain = load_policy(either.spec.model_copy(update={"adapter": None, "sha256": ""}))
    batch = batch_of(plain, recordings)
    assert torch.equal(actions(either.policy, batch), actions(plain.policy, batch))
    assert not any(values.any() for values in either.weights().values())
    adapter = either.spec.adapter
    assert adapter is not None
    assert set(either.trainable()) == {f"{n}.lora_B.default.weight" for n in adapter.targets}


def test_the_layers_are_those_that_lerobot_adapts(
    recordings: Recordings, loaded: LoadedPolicy
) -> None:
    plain = load_policy(loaded.spec.model_copy(update={"adapter": None, "sha256": ""}))
    plain.policy.config.pretrained_path = Path("a-base")
    wrapped = plain.policy.wrap_with_peft(peft_cli_overrides={"r": 4})
    theirs = {name.removeprefix("base_model.model.") for name, _ in wrapped.named_parameters()}
    ours = {name for name, _ in loaded.policy.named_parameters()}
    assert theirs == ours


def test_the_families_that_lerobot_adapts_are_known() -> None:
    usual = PreTrainedPolicy._get_default_peft_targets
    for name, known in FAMILIES.items():
        family(name)  # which registers it at LeRobot
        own = get_policy_class(name)._get_default_peft_targets
        assert known.adapts == (own is not usual), name


def test_only_the_adapter_learns(either: LoadedPolicy, recordings: Recordings) -> None:
    before, statistics = frozen(either), recordings.statistics()
    prepared = PreparedRecordings(recordings, either, CacheSettings())
    loss = seeded_loss(either, prepared.batches(statistics), prepared.usable[:20], 0).mean
    assert all(values.any() for values in trained(recordings, either).values())
    for name, values in frozen(either).items():
        assert torch.equal(values, before[name]), name
    after = seeded_loss(either, prepared.batches(statistics), prepared.usable[:20], 0).mean
    assert after < loss


def parted(
    recordings: Recordings, loaded: LoadedPolicy
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two nodes' policies averaged weight by weight, and the policy of their average."""
    start, wholes, parts = loaded.weights(), [], []
    for seed in (1, 2):
        loaded.load_weights(start)
        parts.append(trained(recordings, loaded, seed))
        wholes.append(whole(loaded))
    loaded.load_weights({n: (parts[0][n] + parts[1][n]) / 2 for n in start})
    return {n: (wholes[0][n] + wholes[1][n]) / 2 for n in wholes[0]}, whole(loaded)


def test_the_average_of_adapters_is_that_of_the_policies(
    loaded: LoadedPolicy, recordings: Recordings
) -> None:
    mean, made = parted(recordings, loaded)
    for name, values in mean.items():
        torch.testing.assert_close(made[name], values, rtol=0, atol=1e-6)


def test_averaging_a_and_b_apart_would_not_be(recordings: Recordings) -> None:
    both = LORA.model_copy(update={"trains_a": True})
    mean, made = parted(recordings, with_adapter(recordings, adapter=both))
    assert max(float((made[name] - values).abs().max()) for name, values in mean.items()) > 1e-5


def test_a_is_equal_on_every_machine() -> None:
    drawn = adapters._drawn("model.state_proj", 4, 32)
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == DRAWN
    assert np.square(drawn).sum(1).mean() == pytest.approx(1, abs=0.2)
    assert (drawn != adapters._drawn("model.action_in_proj", 4, 32)).all()


#: Of A of one layer; another one would be another base for every release.
DRAWN = "f7ec32f0d2ab2be0db0e65973bdda153ce97daa2364f2d7e324b4dc57a4dcde7"


@pytest.mark.parametrize("rank", [2, 4, 40])
def test_a_rate_means_for_an_adapter_what_it_does_for_the_policy(
    recordings: Recordings, rank: int
) -> None:
    """A step moves a layer's weights as far as one of the policy, at any rank and width."""
    loaded = with_adapter(recordings, adapter=LORA.model_copy(update={"rank": rank}))
    moments = Moments(loaded).begin("run", 1, 0.0)
    for group in moments.param_groups:
        group["lr"] = 1e-3 * group["lr_factor"]
    before = whole(loaded)
    for parameter in loaded.trainable().values():
        # Adam's first step is as long as the rate, whatever the gradient's length.
        signs = torch.from_numpy(np.random.default_rng(1).choice([-1.0, 1.0], parameter.shape))
        parameter.grad = 1e-3 * signs.float()
    moments.step()
    assert loaded.spec.adapter is not None
    after = whole(loaded)
    for name in loaded.spec.adapter.targets:
        moved = after[f"{name}.weight"] - before[f"{name}.weight"]
        assert float(moved.square().mean().sqrt()) == pytest.approx(1e-3, rel=0.2), name


def test_a_narrow_layer_gets_its_own_width(recordings: Recordings) -> None:
    loaded = with_adapter(recordings, adapter=LORA.model_copy(update={"rank": 40}))
    shapes = {name: tuple(each.shape) for name, each in loaded.trainable().items()}
    assert shapes["model.action_in_proj.lora_B.default.weight"] == (48, 32)
    assert shapes["model.action_time_mlp_in.lora_B.default.weight"] == (48, 40)
    trained(recordings, loaded)
    batch = batch_of(loaded, recordings)
    beside = actions(loaded.policy, batch)
    with adapters.merged(loaded.policy):
        torch.testing.assert_close(actions(loaded.policy, batch), beside, rtol=1e-3, atol=1e-4)


def test_two_devices_share_a_step_with_an_adapter(recordings: Recordings) -> None:
    alone = run(recordings, with_adapter(recordings), plan(), corrected=True)
    loaded = shared(with_adapter(recordings), 2)
    both = run(recordings, loaded, plan(), corrected=True)
    assert both[1] == pytest.approx(alone[1], rel=1e-3)
    for name, values in alone[2].items():
        np.testing.assert_allclose(both[2][name], values, atol=2e-4, err_msg=name)
        np.testing.assert_array_equal(loaded.replicas[0].weights()[name], both[2][name])


def test_a_checkpoint_is_a_plain_policy_of_lerobot(
    either: LoadedPolicy, recordings: Recordings, tmp_path: Path
) -> None:
    trained(recordings, either)
    before = {name: each.clone() for name, each in either.policy.state_dict().items()}
    folder = write_checkpoint(either, recordings.statistics(), tmp_path / "checkpoint")
    saved = get_policy_class(either.spec.policy).from_pretrained(folder)
    batch = batch_of(either, recordings)
    with adapters.merged(either.policy):
        ours = actions(either.policy, batch)
    assert torch.equal(actions(saved, batch), ours)
    assert not any("lora" in name for name in load_file(folder / "model.safetensors"))
    for name, values in either.policy.state_dict().items():
        assert torch.equal(values, before[name]), "writing leaves the policy as it was"


def test_peft_and_lerobot_load_the_adapter_on_its_base(
    recordings: Recordings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.rollout.context import _load_pretrained_policy
    from peft import PeftModel

    plain = with_adapter(recordings, adapter=None)
    base = write_checkpoint(plain, recordings.statistics(), tmp_path / "base")
    spec = spec_for("smolvla", "base", 0, recordings.summary, {"base": base}, adapter=LORA)
    loaded = load_policy(spec, models={"base": base}, device="cpu")
    trained(recordings, loaded)
    checkpoint = write_checkpoint(loaded, recordings.statistics(), tmp_path / "checkpoint")
    folder = checkpoint / adapters.FOLDER
    batch = batch_of(loaded, recordings)
    ours = actions(loaded.policy, batch)
    peft = PeftModel.from_pretrained(get_policy_class("smolvla").from_pretrained(base), folder)
    assert torch.equal(actions(peft, batch), ours)
    # As lerobot-record does with --policy.path; the base's name is a folder here.
    monkeypatch.chdir(tmp_path)
    config = PreTrainedConfig.from_pretrained(folder)
    assert config.use_peft
    config.pretrained_path = folder
    assert torch.equal(actions(_load_pretrained_policy(config), batch), ours)
    assert (folder / "policy_preprocessor.json").is_file()
    for path in folder.glob("*.json"):
        assert str(tmp_path) not in path.read_text(), "it names no folder of this machine"


def test_what_a_checkpoint_was_trained_with_can_be_read(
    loaded: LoadedPolicy, recordings: Recordings, tmp_path: Path
) -> None:
    trained(recordings, loaded)
    folder = write_checkpoint(loaded, recordings.statistics(), tmp_path / "checkpoint")
    kept, adapter = adapters.kept_in(folder), loaded.spec.adapter
    assert kept is not None
    assert adapter is not None
    assert kept.is_like(adapter)
    found = adapters.weights_in(folder)
    for name, values in loaded.weights().items():
        assert np.array_equal(found[name].numpy(), values)
    config = folder / adapters.FOLDER / adapters.ADAPTER_CONFIG
    config.write_text(config.read_text()[:-20])
    with pytest.raises(ConfigError, match=r"adapter_config.json: cannot be read .*copy the check"):
        adapters.kept_in(folder)


def test_the_base_is_hashed_with_what_the_adapter_is(
    loaded: LoadedPolicy, recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_policy(loaded.spec, device="cpu").spec == loaded.spec
    with pytest.raises(Zk0dError, match="is not the coordinator's") as caught:
        with_adapter(recordings, seed=1, sha256=loaded.spec.sha256)
    assert caught.value.reason == "model_mismatch"
    other = LORA.model_copy(update={"rank": 8})
    with pytest.raises(Zk0dError, match="is not the coordinator's"):
        with_adapter(recordings, adapter=other, sha256=loaded.spec.sha256)
    monkeypatch.setattr(adapters, "_SEED", "another A")
    with pytest.raises(Zk0dError, match="is not the coordinator's"):
        load_policy(loaded.spec, device="cpu")


@pytest.mark.parametrize(
    ("policy", "adapter", "said"),
    [
        ("smolvla", {"rank": 65}, r"adapter-rank: 65 is above the width of every layer .* with 4"),
        ("act", {}, "LeRobot does not say which layers of act to adapt"),
        ("smolvla", {"targets": ("model.none",)}, "'model.none', which is none of this policy's"),
        ("act", {"targets": ("model.backbone.conv1",)}, "'model.backbone.conv1', which is none"),
    ],
)
def test_an_adapter_that_cannot_be(
    recordings: Recordings, policy: str, adapter: dict[str, Any], said: str
) -> None:
    with pytest.raises(Zk0dError, match=said):
        with_adapter(recordings, policy, LORA.model_copy(update=adapter))


def test_a_machine_without_peft_says_what_to_install(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(adapters, "find_spec", lambda name: None if name == "peft" else found(name))
    with pytest.raises(UnavailableError, match=r"needs the package peft.*pip install 'zk0d\[lora"):
        with_adapter(recordings)


def test_a_spec_of_before_has_no_adapter(smolvla_spec: PolicySpec) -> None:
    text = json.loads(smolvla_spec.model_dump_json())
    del text["adapter"]
    assert PolicySpec.model_validate(text) == smolvla_spec
