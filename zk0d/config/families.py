"""The policy families that a run can train, and what is known of each before it is loaded.

No torch and no pydantic here, because settings, messages, the command line and model cards read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

#: Small models that are built from a run's seed: how wide, in entries of a token's vector.
TINY: Mapping[str, int] = {"tiny": 64, "tiny-wide": 128}
#: One of the family's usual size that is built from the seed.
NEW = "new"
BUILT = (*TINY, NEW)


@dataclass(frozen=True)
class Usual:
    """How a family is trained, unless a run's settings say otherwise.

    ``betas`` are how much of Adam's two moments stays from step to step; no setting changes them.
    """

    initial_lr: float
    weight_decay: float
    warmup_steps: int
    batch_size: int
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Companion:
    """Another model that a policy is built on.

    Attributes
    ----------
    keys
        The keys in the policy's configuration that name it; all of them name the same one.
    word
        What a checkpoint's own copy of it is called; LeRobot takes no CLIP without "clip" in it.
    weights
        Whether LeRobot loads its weights, too, before the policy's own file overwrites them.
    """

    keys: tuple[str, ...]
    word: str = "vlm"
    weights: bool = False


@dataclass(frozen=True)
class PolicyFamily:
    """A policy class of LeRobot.

    Attributes
    ----------
    policy_class
        LeRobot's class by its full name, as a model card imports it.
    usual
        Its usual rates and batch.
    base
        The published model that training begins with; one that is built new where there is none.
    widest
        The most values that it takes as a state or an action; ``None`` is any number.
    cameras
        What its base calls its cameras.
    spares_cameras
        Whether it learns from recordings that lack some of its cameras.
    reads_tokens
        So many tokens of an instruction are read by its base; 0: it reads none.
    tokenizer
        The model on the hub whose tokenizer its base has.
    companion
        Another model, whose settings and tokenizer it needs.
    backbone
        The vision backbone whose ImageNet weights a new one begins with.
    encoder
        The model on the hub whose weights a new one begins with, and LeRobot asks for; empty: none.
    embedding
        Bytes that are kept of a picture where its base's vision encoder is frozen; 0: the picture.
    steps
        Names of its own steps in the processors that LeRobot saves with it.
    needs
        A Python package that must be installed.
    cure
        How one installs it.
    adapts
        Whether LeRobot says which of its layers get low-rank adapters.
    """

    policy_class: str
    usual: Usual
    base: str = NEW
    widest: int | None = None
    cameras: tuple[str, ...] = ()
    spares_cameras: bool = False
    reads_tokens: int = 0
    tokenizer: str = ""
    companion: Companion | None = None
    backbone: str | None = None
    encoder: str = ""
    embedding: int = 0
    steps: frozenset[str] = frozenset()
    needs: str = ""
    cure: str = ""
    adapts: bool = False


CLIP = "openai/clip-vit-base-patch16"

#: By LeRobot's name for them.
FAMILIES: Mapping[str, PolicyFamily] = {
    "smolvla": PolicyFamily(
        policy_class="lerobot.policies.smolvla.modeling_smolvla.SmolVLAPolicy",
        usual=Usual(
            initial_lr=1e-4, weight_decay=1e-10, warmup_steps=20, batch_size=32, betas=(0.9, 0.95)
        ),
        base="lerobot/smolvla_base",
        widest=32,  # it pads states and actions to this
        cameras=("camera1", "camera2", "camera3"),
        spares_cameras=True,
        reads_tokens=48,
        tokenizer="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        companion=Companion(keys=("vlm_model_name",)),
        embedding=64 * 960 * 2,  # tokens of a width, in bfloat16
        steps=frozenset({"smolvla_new_line_processor"}),
        adapts=True,
    ),
    "act": PolicyFamily(
        policy_class="lerobot.policies.act.modeling_act.ACTPolicy",
        usual=Usual(initial_lr=1e-5, weight_decay=1e-4, warmup_steps=0, batch_size=8),
        backbone="resnet18",
    ),
    "diffusion": PolicyFamily(
        policy_class="lerobot.policies.diffusion.modeling_diffusion.DiffusionPolicy",
        usual=Usual(
            initial_lr=1e-4, weight_decay=1e-6, warmup_steps=500, batch_size=8, betas=(0.95, 0.999)
        ),
        needs="diffusers",
        cure="pip install 'zk0d[diffusion]'",
    ),
    "multi_task_dit": PolicyFamily(
        policy_class=("lerobot.policies.multi_task_dit.modeling_multi_task_dit.MultiTaskDiTPolicy"),
        usual=Usual(
            initial_lr=2e-5, weight_decay=0.0, warmup_steps=0, batch_size=8, betas=(0.95, 0.999)
        ),
        reads_tokens=77,
        tokenizer=CLIP,
        companion=Companion(
            keys=("vision_encoder_name", "text_encoder_name"), word="clip", weights=True
        ),
        encoder=CLIP,
        needs="diffusers",
        cure="pip install 'zk0d[multi_task_dit]'",
    ),
    "xvla": PolicyFamily(
        policy_class="lerobot.policies.xvla.modeling_xvla.XVLAPolicy",
        usual=Usual(
            initial_lr=1e-4, weight_decay=0.0, warmup_steps=20, batch_size=8, betas=(0.9, 0.99)
        ),
        base="lerobot/xvla-base",
        widest=20,  # of its actions; a state may have 32 values
        reads_tokens=64,
        tokenizer="facebook/bart-large",
        companion=Companion(keys=("tokenizer_name",), word="words"),
        steps=frozenset({"xvla_image_to_float", "xvla_imagenet_normalize", "xvla_add_domain_id"}),
    ),
}

_REWARDS = "it learns from rewards, which recordings of demonstrations lack"
_FIXED_SIZE = (
    "LeRobot fixes its size at billions of weights, so no test of zk0d could train one and load its"
    " checkpoint"
)
_LARGE = "it stands on a large model that zk0d was not tried with"
#: LeRobot's other policies, and why each is not trained here.
UNTRAINED: Mapping[str, str] = {
    "tdmpc": _REWARDS,
    "gaussian_actor": _REWARDS,
    "vqbet": (
        "it first learns codes for actions in a phase of its own, and LeRobot keeps them, and the"
        " count that ends the phase, outside the weights that nodes send"
    ),
    "pi0": _FIXED_SIZE,
    "pi05": _FIXED_SIZE,
    "pi0_fast": _FIXED_SIZE,
    "groot": _LARGE,
    "eo1": _LARGE,
    "evo1": _LARGE,
    "fastwam": _LARGE,
    "lingbot_va": _LARGE,
    "molmoact2": _LARGE,
    "vla_jepa": _LARGE,
    "wall_x": _LARGE,
}

#: A policy of another Python package, which LeRobot calls a plugin: the package, and the type under
#: which it registers the policy there.
PACKAGED: Final = r"(lerobot_policy_[a-z0-9_]+):([a-z][a-z0-9_]*)"


def packaged(policy: str) -> tuple[str, str] | None:
    """The package and LeRobot's name of such a policy; ``None`` if it is one of zk0d's own."""
    found = re.fullmatch(PACKAGED, policy)
    return (found[1], found[2]) if found else None


def family_of(policy: str) -> PolicyFamily:
    """What is known of a policy: one of :data:`FAMILIES`, or of another package.

    Of the latter zk0d knows nothing. A run sets the rates that its authors recommend.
    """
    other = packaged(policy)
    if other is None:
        return FAMILIES[policy]
    return PolicyFamily(
        policy_class="",
        usual=Usual(initial_lr=1e-4, weight_decay=0.0, warmup_steps=20, batch_size=8),
        needs=other[0],
        cure=f"pip install {other[0]}",
    )
