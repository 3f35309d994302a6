"""SmolVLA: a frozen vision-language model, and an expert that flow matching trains."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import resize_with_pad

from zk0d.learning.policies import tiny_vlm
from zk0d.learning.policies.base import (
    CHUNK,
    EXECUTE,
    LoadedPolicy,
    actions_that_count,
    add_weights,
)
from zk0d.learning.policies.noise import TIME_STRATA, frame_noise, frame_time


class Loaded(LoadedPolicy):
    """SmolVLA in memory."""

    unused = ("lm_head",)  # the head that makes words
    normalized_once = True
    recordable = True

    @classmethod
    def tiny_config(cls, width: int) -> SmolVLAConfig:
        """With LeRobot's default freezing: vision and language frozen, the expert trains."""
        return SmolVLAConfig(
            vlm_model_name=tiny_vlm.folder(width).name,
            load_vlm_weights=False,
            device="cpu",
            push_to_hub=False,
            resize_imgs_with_padding=(tiny_vlm.IMAGE_SIZE, tiny_vlm.IMAGE_SIZE),
            chunk_size=CHUNK,
            n_action_steps=EXECUTE,
            num_vlm_layers=tiny_vlm.LAYERS,
            tokenizer_max_length=24,
            num_steps=5,
        )

    @classmethod
    def from_folder(cls, folder: Path, config: PreTrainedConfig) -> PreTrainedPolicy:
        # These would be fetched, gigabytes, only to be overwritten by the policy's own file.
        spared, config.load_vlm_weights = config.load_vlm_weights, False
        policy = super().from_folder(folder, config)
        if spared:
            for parameter in policy.model.vlm_with_expert.vlm.parameters():
                parameter.data = parameter.data.bfloat16()  # as LeRobot would have loaded them
        return policy

    @property
    def frozen_vision(self) -> bool:
        vlm = self._vlm.get_vlm_model()
        parts = [*vlm.vision_model.parameters(), *vlm.connector.parameters()]
        return not any(parameter.requires_grad for parameter in parts)

    def shrunk_images(self, frames: torch.Tensor) -> torch.Tensor:
        """As the policy resizes them, without the padding that it adds: 36 % less of 640 x 480."""
        size = self.config.resize_imgs_with_padding
        height, width = frames.shape[2:]
        ratio = max(width / size[0], height / size[1]) if size else 1.0
        if ratio <= 1.0:
            return frames
        smaller = torch.nn.functional.interpolate(
            frames.float(),
            (int(height / ratio), int(width / ratio)),
            mode="bilinear",
            align_corners=False,
        )
        return smaller.round().to(torch.uint8)

    @torch.no_grad()
    def embed_images(self, frames: torch.Tensor) -> torch.Tensor:
        images = frames.to(self.device).float() / 255
        size = self.config.resize_imgs_with_padding
        if size is not None:
            images = resize_with_pad(images, size[1], size[0], pad_value=0)
        embedded: torch.Tensor = self._vlm.embed_image(images * 2.0 - 1.0)
        return embedded

    def vision_key(self) -> str:
        vlm = self._vlm.get_vlm_model()
        settings = {
            name: value
            for name, value in vlm.vision_model.config.to_dict().items()
            if not name.startswith("_") and isinstance(value, int | float | str)
        }
        size, scale = self.config.resize_imgs_with_padding, vlm.connector.scale_factor
        facts = [settings, size, scale, self.device.type]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for part in (vlm.vision_model, vlm.connector):
            add_weights(digest, part.state_dict())
        return f"smolvla {digest.hexdigest()}"

    @contextlib.contextmanager
    def embedded_images(self) -> Iterator[None]:
        policy, vlm = self.policy, self._vlm

        def prepared(batch: dict[str, torch.Tensor]) -> tuple[list[Any], list[Any]]:
            given = [batch[key] for key in policy.config.image_features if key in batch]
            return given, [
                torch.ones(len(image), dtype=torch.bool, device=image.device) for image in given
            ]

        # Instance attributes shadow the methods: nothing of lerobot's classes is changed.
        policy.prepare_images = prepared
        vlm.embed_image = _identity
        try:
            yield
        finally:
            del policy.prepare_images, vlm.embed_image

    @contextlib.contextmanager
    def whole_images(self) -> Iterator[None]:
        """Within it, the vision encoder takes every image as whole, without looking into it.

        transformers finds out from the values of a mask which patches are there, and waits for the
        GPU to do so; a policy's images are padded to one size, so all of them are. The result is
        the same.
        """
        vlm = self._vlm
        vision, connector = vlm.get_vlm_model().vision_model, vlm.get_vlm_model().connector
        positions: dict[torch.Size, torch.Tensor] = {}

        def embed(image: torch.Tensor) -> torch.Tensor:
            pixels = image.to(vision.dtype)
            if pixels.shape[1:] not in positions:
                positions[pixels.shape[1:]] = _positions(vision, pixels[:1])
            patches = vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
            known = vision.embeddings.position_embedding(positions[pixels.shape[1:]])
            encoded = vision.encoder(inputs_embeds=patches + known, attention_mask=None)
            embedded: torch.Tensor = connector(vision.post_layernorm(encoded.last_hidden_state))
            return embedded

        vlm.embed_image = embed  # shadows the method, as above
        try:
            yield
        finally:
            del vlm.embed_image

    def weight(self, batch: Mapping[str, Any]) -> torch.Tensor:
        return actions_that_count(batch)

    def drawn(self, rows: int) -> dict[str, torch.Tensor]:
        model = self.policy.model
        noise = model.sample_noise((rows, *self._chunk), self.device)
        # LeRobot draws times on the CPU and would wait with them until the GPU is idle.
        return {"noise": noise, "time": self.sent(model.sample_time(rows, torch.device("cpu")))}

    def seeded_losses(
        self, batch: dict[str, Any], numbers: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Losses by row, each the mean over times that are stratified per frame."""
        mean = torch.zeros(len(numbers), dtype=torch.float64)
        for stratum in range(TIME_STRATA):
            losses, _ = self.policy.forward(
                dict(batch),
                noise=frame_noise(numbers, stratum, self._chunk, seed).to(self.device),
                time=frame_time(numbers, stratum, seed).to(self.device),
                reduction="none",
            )
            mean += losses.double().cpu() / TIME_STRATA
        return mean

    def plan(self, batch: dict[str, Any], episodes: torch.Tensor, frame: int) -> torch.Tensor:
        noise = frame_noise(episodes, frame, self._chunk, seed=0).to(self.device)
        planned: torch.Tensor = self.policy.predict_action_chunk(batch, noise=noise)
        return planned

    @property
    def _vlm(self) -> Any:
        return self.policy.model.vlm_with_expert

    @property
    def _chunk(self) -> tuple[int, int]:
        """Shape of the actions that are predicted at once, padded to the widest."""
        return self.config.chunk_size, self.config.max_action_dim


@torch.no_grad()
def _positions(vision: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The numbers that the encoder gives the patches of one whole image: ``(1, patches)``."""
    seen: list[torch.Tensor] = []
    hook = vision.embeddings.position_embedding.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    try:
        vision(pixel_values=pixels, patch_attention_mask=None)
    finally:
        hook.remove()
    return seen[0]


def _identity(image: torch.Tensor) -> torch.Tensor:
    return image
