"""The policy families that a run can train, and what is known of each before it is loaded.

No torch and no pydantic here, because settings, messages, the command line and model cards read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PolicyFamily:
    """A policy class of LeRobot.

    Attributes
    ----------
    policy_class
        LeRobot's class by its full name, as a model card imports it.
    widest
        The most values that it takes as a state or an action; ``None`` is any number.
    spares_cameras
        Whether it learns from recordings that lack some of its cameras.
    companion
        The key in its configuration that names another model, whose settings and tokenizer it
        needs.
    steps
        Names of its own steps in the processors that LeRobot saves with it.
    """

    policy_class: str
    widest: int | None = None
    spares_cameras: bool = False
    companion: str | None = None
    steps: frozenset[str] = frozenset()


#: By LeRobot's name for them.
FAMILIES: Mapping[str, PolicyFamily] = {
    "smolvla": PolicyFamily(
        policy_class="lerobot.policies.smolvla.modeling_smolvla.SmolVLAPolicy",
        widest=32,  # it pads states and actions to this
        spares_cameras=True,
        companion="vlm_model_name",
        steps=frozenset({"smolvla_new_line_processor"}),
    ),
    "act": PolicyFamily(policy_class="lerobot.policies.act.modeling_act.ACTPolicy"),
}
