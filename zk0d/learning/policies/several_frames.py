"""What policies share that see several frames at once and denoise actions from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import OBS_IMAGES
from torchvision.transforms.functional import resize

from zk0d.errors import DataError
from zk0d.learning.layout import STATE


def camera_size(config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width of the cameras, which LeRobot stacks.

    Raises
    ------
    DataError
        If they are of several sizes.
    """
    shapes = {feature.shape for feature in config.image_features.values()}
    if len(shapes) > 1:
        told = ", ".join(
            f"{key.removeprefix(f'{OBS_IMAGES}.')} {shape.shape[2]} x {shape.shape[1]}"
            for key, shape in config.image_features.items()
        )
        raise DataError(
            f"policy '{config.type}' takes cameras of one size, and these are of several"
            f" ({told}); leave some out, or train another policy."
        )
    ((_, height, width),) = shapes
    return height, width


def resized(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Frames ``(n, C, H, W)``, uint8, at that height and width."""
    if tuple(frames.shape[2:]) == tuple(size):
        return frames
    made: torch.Tensor = resize(frames.float(), list(size))
    return made.round().to(torch.uint8)


def stacked(batch: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """With all cameras in one entry, as LeRobot has it; what has no past gets itself as one."""
    seen = dict(batch)
    keys = [STATE, *config.image_features]
    if seen[STATE].ndim == 2:
        past = config.n_obs_steps
        seen |= {key: torch.stack([seen[key]] * past, dim=1) for key in keys}
    seen[OBS_IMAGES] = torch.stack([seen[key] for key in keys[1:]], dim=-4)
    return seen


def to_execute(planned: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Of denoised actions ``(rows, horizon, width)`` those from now on that are executed."""
    now = config.n_obs_steps - 1
    return planned[:, now : now + config.n_action_steps]


def generators(episodes: torch.Tensor, frame: int) -> list[torch.Generator]:
    """Of rows beside each other, each draws for itself what its denoising steps add."""
    return [_generator(int(episode), frame) for episode in episodes]


def _generator(episode: int, frame: int) -> torch.Generator:
    seed = np.random.SeedSequence([episode, frame]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(seed))
