"""Low-rank adapters: a policy that is frozen, and small matrices that train in its place.

Beside the weights W of a layer stand A and B, and the layer computes with W + BA (Hu et al. 2021).
Here A is the same on all machines and frozen, as W is, and B trains (FFA-LoRA, Sun et al. 2024).
So the mean of the nodes' products BA is the product of the mean of their B: federated averaging of
what travels is that of the policies. With A trained, too, it is not.

Whoever takes a policy's trainable weights, to send, average or correct them, knows nothing of this.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from zk0d.config.names import CONFIG_FILE
from zk0d.errors import ConfigError, UnavailableError, Zk0dError
from zk0d.learning.spec import Adapter

#: In a checkpoint: the adapter as PEFT keeps it, with what LeRobot needs to load it on its base.
FOLDER = "adapter"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: PEFT's name for an adapter that has none, and what it puts before the names in its file.
_NAME, _PREFIX = "default", "base_model.model."
#: Makes A what it is, besides the layer's name and shape; another one is another base.
_SEED = "zk0d adapter 1"


@torch.no_grad()
def attach(policy: PreTrainedPolicy, wanted: Adapter) -> Adapter:
    """Freeze the policy and put an adapter that changes nothing yet beside its layers.

    Returns
    -------
    The adapter with its layers and the norm of their weights, as ``wanted`` if that has them.

    Raises
    ------
    UnavailableError
        If PEFT is not installed.
    ConfigError
        If LeRobot names no layers of such a policy, or the rank is above the width of all.
    Zk0dError
        With reason ``model_mismatch`` if a layer that is named is not here.
    """
    if find_spec("peft") is None:
        raise UnavailableError(
            f"adapter '{wanted.kind}' needs the package peft, which is not installed here; pip"
            f" install 'zk0d[{wanted.kind}]'."
        )
    # Half a second, which a policy that trains itself need not wait.
    from peft import LoraConfig, inject_adapter_in_model

    layers = _layers(policy, wanted.targets)
    ranks = {name: min(wanted.rank, *layer.weight.shape) for name, layer in layers.items()}
    widest = max(layers, key=lambda name: min(layers[name].weight.shape))
    if wanted.rank > max(ranks.values()):
        raise ConfigError(
            f"adapter-rank: {wanted.rank} is above the width of every layer that gets an adapter,"
            f" so each would be trained whole; the widest is '{widest}' with {ranks[widest]}."
        )
    norm = math.sqrt(sum(float(layer.weight.double().square().sum()) for layer in layers.values()))
    inject_adapter_in_model(
        LoraConfig(
            r=wanted.rank,
            lora_alpha=wanted.rank,  # so BA is neither enlarged nor shrunk
            target_modules=list(layers),
            rank_pattern=(own := {_exactly(n): r for n, r in ranks.items() if r != wanted.rank}),
            alpha_pattern=own,
        ),
        policy,
    )
    trained = []
    for name, layer in _adapted(policy):
        a, b = layer.lora_A[_NAME], layer.lora_B[_NAME]
        a.weight.data = torch.from_numpy(_drawn(name, *a.weight.shape)).to(layer.weight.device)
        b.weight.data = torch.zeros_like(b.weight, dtype=torch.float32)
        trained += [a.weight, b.weight] if wanted.trains_a else [b.weight]
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    if wanted.targets:
        return wanted
    return wanted.model_copy(update={"targets": tuple(sorted(layers)), "norm": norm})


def rate_factor(policy: PreTrainedPolicy, name: str) -> float:
    """At which multiple of the run's rate a matrix trains.

    AdamW moves each value of B by about the rate, and so each weight of the layer by that times the
    length of a column of A, ``sqrt(rank / width)``. This undoes it: at any rank, and in a layer of
    any width, a step changes the layer's weights by as much as one of the policy itself would.
    """
    own, _, kind = name.partition(".lora_")
    if not kind.startswith("B"):
        return 1.0
    layer: Any = policy.get_submodule(own)
    return math.sqrt(layer.in_features / layer.r[_NAME])


@contextlib.contextmanager
def merged(policy: PreTrainedPolicy) -> Iterator[None]:
    """Within it, the policy is a plain one whose weights are W + BA; afterwards it is as before."""
    before: list[tuple[Any, str, Any, torch.nn.Parameter]] = []
    for name, layer in _adapted(policy):
        base = layer.base_layer
        above, _, own = name.rpartition(".")
        before.append((parent := policy.get_submodule(above), own, layer, base.weight))
        with torch.no_grad():
            whole = base.weight.float() + layer.get_delta_weight(_NAME)
        base.weight = torch.nn.Parameter(whole, requires_grad=False)
        setattr(parent, own, base)
    try:
        yield
    finally:
        for parent, own, layer, weight in before:
            layer.base_layer.weight = weight
            setattr(parent, own, layer)


def save(policy: PreTrainedPolicy, adapter: Adapter, base: str, checkpoint: Path) -> None:
    """Write the adapter into its folder in a checkpoint whose configuration is there.

    ``PeftModel.from_pretrained(policy, folder)`` loads it on the base. With LeRobot's processors
    beside it, LeRobot's programs do so, too, by ``--policy.path=folder``.

    Parameters
    ----------
    base
        The name of the model that it was trained on.
    """
    folder = checkpoint / FOLDER
    folder.mkdir()
    config = policy.peft_config[_NAME]
    config.save_pretrained(folder)
    _change(
        folder / ADAPTER_CONFIG,
        base_model_name_or_path=base,
        inference_mode=True,
        target_modules=list(adapter.targets),  # PEFT's own order differs from time to time
    )
    tensors = {
        _PREFIX + f"{name}.{kind}.weight": getattr(layer, kind)[_NAME].weight.detach().cpu()
        for name, layer in _adapted(policy)
        for kind in ("lora_A", "lora_B")
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_bytes((checkpoint / CONFIG_FILE).read_bytes())
    _change(folder / CONFIG_FILE, use_peft=True)


def kept_in(checkpoint: Path) -> Adapter | None:
    """The adapter that a checkpoint was trained with, without its norm; ``None`` if with none.

    Raises
    ------
    ConfigError
        If its file cannot be read.
    """
    path = checkpoint / FOLDER / ADAPTER_CONFIG
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        return Adapter(
            kind=content["peft_type"].lower(),
            rank=content["r"],
            targets=tuple(sorted(content["target_modules"])),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy the checkpoint again.") from None


def weights_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The matrices of a checkpoint's adapter, by the names that they have in a policy."""
    found = load_file(checkpoint / FOLDER / ADAPTER_WEIGHTS)
    return {
        f"{name.removesuffix('weight')}{_NAME}.weight".removeprefix(_PREFIX): tensor
        for name, tensor in found.items()
    }


