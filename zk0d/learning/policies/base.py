"""A policy in memory: what every family does alike, and in what families may differ."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import NewLineTaskProcessorStep, TokenizerProcessorStep
from lerobot.utils import IMAGENET_STATS
from numpy.typing import NDArray

from zk0d.errors import Zk0dError
from zk0d.learning import adapters
from zk0d.learning.layout import ACTION, STATE
from zk0d.learning.spec import PolicySpec
from zk0d.learning.statistics import Statistics

CHUNK = 12  # actions that the tiny ones predict at once
EXECUTE = 6  # actions executed before the next plan
_BY_QUANTILES = frozenset({NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10})


@dataclass
class LoadedPolicy:
    """A policy in memory, on its device.

    A family's file defines a subclass ``Loaded`` with :meth:`tiny_config` and those of the members
    down to :meth:`plan` in which it is not as here: a policy that is trained as a whole,
    over pixels, kernel by kernel, and whose loss is not random in evaluation mode.
    """

    spec: PolicySpec
    policy: PreTrainedPolicy
    device: torch.device
    precision: torch.dtype = torch.float32
    #: The same on other devices, which train a share of each batch (``learning.split_step``).
    replicas: tuple[LoadedPolicy, ...] = ()

    #: Parts of the names of weights that are never used, and that a file may lack.
    unused: ClassVar[tuple[str, ...]] = ()
    #: Whether state, action and instruction can be normalized once for all batches: a frame is one
    #: observation, the instruction becomes tokens, and the processor leaves images as they are.
    normalized_once: ClassVar[bool] = False
    #: Whether a training step can be recorded as a CUDA graph.
    recordable: ClassVar[bool] = False
    #: What the names of its vision backbone's weights begin with, if that trains at its own rate.
    backbone_prefix: ClassVar[str | None] = None
    #: What the names of weights begin with that train at a multiple of the rate, and that multiple.
    rate_factors: ClassVar[Mapping[str, float]] = {}

    @classmethod
    def tiny_config(cls, width: int) -> PreTrainedConfig:
        """The configuration, without its features, of one for a CPU, built from the seed."""
        raise NotImplementedError

    @classmethod
    def usual_config(cls) -> PreTrainedConfig:
        """The same of one of LeRobot's usual size, for families that are built new."""
        raise NotImplementedError

    @classmethod
    def built(cls, config: PreTrainedConfig, backbone: str) -> PreTrainedPolicy:
        """Build a policy from PyTorch's seed.

        Parameters
        ----------
        backbone
            The vision backbone that begins with ImageNet's weights, which are in torch hub's cache;
            empty: with random ones.
        """
        if hasattr(config, "pretrained_backbone_weights"):
            usual = config.pretrained_backbone_weights
            config.pretrained_backbone_weights = usual if backbone else None
        policy = get_policy_class(config.type)(config)
        if hasattr(config, "pretrained_backbone_weights"):
            # A checkpoint has all weights: whoever loads it need not download these.
            config.pretrained_backbone_weights = None
        return policy

    @classmethod
    def from_folder(cls, folder: Path, config: PreTrainedConfig) -> PreTrainedPolicy:
        """Load the policy in ``folder``, whose own file holds all of its weights."""
        return get_policy_class(config.type).from_pretrained(folder, config=config)

    @property
    def frozen_vision(self) -> bool:
        """Whether image embeddings never change, so that they can be computed once.

        This needs ``normalized_once``.
        """
        return False

    def shrunk_images(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames ``(n, C, H, W)``, uint8, as small as the policy makes them, and never larger."""
        return frames

    def embed_images(self, frames: torch.Tensor) -> torch.Tensor:
        """The image embeddings of uint8 frames ``(n, C, H, W)``: ``(n, tokens, width)``."""
        raise NotImplementedError

    def vision_key(self) -> str:
        """A hash of all that decides what :meth:`embed_images` makes of a frame."""
        raise NotImplementedError

    def embedded_images(self) -> contextlib.AbstractContextManager[None]:
        """Within it, image entries of a batch are embeddings and no pixels."""
        raise NotImplementedError

    def whole_images(self) -> contextlib.AbstractContextManager[None]:
        """Within it, training over pixels may rely on it that no image has missing parts."""
        return contextlib.nullcontext()

    def drawn(self, rows: int) -> dict[str, torch.Tensor]:
        """What ``forward`` would draw at random for so many rows, as its arguments by name."""
        return {}

    def weight(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Of how many values a batch's loss is the mean, a scalar on the batch's device.

        The loss of two batches is the mean of theirs by these weights. Here it is the rows.
        """
        return torch.ones(len(batch[ACTION]), device=batch[ACTION].device).sum()

    def sent(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` on its device, without waiting for what that is doing."""
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def seeded_losses(
        self, batch: dict[str, Any], numbers: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Losses in evaluation mode, float64, on the CPU: by row ``(rows,)``, or their mean ``()``.

        What is random in a row's loss is a function of ``seed`` and the row's number in the
        dataset, so that two policies are compared under the same noise.
        """
        loss: torch.Tensor = self.policy.forward(batch)[0]
        return loss.double().cpu()

    def plan(self, batch: dict[str, Any], episodes: torch.Tensor, frame: int) -> torch.Tensor:
        """The next actions of each row, still normalized: ``(rows, chunk, width)``.

        What is random in them is a function of the number of the row's episode and of the
        ``frame`` that all rows have reached.
        """
        planned: torch.Tensor = self.policy.predict_action_chunk(batch)
        return planned

    def autocast(self) -> torch.autocast:
        """Within it, products of matrices are computed in ``precision``; weights stay float32."""
        # A cache of converted weights would be recorded in a CUDA graph, and be stale after a step.
        return torch.autocast(
            self.device.type,
            dtype=self.precision if self.precision != torch.float32 else None,
            enabled=self.precision != torch.float32,
            cache_enabled=False,
        )

    def cut_instructions(
        self, instructions: Collection[str], statistics: Statistics
    ) -> tuple[int, int]:
        """How many of the instructions are longer than the policy reads, and its tokens."""
        preprocess, _ = self.processors(statistics)
        read = list(instructions)
        for step in preprocess.steps:
            if isinstance(step, NewLineTaskProcessorStep):
                read = [step.complementary_data({"task": each})["task"] for each in read]
            if isinstance(step, TokenizerProcessorStep):
                tokens = step.input_tokenizer(read, verbose=False)["input_ids"]
                return sum(len(each) > step.max_length for each in tokens), step.max_length
        return 0, 0

    def rate_factor(self, name: str) -> float:
        """At which multiple of the rate the weight of that name trains.

        As in LeRobot's trainer, and an adapter's so that the rate means for it what it does here.
        """
        if self.spec.adapter:
            return adapters.rate_factor(self.policy, name)
        own = (f for prefix, f in self.rate_factors.items() if name.startswith(prefix))
        return next(own, 1.0)

    @property
    def quantiles(self) -> bool:
        """Whether it normalizes the state or the action by quantiles."""
        modes = self.config.normalization_mapping
        return not _BY_QUANTILES.isdisjoint(modes.get(kind) for kind in ("STATE", "ACTION"))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Its own, and those of its replicas."""
        return (self.device, *(each.device for each in self.replicas))

    @property
    def config(self) -> PreTrainedConfig:
        return self.policy.config

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that train, and travel, by name; sorted, so that order means nothing."""
        return {
            name: parameter
            for name, parameter in sorted(self.policy.named_parameters())
            if parameter.requires_grad
        }

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the trainable weights, float32."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True).numpy()
            for name, parameter in self.trainable().items()
        }

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Overwrite the trainable weights; names and shapes were checked by the manifest."""
        for name, parameter in self.trainable().items():
            # torch wants to write where it reads; a read-only view is copied first.
            parameter.copy_(torch.from_numpy(np.require(weights[name], requirements="W")))

    def processors(self, statistics: Statistics) -> tuple[Any, Any]:
        """LeRobot's pre- and post-processor with exactly these statistics."""
        stats: dict[str, dict[str, NDArray[np.float32]]] = dict(statistics.for_training())
        for name, feature in (
            (STATE, self.config.input_features[STATE]),
            (ACTION, self.config.output_features[ACTION]),
        ):
            # LeRobot skips normalization in silence when a key is missing.
            if name not in stats or stats[name]["mean"].shape != tuple(feature.shape):
                raise Zk0dError(
                    f"the run's statistics have no '{name}' of width {feature.shape[0]}.",
                    reason="statistics_mismatch",
                )
            if self.quantiles and "q01" not in stats[name]:
                raise Zk0dError(
                    "the policy normalizes by quantiles, and no node told how its values spread; at"
                    " least one must (share-histograms in its settings).",
                    reason="no_statistics",
                )
        if self.config.normalization_mapping.get("VISUAL") is not NormalizationMode.IDENTITY:
            for key in self.config.image_features:  # as LeRobot's trainer does
                stats[key] = {k: np.array(v, np.float32) for k, v in IMAGENET_STATS.items()}
        made: tuple[Any, Any] = make_pre_post_processors(self.config, dataset_stats=stats)
        return made


def actions_that_count(batch: Mapping[str, Any]) -> torch.Tensor:
    """A loss's weight, if it is a mean over the actions that lie in their episode."""
    count: torch.Tensor = (~batch[f"{ACTION}_is_pad"]).sum()
    return count.float()


def add_weights(digest: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Add names, dtypes, shapes and content of weights to a hash."""
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(content.numpy())
