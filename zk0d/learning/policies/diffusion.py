"""Diffusion policy: actions that are denoised, from what was seen in the last frames."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_IMAGES
from torchvision.transforms.functional import resize

from zk0d.errors import DataError
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.policies.base import CHUNK, EXECUTE, LoadedPolicy
from zk0d.learning.policies.noise import TIME_STRATA, frame_noise, frame_uniform


class Loaded(LoadedPolicy):
    """A diffusion policy in memory."""

    @classmethod
    def tiny_config(cls, width: int) -> DiffusionConfig:
        """A U-Net of two levels that denoises in five steps."""
        return DiffusionConfig(
            device="cpu",
            push_to_hub=False,
            horizon=CHUNK,
            n_action_steps=EXECUTE,
            drop_n_last_frames=CHUNK - EXECUTE - 1,
            down_dims=(width, 2 * width),
            diffusion_step_embed_dim=width,
            noise_scheduler_type="DDIM",
            num_inference_steps=5,
            **_BACKBONE,
        )

    @classmethod
    def usual_config(cls) -> DiffusionConfig:
        """LeRobot's defaults, but for the ResNet18's normalization."""
        return DiffusionConfig(device="cpu", push_to_hub=False, **_BACKBONE)

    @classmethod
    def built(cls, config: PreTrainedConfig, backbone: str) -> PreTrainedPolicy:
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
        # What is recorded, or seen by a robot, at another resolution is resized to this one.
        ((_, *size),) = shapes
        config.resize_shape = tuple(size)
        return super().built(config, backbone)

    def shrunk_images(self, frames: torch.Tensor) -> torch.Tensor:
        """As the policy resizes them: it stacks its cameras before, so all must have one size."""
        size = self.config.resize_shape or next(iter(self.config.image_features.values())).shape[1:]
        if tuple(frames.shape[2:]) == tuple(size):
            return frames
        resized: torch.Tensor = resize(frames.float(), list(size))
        return resized.round().to(torch.uint8)

    def seeded_losses(
        self, batch: dict[str, Any], numbers: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Losses by row, each the mean over steps of the noise that are stratified per frame."""
        model, actions = self.policy.diffusion, batch[ACTION]
        seen = model._prepare_global_conditioning(self._stacked(batch))
        steps = model.noise_scheduler.config.num_train_timesteps
        mean = torch.zeros(len(numbers), dtype=torch.float64)
        for stratum in range(TIME_STRATA):
            noise = frame_noise(numbers, stratum, tuple(actions.shape[1:]), seed).to(self.device)
            step = (frame_uniform(numbers, stratum, seed) * steps).long().to(self.device)
            noisy = model.noise_scheduler.add_noise(actions, noise, step)
            denoised = model.unet(noisy, step, global_cond=seen)
            target = noise if self.config.prediction_type == "epsilon" else actions
            off = (denoised - target).square()
            if self.config.do_mask_loss_for_padding:
                off = off * ~batch[f"{ACTION}_is_pad"][..., None]
            mean += off.mean((1, 2)).double().cpu() / TIME_STRATA
        return mean

    def plan(self, batch: dict[str, Any], episodes: torch.Tensor, frame: int) -> torch.Tensor:
        model, config = self.policy.diffusion, self.config
        shape = (config.horizon, config.action_feature.shape[0])
        planned: torch.Tensor = model.conditional_sample(
            len(episodes),
            global_cond=model._prepare_global_conditioning(self._stacked(batch)),
            noise=frame_noise(episodes, frame, shape, seed=0).to(self.device),
            # Of rows beside each other, each draws for itself what its steps add.
            generator=[_generator(int(episode), frame) for episode in episodes],
        )
        now = config.n_obs_steps - 1
        return planned[:, now : now + config.n_action_steps]

    def _stacked(self, batch: dict[str, Any]) -> dict[str, Any]:
        """With all cameras in one entry, as LeRobot has it; what has no past gets itself as one."""
        seen = dict(batch)
        keys = [STATE, *self.config.image_features]
        if seen[STATE].ndim == 2:
            past = self.config.n_obs_steps
            seen |= {key: torch.stack([seen[key]] * past, dim=1) for key in keys}
        seen[OBS_IMAGES] = torch.stack([seen[key] for key in keys[1:]], dim=-4)
        return seen


#: Batch normalization's means do not travel with the weights and would differ from node to node.
#: In its place LeRobot has group normalization, which ImageNet's weights do not fit.
_BACKBONE: dict[str, Any] = {"use_group_norm": True, "pretrained_backbone_weights": None}


def _generator(episode: int, frame: int) -> torch.Generator:
    seed = np.random.SeedSequence([episode, frame]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(seed))
