from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zk0d.config.families import TINY
from zk0d.errors import ConfigError, TryAgainError, UnavailableError, Zk0dError
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.policies import tiny_vlm
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import _quiet, load_policy, pick_device, policy_sha256, spec_for
from zk0d.learning.recordings import Recordings
from zk0d.learning.spec import PolicySpec


def test_the_spec_has_the_recordings_shape(recordings: Recordings) -> None:
    spec = spec_for("smolvla", "tiny", 0, recordings.summary, models={})
    assert (spec.fps, spec.state_width, spec.action_width) == (30, 9, 6)
    assert spec.cameras == {"top": (3, 96, 96)}


def test_a_tiny_policy_needs_recordings_to_be_shaped_by() -> None:
    with pytest.raises(ConfigError, match=r"add an \[\[evaluation\]\] table"):
        spec_for("smolvla", "tiny", 0, None, models={})


def test_tiny_wide_is_tiny_with_twice_the_width(
    recordings: Recordings, smolvla: LoadedPolicy
) -> None:
    wide = load_policy(spec_for("smolvla", "tiny-wide", 0, recordings.summary, models={}))
    shapes = [
        {name: tuple(p.shape) for name, p in loaded.trainable().items()}
        for loaded in (smolvla, wide)
    ]
    assert shapes[0].keys() == shapes[1].keys()
    name = "model.state_proj.weight"
    assert shapes[1][name] == (2 * shapes[0][name][0], shapes[0][name][1])
    again = load_policy(wide.spec)
    assert again.spec.sha256 == wide.spec.sha256 != smolvla.spec.sha256


def test_default_freezing_trains_the_expert_only(smolvla: LoadedPolicy) -> None:
    names = list(smolvla.trainable())
    assert names == sorted(names)
    assert all("vlm_with_expert.vlm." not in name for name in names)
    assert any("lm_expert" in name for name in names)
    assert smolvla.frozen_vision
    total = sum(p.numel() for p in smolvla.policy.parameters())
    assert sum(p.numel() for p in smolvla.trainable().values()) < total / 2


@pytest.mark.parametrize("size", [96, 48])
def test_whole_images_are_seen_as_the_encoder_sees_them(smolvla: LoadedPolicy, size: int) -> None:
    images = torch.rand(3, 3, size, size) * 2 - 1
    vlm = smolvla.policy.model.vlm_with_expert
    with torch.no_grad():
        expected = vlm.embed_image(images)
        with smolvla.whole_images():
            whole, alone = vlm.embed_image(images), vlm.embed_image(images[:1])
        assert torch.equal(vlm.embed_image(images), expected)
    assert torch.equal(whole, expected)
    # Some processors add a product of another batch size up in another order (MKL_CBWR=COMPATIBLE).
    assert torch.allclose(alone, whole[:1], atol=1e-5)
    assert expected.std() > 0.01


def test_act_trains_its_vision(act: LoadedPolicy) -> None:
    assert not act.frozen_vision
    assert any("backbone" in name for name in act.trainable())


@pytest.mark.slow
def test_two_processes_build_the_same_policy(smolvla_spec: PolicySpec) -> None:
    code = (
        "import sys, torch; from zk0d.learning.policy import load_policy;"
        f"torch.set_num_threads({torch.get_num_threads()});"
        "from zk0d.learning.spec import PolicySpec;"
        "print(load_policy(PolicySpec.model_validate_json(sys.argv[1]), device='cpu').spec.sha256)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, smolvla_spec.model_dump_json()],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()[-1]
    assert printed == load_policy(smolvla_spec, device="cpu").spec.sha256


def test_another_seed_is_another_policy(smolvla_spec: PolicySpec, smolvla: LoadedPolicy) -> None:
    other = load_policy(smolvla_spec.model_copy(update={"seed": 1}), device="cpu")
    assert other.spec.sha256 != smolvla.spec.sha256


def test_other_weights_than_the_coordinators_are_refused(smolvla_spec: PolicySpec) -> None:
    with pytest.raises(Zk0dError) as error:
        load_policy(smolvla_spec.model_copy(update={"sha256": "0" * 64}), device="cpu")
    assert error.value.reason == "model_mismatch"


def test_the_hash_sees_one_changed_weight(smolvla: LoadedPolicy) -> None:
    before = policy_sha256(smolvla)
    with torch.no_grad():
        next(iter(smolvla.policy.parameters())).view(-1)[0] += 1e-6
    assert policy_sha256(smolvla) != before


def test_weights_are_copies_and_come_back(smolvla: LoadedPolicy) -> None:
    weights = smolvla.weights()
    with torch.no_grad():
        for parameter in smolvla.trainable().values():
            parameter.add_(1.0)
    after = smolvla.weights()
    name = next(iter(weights))
    assert not np.array_equal(after[name], weights[name]), "a copy, not a view of live weights"
    smolvla.load_weights(weights)
    assert all(np.array_equal(smolvla.weights()[n], w) for n, w in weights.items())


def test_statistics_without_a_feature_are_refused(
    recordings: Recordings, smolvla: LoadedPolicy
) -> None:
    statistics = recordings.statistics()
    lacking = statistics.model_copy(update={"features": {"action": statistics.features["action"]}})
    with pytest.raises(Zk0dError, match=r"have no 'observation\.state' of width 9"):
        smolvla.processors(lacking)


def saved(smolvla: LoadedPolicy, folder: Path) -> Path:
    """A pretrained policy with its vision-language model's configuration beside it."""
    vlm = folder / "vlm"
    vlm.mkdir(parents=True)
    for path in Path(tiny_vlm.folder(TINY["tiny"]).name).iterdir():
        (vlm / path.name).write_bytes(path.read_bytes())
    smolvla.policy.save_pretrained(folder / "policy")
    config = folder / "policy" / "config.json"
    content = json.loads(config.read_text())
    content["vlm_model_name"] = str(vlm)
    config.write_text(json.dumps(content))
    return folder / "policy"


def test_a_policy_is_loaded_from_a_folder(
    smolvla: LoadedPolicy, recordings: Recordings, tmp_path: Path
) -> None:
    with torch.no_grad():
        next(iter(smolvla.trainable().values())).add_(0.5)
    models = {"my-base": saved(smolvla, tmp_path)}
    spec = spec_for("smolvla", "my-base", 3, recordings.summary, models)
    assert spec.state_width == 9
    loaded = load_policy(spec, models=models, device="cpu")
    for name, weights in smolvla.weights().items():
        assert np.array_equal(loaded.weights()[name], weights)


def test_weights_that_the_policys_own_file_holds_are_not_looked_for_elsewhere(
    smolvla: LoadedPolicy, recordings: Recordings, tmp_path: Path
) -> None:
    """smolvla_base says load_vlm_weights: LeRobot would ask the hub for gigabytes."""
    folder = saved(smolvla, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "load_vlm_weights": True}))
    models = {"my-base": folder}
    spec = spec_for("smolvla", "my-base", 3, recordings.summary, models)
    loaded = load_policy(spec, models=models, device="cpu")
    vlm = loaded.policy.model.vlm_with_expert.vlm
    assert {parameter.dtype for parameter in vlm.parameters()} == {torch.bfloat16}
    assert all(weights.dtype == np.float32 for weights in loaded.weights().values())


