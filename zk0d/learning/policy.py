"""A LeRobot policy by name: built from a seed, or loaded from a folder or the hub's cache."""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import json
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from safetensors import safe_open

from zk0d.config.cameras import camera_feature, camera_name
from zk0d.config.families import BUILT, NEW, TINY, family_of, packaged
from zk0d.config.machine import Precision
from zk0d.config.names import CONFIG_FILE, POLICY_FILES, WEIGHTS_FILE
from zk0d.errors import ConfigError, TryAgainError, UnavailableError, Zk0dError, disk_trouble
from zk0d.learning import adapters, backbones, nvidia
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.policies import family, package_version
from zk0d.learning.policies.base import LoadedPolicy, add_weights
from zk0d.learning.spec import Adapter, PolicySpec, RecordingsSummary
from zk0d.learning.untrusted import refuse_code


def spec_for(
    policy: str,
    model_name: str,
    seed: int,
    like: RecordingsSummary | None,
    models: Mapping[str, Path],
    revisions: Mapping[str, str | None] | None = None,
    adapter: Adapter | None = None,
    packages: Collection[str] = (),
) -> PolicySpec:
    """The shape of a run's policy.

    One that is built takes its shape from the coordinator's evaluation recordings (``like``), a
    pretrained one from its own configuration; the frame rate always comes from the recordings.
    """
    family(policy, packages)
    backbone = ""
    if model_name in BUILT:
        if like is None:
            raise ConfigError(
                f"model-name '{model_name}' takes its shape from the coordinator's evaluation"
                " recordings; add an [[evaluation]] table to server.toml, or name a pretrained"
                " model, which has its own."
            )
        cameras, state, action = like.cameras, like.state_width, like.action_width
        usual = family_of(policy).backbone
        if model_name == NEW and usual and backbones.is_here(usual):
            backbone = usual
    else:
        folder = _model_folder(model_name, models, revisions or {})
        refuse_code(folder, model_name, policy)
        config = _pretrained_config(policy, folder)
        cameras = {
            camera_name(key): tuple(feature.shape) for key, feature in config.image_features.items()
        }
        state = config.input_features[STATE].shape[0]
        action = config.output_features[ACTION].shape[0]
    return PolicySpec(
        policy=policy,
        package_version=package_version(policy),
        model_name=model_name,
        seed=seed,
        fps=like.fps if like else 30,
        state_width=state,
        action_width=action,
        cameras=cameras,
        backbone=backbone,
        adapter=adapter,
    )


def load_policy(
    spec: PolicySpec,
    *,
    models: Mapping[str, Path] | None = None,
    revisions: Mapping[str, str | None] | None = None,
    device: str = "auto",
    others: Sequence[str] = (),
    precision: Precision = "auto",
    packages: Collection[str] = (),
) -> LoadedPolicy:
    """Build or load the policy that ``spec`` means.

    Parameters
    ----------
    models
        Model names that this machine's settings map to folders.
    revisions
        The hub's revisions that model names are pinned to.
    others
        Devices that take a share of each batch in training.
    precision
        ``auto`` is bfloat16 on a GPU that computes in it, else float32.
    packages
        Packages of policies that this machine's settings allow.

    Raises
    ------
    ConfigError
        If the policy is of a package that is not allowed here.
    UnavailableError
        If the model is not here and the hub cannot be reached, or CUDA is asked for and absent.
    Zk0dError
        With reason ``model_mismatch`` if the weights are not those of ``spec.sha256``.
    TryAgainError
        If a disk is full.
    """
    where = pick_device(device)
    kind = family(spec.policy, packages)
    if spec.package_version != (here := package_version(spec.policy)):
        raise Zk0dError(
            f"policy '{spec.policy}' is of version {spec.package_version} at the coordinator and of"
            f" {here} here; install the coordinator's.",
            reason="model_mismatch",
        )
    torch.manual_seed(spec.seed)
    if spec.model_name in BUILT:
        width = TINY.get(spec.model_name)
        config = kind.tiny_config(width) if width else kind.usual_config()
        config.input_features = {
            STATE: PolicyFeature(FeatureType.STATE, (spec.state_width,)),
            **{
                camera_feature(camera): PolicyFeature(FeatureType.VISUAL, shape)
                for camera, shape in sorted(spec.cameras.items())
            },
        }
        config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (spec.action_width,))}
        if spec.backbone and not backbones.is_here(spec.backbone):
            raise UnavailableError(
                f"the run's policy begins with ImageNet's weights of {spec.backbone}, and"
                f" {backbones.path(spec.backbone)} is missing or not whole; name"
                f" '{spec.backbone}' under fetch-models and run zk0d fetch, or download"
                f" {backbones.URLS[spec.backbone]} there.",
                reason="model_unavailable",
            )
        with _quiet():
            policy = kind.built(config, spec.backbone)
    else:
        folder = _model_folder(spec.model_name, models or {}, revisions or {})
        refuse_code(folder, spec.model_name, spec.policy)
        config = _pretrained_config(spec.policy, folder)
        config.device = str(where)
        try:
            with _quiet():
                policy = kind.from_folder(folder, config)
        except (OSError, ValueError, RuntimeError) as error:
            _check_disk(error, spec.model_name)
            companion = family_of(spec.policy).companion
            built_on = companion and companion.keys[-1]
            more = f" with the configuration and tokenizer of its '{built_on}'" if built_on else ""
            raise UnavailableError(
                f"model '{spec.model_name}': {folder} cannot be loaded"
                f" ({str(error).splitlines()[0]}); fetch it again{more}.",
                reason="model_unavailable",
            ) from error
        _check_whole(policy, kind.unused, spec.model_name, folder)
    config.device = str(where)
    policy.to(where)
    for parameter in policy.parameters():
        # AdamW's steps vanish in bfloat16: what trains is kept in float32.
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if spec.adapter:
        spec = spec.model_copy(update={"adapter": adapters.attach(policy, spec.adapter)})
    loaded = kind(spec, policy, where, pick_precision(precision, where))
    found = policy_sha256(loaded)
    if spec.sha256 and spec.sha256 != found:
        raise Zk0dError(
            f"model '{spec.model_name}' is not the coordinator's: {found[:12]} here,"
            f" {spec.sha256[:12]} there; use the same revision of the model and of zk0d.",
            reason="model_mismatch",
        )
    loaded.spec = spec.model_copy(update={"sha256": found})
    loaded.replicas = tuple(replica(loaded, pick_device(each)) for each in others)
    return loaded


