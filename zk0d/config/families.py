"""The policy families that a run can train, and what is known of each before it is loaded.

No torch and no pydantic here, because settings, messages, the command line and model cards read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        The key in its configuration that names another model, whose settings and tokenizer it
        needs.
    backbone
        The vision backbone whose ImageNet weights a new one begins with.
    embedding
        Bytes that are kept of a picture where its base's vision encoder is frozen; 0: the picture.
    steps
        Names of its own steps in the processors that LeRobot saves with it.
    needs
        A Python package that comes with the extra of zk0d that has the family's name.
    """

    policy_class: str
    usual: Usual
    base: str = NEW
    widest: int | None = None
    cameras: tuple[str, ...] = ()
    spares_cameras: bool = False
    reads_tokens: int = 0
    tokenizer: str = ""
    companion: str | None = None
    backbone: str | None = None
    embedding: int = 0
    steps: frozenset[str] = frozenset()
    needs: str = ""


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
        companion="vlm_model_name",
        embedding=64 * 960 * 2,  # tokens of a width, in bfloat16
        steps=frozenset({"smolvla_new_line_processor"}),
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
    ),
}
