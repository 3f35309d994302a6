"""ACT (action chunking with transformers): trained as a whole, its ResNet too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.pretrained import PreTrainedPolicy

from zk0d.learning.policies.base import CHUNK, EXECUTE, LoadedPolicy, actions_that_count


class Loaded(LoadedPolicy):
    """ACT in memory."""

    backbone_prefix = "model.backbone"

    @classmethod
    def tiny_config(cls, width: int) -> ACTConfig:
        """ACT over a ResNet18 without pretrained weights."""
        return ACTConfig(
            device="cpu",
            push_to_hub=False,
            pretrained_backbone_weights=None,
            chunk_size=CHUNK,
            n_action_steps=EXECUTE,
            dim_model=width,
            n_heads=4,
            dim_feedforward=2 * width,
            n_encoder_layers=2,
            n_decoder_layers=1,
            n_vae_encoder_layers=2,
            latent_dim=8,
        )

    @classmethod
    def usual_config(cls) -> ACTConfig:
        """LeRobot's defaults: a ResNet18, chunks of 100 actions."""
        return ACTConfig(device="cpu", push_to_hub=False)

    @classmethod
    def from_folder(cls, folder: Path, config: PreTrainedConfig) -> PreTrainedPolicy:
        # These would be fetched, only to be overwritten by the policy's own file.
        config.pretrained_backbone_weights = None
        return super().from_folder(folder, config)

    def weight(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """That of its first part; the other, of the latent's distribution, is a mean over rows."""
        return actions_that_count(batch)
