"""Noise that is a function of a frame's number, so that an evaluation can be repeated exactly."""

from __future__ import annotations

import numpy as np
import torch

TIME_STRATA = 4  # draws of time per frame; together they cover (0, 1) evenly


def frame_noise(
    numbers: torch.Tensor, stratum: int, shape: tuple[int, ...], seed: int
) -> torch.Tensor:
    """Standard normal noise that depends only on seed, frame and stratum: ``(rows, *shape)``."""
    return torch.stack(
        [
            torch.from_numpy(
                np.random.default_rng([seed, int(number), stratum]).standard_normal(
                    shape, np.float32
                )
            )
            for number in numbers
        ]
    )


def frame_uniform(numbers: torch.Tensor, stratum: int, seed: int) -> torch.Tensor:
    """Uniform over 0..1, stratified per frame, float64: ``(rows,)``."""
    start = np.array([np.random.default_rng([seed, int(number)]).random() for number in numbers])
    return torch.from_numpy((start + stratum / TIME_STRATA) % 1.0)


def frame_time(numbers: torch.Tensor, stratum: int, seed: int) -> torch.Tensor:
    """SmolVLA's time (Beta(1.5, 1), scaled to 0.001..1), stratified per frame: ``(rows,)``."""
    uniform = frame_uniform(numbers, stratum, seed).numpy()
    return torch.from_numpy((uniform ** (1 / 1.5) * 0.999 + 0.001).astype(np.float32))