def replica(loaded: LoadedPolicy, device: torch.device) -> LoadedPolicy:
    """The same policy on another device."""
    policy = copy.deepcopy(loaded.policy).to(device)
    policy.config.device = str(device)
    return replace(loaded, policy=policy, device=device, replicas=())


def policy_sha256(loaded: LoadedPolicy) -> str:
    """SHA-256 over names, dtypes, shapes and content of every weight, and a built tokenizer."""
    digest = hashlib.sha256()
    companion = family_of(loaded.spec.policy).companion
    if loaded.spec.model_name in BUILT and companion:
        tokenizer = Path(getattr(loaded.config, companion.keys[0])) / "tokenizer.json"
        if tokenizer.is_file():  # the hub's own is what its name says
            digest.update(hashlib.sha256(tokenizer.read_bytes()).hexdigest().encode())
    add_weights(digest, loaded.policy.state_dict())
    return digest.hexdigest()


def pick_device(device: str) -> torch.device:
    """``auto`` is the first GPU if there is one, else the CPU.

    Raises
    ------
    UnavailableError
        If PyTorch cannot use the GPU that is asked for, or with ``auto`` the one that is there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if found := nvidia.trouble():
            raise UnavailableError(
                f"device is 'auto', and this machine's NVIDIA GPU cannot be used: {found.cause};"
                f" {found.cure}, or set device to 'cpu' to compute on the processor."
            )
        return torch.device("cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise ConfigError(
            f"learner.device: {device!r} is not a device; use auto, cpu, cuda or cuda:N."
        ) from None
    if picked.type == "cuda" and not torch.cuda.is_available():
        found = nvidia.trouble()
        cause, cure = (f" ({found.cause})", found.cure) if found else ("", "check nvidia-smi")
        raise UnavailableError(
            f"learner.device: a GPU is asked for, but PyTorch sees none{cause}; {cure}, or set the"
            " device to cpu."
        )
    if picked.type == "cuda" and (picked.index or 0) >= (count := torch.cuda.device_count()):
        raise UnavailableError(
            f"learner: {device} is asked for, and PyTorch sees {count} GPU{'s' * (count > 1)};"
            f" use one of cuda:0 to cuda:{count - 1}."
        )
    return picked


def limit_gpu_memory(device: str, share: float) -> None:
    """Let this process take at most ``share`` of the GPU's memory."""
    where = pick_device(device)
    if where.type == "cuda" and share < 1.0:
        torch.cuda.set_per_process_memory_fraction(share, where)


def release_gpu_memory() -> None:
    """Return to the driver what PyTorch keeps for reuse, so that others on this GPU can have it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def pick_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """In what products of matrices are computed on ``device``."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if able else torch.float32


