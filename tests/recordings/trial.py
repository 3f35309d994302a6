"""What the table and the tests ask of a dataset and of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from zk0d.errors import DataError
from zk0d.learning.inspection import inspect, inspect_pictures
from zk0d.learning.recordings import open_recordings


def said_of(folder: Path) -> tuple[bool, str]:
    """Whether a federation can train on it, and what ``zk0bot data check --videos`` says."""
    try:
        recordings = open_recordings(f"local:{folder}")
        remarks = [*inspect(recordings).remarks, *inspect_pictures(recordings)]
    except DataError as error:
        return False, error.message
    wrong = [remark for remark in remarks if remark.severity == "wrong"]
    return not wrong, "\n".join(f"{each.check}: {each.text}" for each in wrong or remarks)


def loads_in_lerobot(checkpoint: Path) -> None:
    """LeRobot alone loads a checkpoint and acts on an observation."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(checkpoint)
    config.device = "cpu"
    policy = get_policy_class(config.type).from_pretrained(checkpoint, config=config).eval()
    before, after = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    state = torch.zeros(1, *config.input_features["observation.state"].shape)
    shown = {key: torch.rand(1, *each.shape) for key, each in config.image_features.items()}
    with torch.no_grad():
        observation = {"observation.state": state, "task": ["pick up the cube"], **shown}
        action = after(policy.select_action(before(observation)))
    assert action.shape == (1, *config.output_features["action"].shape)
    assert action.isfinite().all()
