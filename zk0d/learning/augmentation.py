"""Changed pictures in training: LeRobot's own image transforms, with its trainer's settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lerobot.transforms import ImageTransforms, ImageTransformsConfig

#: Changes a picture, or one frame's pictures of several steps, in 0..1: ``(..., C, H, W)``.
Augment = Callable[[torch.Tensor], torch.Tensor]


def augmentation() -> Augment:
    """LeRobot's transforms: up to three a picture, of brightness, contrast, saturation, hue,
    sharpness and position. What is random in them comes from PyTorch's generator of the CPU.
    """
    made: Augment = ImageTransforms(ImageTransformsConfig(enable=True))
    return made


def augmented(images: torch.Tensor, augment: Augment | None) -> torch.Tensor:
    """A batch of pictures in 0..1, ``(rows, ..., C, H, W)``, each row changed by itself."""
    if augment is None:
        return images
    return torch.stack([augment(each) for each in images])