def _model_folder(
    name: str, models: Mapping[str, Path], revisions: Mapping[str, str | None]
) -> Path:
    if name in models:
        folder = Path(models[name]).expanduser()
        _check_files(folder, f"models.{name}")
        return folder
    if name.count("/") != 1 or name.startswith(("/", ".")):
        raise UnavailableError(
            f"model '{name}' is not known here; map it to a folder under [models], give a hub name"
            f" such as lerobot/smolvla_base, or one that is built ({', '.join(BUILT)}).",
            reason="model_unavailable",
        )
    what: dict[str, Any] = {"revision": revisions.get(name), "allow_patterns": list(POLICY_FILES)}
    try:
        folder = Path(snapshot_download(name, local_files_only=True, **what))
        if (folder / WEIGHTS_FILE).is_file():
            return folder
    except (OSError, ValueError):
        pass  # not fetched before
    try:
        folder = Path(snapshot_download(name, **what))
    except Exception as error:  # the hub's errors are of many kinds
        _check_disk(error, name)
        raise UnavailableError(
            f"model '{name}' is not on this machine and could not be fetched from the hub"
            f" ({type(error).__name__}); zk0d fetch gets what fetch-models names, or map it to a"
            " folder under [models].",
            reason="hub_unreachable",
        ) from error
    _check_files(folder, f"model '{name}'")
    return folder


def _check_disk(error: Exception, name: str) -> None:
    """Refuse to go on if ``error`` is a full disk's, which to fetch the model again does not cure.

    A model that may not be read is none of that.
    """
    if trouble := disk_trouble(error):
        raise TryAgainError(
            f"model '{name}' cannot be loaded because a disk cannot be written ({trouble}); free"
            " space there, or in the folder for temporary files (TMPDIR).",
            reason="disk_full",
        ) from error


def _check_files(folder: Path, what: str) -> None:
    """Refuse a folder that holds no policy, or one without its weights."""
    if not (folder / CONFIG_FILE).is_file():
        raise UnavailableError(
            f"{what}: {folder} holds no model ({CONFIG_FILE} is missing).",
            reason="model_unavailable",
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise UnavailableError(
            f"{what}: {folder} holds a policy's configuration without its weights"
            f" ({WEIGHTS_FILE} is missing); give the folder of a whole checkpoint.",
            reason="model_unavailable",
        )


def _check_whole(
    policy: PreTrainedPolicy, unused: tuple[str, ...], name: str, folder: Path
) -> None:
    """Refuse a file that lacks weights that are used: LeRobot leaves what is missing at random."""
    with safe_open(folder / WEIGHTS_FILE, "pt") as file:
        kept = set(file.keys())
    # Of weights that share memory, the file has one name.
    named = list(policy.named_parameters(remove_duplicate=False))
    found = {id(parameter) for key, parameter in named if key in kept}
    missing = [
        key
        for key, weight in named
        if id(weight) not in found and not any(part in key for part in unused)
    ]
    if missing:
        raise UnavailableError(
            f"model '{name}': {folder} lacks weights ({missing[0]} and {len(missing) - 1} more);"
            " use one that was saved whole.",
            reason="model_unavailable",
        )


def _pretrained_config(policy: str, folder: Path) -> PreTrainedConfig:
    # LeRobot knows the configurations of the families that were loaded before this.
    _, wanted = packaged(policy) or ("", policy)
    try:
        kind = json.loads((folder / CONFIG_FILE).read_bytes())["type"]
        config = PreTrainedConfig.from_pretrained(folder) if kind == wanted else None
    except Exception as error:  # draccus and the hub raise many kinds
        raise UnavailableError(
            f"{folder}: the model's config.json cannot be read ({type(error).__name__}).",
            reason="model_unavailable",
        ) from error
    if config is None:
        raise ConfigError(f"the run's policy is '{policy}', but {folder} holds '{kind}'.")
    companion = family_of(policy).companion
    for key in companion.keys if companion else ():
        named = getattr(config, key)
        # A checkpoint of ours carries it; LeRobot looks below the current folder.
        for place in (folder / named, Path(named)) if named else ():
            if place.is_dir():
                setattr(config, key, str(place.absolute()))
                break
    return config


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """LeRobot prints and draws bars while it builds a policy; a log is no place for it."""
    if os.environ.get("ZK0D_DEBUG"):
        yield
        return
    silent = _OtherThreads(sys.stdout), _OtherThreads(sys.stderr)
    with contextlib.redirect_stdout(silent[0]), contextlib.redirect_stderr(silent[1]):
        yield


class _OtherThreads:
    """An output for all threads but the one that makes this."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._silent = threading.get_ident()

    def write(self, text: str) -> int:
        if threading.get_ident() == self._silent:
            return len(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
