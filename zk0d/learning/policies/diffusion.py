"""Diffusion policy: actions that are denoised, from what was seen in the last frames."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.pretrained import PreTrainedPolicy

from zk0d.learning.layout import ACTION
from zk0d.learning.policies.base import CHUNK, EXECUTE, LoadedPolicy
from zk0d.learning.policies.noise import TIME_STRATA, frame_noise, frame_uniform
from zk0d.learning.policies.several_frames import (
    camera_size,
    generators,
    resized,
    stacked,
    to_execute,
)


class Loaded(LoadedPolicy):
    """A diffusion policy in memory."""

    @classmethod
    def tiny_config(cls, width: int) -> DiffusionConfig:
        """A U-Net of two levels that denoises in five steps.

        It predicts the actions and not the noise: of so few steps most learn little otherwise.
        """
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
            prediction_type="sample",
            **_BACKBONE,
        )

    @classmethod
    def usual_config(cls) -> DiffusionConfig:
        """LeRobot's defaults, but for the ResNet18's normalization."""
        return DiffusionConfig(device="cpu", push_to_hub=False, **_BACKBONE)

    @classmethod
    def built(cls, config: PreTrainedConfig, backbone: str) -> PreTrainedPolicy:
        # What is recorded, or seen by a robot, at another resolution is resized to this one.
        config.resize_shape = camera_size(config)
        return super().built(config, backbone)

    def shrunk_images(self, frames: torch.Tensor) -> torch.Tensor:
        """As the policy resizes them: it stacks its cameras before, so all must have one size."""
        size = self.config.resize_shape or next(iter(self.config.image_features.values())).shape[1:]
        return resized(frames, size)

    def seeded_losses(
        self, batch: dict[str, Any], numbers: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Losses by row, each the mean over steps of the noise that are stratified per frame."""
        model, actions = self.policy.diffusion, batch[ACTION]
        seen = model._prepare_global_conditioning(stacked(batch, self.config))
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
            global_cond=model._prepare_global_conditioning(stacked(batch, self.config)),
            noise=frame_noise(episodes, frame, shape, seed=0).to(self.device),
            generator=generators(episodes, frame),
        )
        return to_execute(planned, config)


#: Batch normalization's means do not travel with the weights and would differ from node to node.
#: In its place LeRobot has group normalization, which ImageNet's weights do not fit.
_BACKBONE: dict[str, Any] = {"use_group_norm": True, "pretrained_backbone_weights": None}