def _layers(policy: PreTrainedPolicy, targets: tuple[str, ...]) -> dict[str, torch.nn.Linear]:
    """The layers of these names; by default those that LeRobot names."""
    modules = dict(policy.named_modules())
    if not targets:
        targets = tuple(name for name in modules if _lerobots(policy)(name))
    wrong = [name for name in targets if not isinstance(modules.get(name), torch.nn.Linear)]
    if wrong:
        raise Zk0dError(
            f"the run's adapter is beside layer '{wrong[0]}', which is none of this policy's linear"
            " layers; use the same versions of the model, LeRobot and zk0d.",
            reason="model_mismatch",
        )
    return {name: modules[name] for name in sorted(targets)}


def _lerobots(policy: PreTrainedPolicy) -> Callable[[str], bool]:
    """Whether LeRobot, by default, adapts the layer of a name."""
    usual = policy._get_default_peft_targets() or {}
    pattern = usual.get("target_modules")
    if not isinstance(pattern, str) or usual.get("modules_to_save"):
        raise ConfigError(
            f"adapter: LeRobot does not say which layers of {policy.name} to adapt, or asks to"
            " train others whole beside them; leave it out, which trains the policy itself."
        )
    return lambda name: re.fullmatch(pattern, name) is not None


def _adapted(policy: PreTrainedPolicy) -> list[tuple[str, Any]]:
    """PEFT's layers by the names of those that they stand for, in the names' order."""
    return sorted((n, m) for n, m in policy.named_modules() if hasattr(m, "lora_A"))


def _exactly(name: str) -> str:
    """A pattern that PEFT finds in that name alone."""
    return "^" + name.replace(".", r"\.")


def _drawn(name: str, rank: int, width: int) -> NDArray[np.float32]:
    """A of a layer: rows whose length is 1 in the mean, equal to the bit on every machine.

    So BA is about as long as B, and an update can be compared to the layer's weights.
    """
    seed = hashlib.sha256(f"{_SEED} {name} {rank} {width}".encode()).digest()
    numbers = np.random.default_rng(int.from_bytes(seed, "big")).random((rank, width))
    return ((2 * numbers - 1) * math.sqrt(3 / width)).astype(np.float32)


def _change(path: Path, **values: Any) -> None:
    content: Mapping[str, Any] = json.loads(path.read_bytes()) | values
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