def test_a_file_that_lacks_weights_is_refused(
    smolvla: LoadedPolicy, recordings: Recordings, tmp_path: Path
) -> None:
    folder = saved(smolvla, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(smolvla.trainable()))
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    models = {"my-base": folder}
    spec = spec_for("smolvla", "my-base", 3, recordings.summary, models)
    with pytest.raises(UnavailableError) as caught:
        load_policy(spec, models=models, device="cpu")
    assert caught.value.reason == "model_unavailable"


def test_bfloat16_weights_train_in_float32(
    smolvla: LoadedPolicy, recordings: Recordings, tmp_path: Path
) -> None:
    folder = saved(smolvla, tmp_path)
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(
        {n: t.bfloat16() if "lm_expert" in n else t for n, t in tensors.items()},
        path,
        metadata={"format": "pt"},
    )
    models = {"my-base": folder}
    spec = spec_for("smolvla", "my-base", 0, recordings.summary, models)
    loaded = load_policy(spec, models=models, device="cpu")
    assert {p.dtype for p in loaded.trainable().values()} == {torch.float32}


def test_a_folder_of_another_policy_is_refused(
    smolvla: LoadedPolicy, recordings: Recordings, tmp_path: Path
) -> None:
    models = {"my-base": saved(smolvla, tmp_path)}
    with pytest.raises(ConfigError, match="the run's policy is 'act'"):
        spec_for("act", "my-base", 0, recordings.summary, models)


def test_building_a_policy_silences_no_other_thread(capsys: pytest.CaptureFixture[str]) -> None:
    with _quiet():
        print("LeRobot talks")
        shown = threading.Thread(target=print, args=("a progress line",))
        shown.start()
        shown.join()
    print("afterwards")
    assert capsys.readouterr().out == "a progress line\nafterwards\n"


def test_a_folder_with_a_configuration_and_no_weights_is_refused(
    recordings: Recordings, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"type": "act"}')
    with pytest.raises(
        UnavailableError, match=r"without its weights \(model.safetensors is missing\); give"
    ):
        spec_for("act", "m", 0, recordings.summary, {"m": tmp_path})


def test_a_model_folder_without_a_model(recordings: Recordings, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="holds no model"):
        spec_for("smolvla", "mine", 0, recordings.summary, {"mine": tmp_path})


@pytest.mark.parametrize("name", ["/etc/passwd", "../x/y", "unknown"])
def test_a_path_is_not_a_model_name(recordings: Recordings, name: str) -> None:
    with pytest.raises(UnavailableError, match="is not known here"):
        spec_for("smolvla", name, 0, recordings.summary, models={})


def test_the_hub_out_of_reach(recordings: Recordings) -> None:
    with pytest.raises(UnavailableError) as error:
        spec_for("smolvla", "lerobot/smolvla_base", 0, recordings.summary, models={})
    assert error.value.reason == "hub_unreachable"


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="is not a device"):
        pick_device("gpu0")
    if not torch.cuda.is_available():
        assert pick_device("auto") == torch.device("cpu")
        with pytest.raises(UnavailableError, match="PyTorch sees none"):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("number", "reason", "says"),
    [
        (
            errno.EPERM,
            "forbidden",
            r"give user \d+ the right to write there or name",
        ),
        (
            errno.EACCES,
            "forbidden",
            r"give user \d+ the right to write there or name",
        ),
        (errno.ENOSPC, "disk_full", "free space there or name another folder"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_says_why(
    smolvla: LoadedPolicy,
    recordings: Recordings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    reason: str,
    says: str,
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(number, os.strerror(number), str(folder))

    folder, statistics = tmp_path / "checkpoint", recordings.finite_statistics()
    assert statistics is not None
    with pytest.raises(TryAgainError, match=f"{folder}: the checkpoint cannot.*{says}") as error:
        write_checkpoint(smolvla, statistics, folder, fail)
    assert error.value.reason == reason
    assert os.strerror(number) in error.value.message
    assert not list(tmp_path.iterdir())
