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
    companion
        The key in its configuration that names another model, whose settings and tokenizer it
        needs.
    """

    policy_class: str
    companion: str | None = None


#: By LeRobot's name for them.
FAMILIES: Mapping[str, PolicyFamily] = {
    "smolvla": PolicyFamily(
        policy_class="lerobot.policies.smolvla.modeling_smolvla.SmolVLAPolicy",
        companion="vlm_model_name",
    ),
    "act": PolicyFamily(policy_class="lerobot.policies.act.modeling_act.ACTPolicy"),
}
