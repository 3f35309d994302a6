"""X-VLA: a transformer with soft prompts that denoises actions, over Florence-2's encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lerobot.configs import NormalizationMode
from lerobot.policies.xvla.configuration_xvla import XVLAConfig

from zk0d.learning.policies import tiny_vlm
from zk0d.learning.policies.base import CHUNK, EXECUTE, LoadedPolicy
from zk0d.learning.policies.noise import TIME_STRATA, frame_noise, frame_uniform

#: LeRobot's times of noise end below 1 by this.
_LAST = 1e-5


class Loaded(LoadedPolicy):
    """X-VLA in memory."""

    # LeRobot's trainer goes by the letters "vlm" in a name, which the projection has, too.
    rate_factors: ClassVar[Mapping[str, float]] = {
        "model.vlm.": 0.1,
        "model.transformer.vlm_proj.": 0.1,
    }

    @classmethod
    def tiny_config(cls, width: int) -> XVLAConfig:
        """Two layers over a toy Florence-2 of two stages, for actions of any kind."""
        return XVLAConfig(
            device="cpu",
            push_to_hub=False,
            chunk_size=CHUNK,
            n_action_steps=EXECUTE,
            action_mode="auto",
            # Its base was trained on positions in metres; joints in degrees need a scale.
            normalization_mapping={
                "VISUAL": NormalizationMode.IDENTITY,
                "STATE": NormalizationMode.MEAN_STD,
                "ACTION": NormalizationMode.MEAN_STD,
            },
            florence_config=_florence(width),
            tokenizer_name=tiny_vlm.folder(width).name,
            tokenizer_max_length=24,
            hidden_size=width,
            depth=2,
            num_heads=4,
            mlp_ratio=2.0,
            num_domains=2,
            len_soft_prompts=4,
            num_denoising_steps=5,
            resize_imgs_with_padding=(tiny_vlm.IMAGE_SIZE, tiny_vlm.IMAGE_SIZE),
        )

    def seeded_losses(
        self, batch: dict[str, Any], numbers: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Losses by row, each the mean over times that are stratified per frame."""
        model, (seen, proprio, domain) = self.policy.model, self._seen(batch)
        actions = self.policy._prepare_action_targets(batch).to(proprio.dtype)
        mean = torch.zeros(len(numbers), dtype=torch.float64)
        for stratum in range(TIME_STRATA):
            noise = frame_noise(numbers, stratum, tuple(actions.shape[1:]), seed).to(actions)
            time = (frame_uniform(numbers, stratum, seed).to(actions)) % (1 - _LAST)
            share = time[:, None, None]
            noisy = noise * share + actions * (1 - share)
            own, noisy = model.action_space.preprocess(proprio, noisy)
            found = model.transformer(
                domain_id=domain, action_with_noise=noisy, t=time, proprio=own, **seen
            )
            # LeRobot's losses are means over a batch: each row is one.
            for row in range(len(numbers)):
                one = slice(row, row + 1)
                losses = model.action_space.compute_loss(found[one], actions[one])
                mean[row] += torch.stack([*losses.values()]).sum().double().cpu() / TIME_STRATA
        return mean

    def plan(self, batch: dict[str, Any], episodes: torch.Tensor, frame: int) -> torch.Tensor:
        model, (seen, proprio, domain) = self.policy.model, self._seen(batch)
        shape = (model.chunk_size, model.dim_action)
        noise = frame_noise(episodes, frame, shape, seed=0).to(proprio)
        planned = torch.zeros_like(noise)
        steps = max(1, self.config.num_denoising_steps)
        for step in range(steps, 0, -1):
            share = step / steps
            time = torch.full((len(episodes),), share, device=noise.device, dtype=noise.dtype)
            mixed = noise * share + planned * (1 - share)
            own, mixed = model.action_space.preprocess(proprio, mixed)
            planned = model.transformer(
                domain_id=domain, action_with_noise=mixed, proprio=own, t=time, **seen
            )
        done: torch.Tensor = model.action_space.postprocess(planned)
        return done

    def _seen(
        self, batch: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        """What the encoder makes of pictures and words, the state, and the numbers of robots."""
        model, given = self.policy.model, self.policy._build_model_inputs(batch)
        dtype = model._get_target_dtype()
        images = given["image_input"].to(dtype)
        seen = model.forward_vlm(given["input_ids"], images, given["image_mask"])
        return seen, given["proprio"].to(dtype), given["domain_id"]


def _florence(width: int) -> dict[str, Any]:
    return {
        "vision_config": {
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [8, 3],
            "patch_padding": [0, 0],
            "patch_prenorm": [False, True],
            "embed_dim": [width // 2, width],
            "num_heads": [2, 4],
            "num_groups": [2, 4],
            "window_size": 4,
            "mlp_ratio": 2.0,
            "drop_path_rate": 0.0,
            "projection_dim": width,
        },
        "text_config": {
            "model_type": "bart",
            "d_model": width,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 2 * width,
            "decoder_ffn_dim": 2 * width,
            "vocab_size": len(tiny_vlm.tokenizer()),
            "max_position_embeddings": 128,
        },
    }
