"""Multi-task diffusion transformer: denoised actions, from CLIP's view of pictures and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from scipy.stats import beta

from zk0d.errors import UnavailableError
from zk0d.learning.layout import ACTION
from zk0d.learning.policies import tiny_clip
from zk0d.learning.policies.base import CHUNK, EXECUTE, LoadedPolicy, actions_that_count
from zk0d.learning.policies.noise import TIME_STRATA, frame_noise, frame_uniform
from zk0d.learning.policies.several_frames import (
    camera_size,
    generators,
    resized,
    stacked,
    to_execute,
)


class Loaded(LoadedPolicy):
    """A multi-task diffusion transformer in memory; its text encoder is frozen."""

    rate_factors: ClassVar[Mapping[str, float]] = {"observation_encoder.vision_encoder": 0.1}

    @classmethod
    def tiny_config(cls, width: int) -> MultiTaskDiTConfig:
        """A transformer of two layers that denoises in five steps, over a toy CLIP."""
        clip = tiny_clip.folder(width).name
        return MultiTaskDiTConfig(
            device="cpu",
            push_to_hub=False,
            horizon=CHUNK,
            n_action_steps=EXECUTE,
            noise_scheduler_type="DDIM",
            num_inference_steps=5,
            hidden_dim=width,
            num_layers=2,
            num_heads=4,
            timestep_embed_dim=width,
            vision_encoder_name=clip,
            text_encoder_name=clip,
            tokenizer_max_length=tiny_clip.LONGEST,
            **_whole_picture(tiny_clip.IMAGE_SIZE),
        )

    @classmethod
    def usual_config(cls) -> MultiTaskDiTConfig:
        """LeRobot's defaults, but for the crop: CLIP sees the whole picture."""
        return MultiTaskDiTConfig(device="cpu", push_to_hub=False, **_whole_picture(224))

    @classmethod
    def built(cls, config: PreTrainedConfig, backbone: str) -> PreTrainedPolicy:
        camera_size(config)
        try:
            return super().built(config, backbone)
        except OSError as error:
            raise UnavailableError(
                f"a new '{config.type}' begins with the weights of {config.vision_encoder_name},"
                " which are not on this machine; name it under fetch-models and run zk0d fetch.",
                reason="model_unavailable",
            ) from error

    def shrunk_images(self, frames: torch.Tensor) -> torch.Tensor:
        """As the policy resizes them: it stacks its cameras before, so all must have one size."""
        return resized(frames, self.config.image_resize_shape or camera_size(self.config))

    def weight(self, batch: Mapping[str, Any]) -> torch.Tensor:
        masked = self.config.do_mask_loss_for_padding
        return actions_that_count(batch) if masked else super().weight(batch)

    def seeded_losses(
        self, batch: dict[str, Any], numbers: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Losses by row, each the mean over times that are stratified per frame."""
        actions = batch[ACTION]
        seen = self.policy.observation_encoder.encode(stacked(batch, self.config))
        mean = torch.zeros(len(numbers), dtype=torch.float64)
        for stratum in range(TIME_STRATA):
            noise = frame_noise(numbers, stratum, tuple(actions.shape[1:]), seed).to(self.device)
            uniform = frame_uniform(numbers, stratum, seed)
            mixed, time, target = self._mixed(actions, noise, uniform)
            found = self.policy.noise_predictor(mixed, time, conditioning_vec=seen)
            off = (found - target).square().mean(2)
            if self.config.do_mask_loss_for_padding:
                good = ~batch[f"{ACTION}_is_pad"]
                losses = (off * good).sum(1) / good.sum(1).clamp_min(1)
            else:
                losses = off.mean(1)
            mean += losses.double().cpu() / TIME_STRATA
        return mean

    def plan(self, batch: dict[str, Any], episodes: torch.Tensor, frame: int) -> torch.Tensor:
        policy, objective, config = self.policy, self.policy.objective, self.config
        seen = policy.observation_encoder.encode(stacked(batch, config))
        shape = (config.horizon, config.action_feature.shape[0])
        planned = frame_noise(episodes, frame, shape, seed=0).to(self.device)
        if config.is_flow_matching:
            times = torch.linspace(0, 1, config.num_integration_steps + 1, device=self.device)
            euler = config.integration_method == "euler"
            integrate = objective._euler_integrate if euler else objective._rk4_integrate
            planned = integrate(policy.noise_predictor, planned, times, seen)
            return to_execute(planned, config)
        each = generators(episodes, frame)
        scheduler = objective.noise_scheduler
        scheduler.set_timesteps(objective.num_inference_steps)
        for step in scheduler.timesteps:
            now = torch.full((len(episodes),), int(step), dtype=torch.long, device=self.device)
            found = policy.noise_predictor(planned, now, conditioning_vec=seen)
            planned = scheduler.step(found, step, planned, generator=each).prev_sample
        return to_execute(planned, config)

    def _mixed(
        self, actions: torch.Tensor, noise: torch.Tensor, uniform: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions with noise, at which time of denoising, and what is to be found in them."""
        config = self.config
        if config.is_diffusion:
            scheduler = self.policy.objective.noise_scheduler
            steps = scheduler.config.num_train_timesteps
            step = (uniform * steps).long().to(self.device)
            target = noise if config.prediction_type == "epsilon" else actions
            return scheduler.add_noise(actions, noise, step), step, target
        drawn = uniform.numpy()
        if config.timestep_sampling_strategy == "beta":
            quantile = beta.ppf(
                drawn, config.timestep_sampling_alpha, config.timestep_sampling_beta
            )
            drawn = config.timestep_sampling_s * (1.0 - quantile)
        time = torch.from_numpy(drawn).float().to(self.device)
        share, rest = time[:, None, None], 1 - config.sigma_min
        mixed = share * actions + (1 - rest * share) * noise
        return mixed, time, actions - rest * noise


def _whole_picture(size: int) -> dict[str, Any]:
    """LeRobot's default is a square out of the picture, at random: most of it would be unseen."""
    return {"image_resize_shape": (size, size), "image_crop_shape": None}
