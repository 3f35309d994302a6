"""Batches out of the caches: as LeRobot's loader gives them, and ready for a policy."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.configs import PreTrainedConfig

from zk0d.config.cameras import camera_feature
from zk0d.learning.augmentation import Augment, augmented
from zk0d.learning.frames import FeatureCache, PixelCache
from zk0d.learning.layout import ACTION, BOOKKEEPING, STATE
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.recordings import Recordings
from zk0d.learning.statistics import Statistics

TOKENS = "observation.language.tokens"
TOKEN_MASK = "observation.language.attention_mask"
NORMALIZE_BLOCK = 4096  # rows per call of the preprocessor


class RecordedBatches:
    """Batches that equal, bit for bit, those of a DataLoader over a ``LeRobotDataset``.

    They can: numbers and pixels are copied as they are, and nothing is computed.

    Parameters
    ----------
    recordings
        The numbers.
    pixels
        The frames, or ``None`` for batches without images.
    config
        The policy's configuration: which steps it observes, and which actions a chunk has.
    """

    def __init__(
        self, recordings: Recordings, pixels: PixelCache | None, config: PreTrainedConfig
    ) -> None:
        self.recordings = recordings
        self.pixels = pixels
        self._chunk = torch.as_tensor(config.action_delta_indices)
        self._window = torch.as_tensor(config.observation_delta_indices or [0])
        # LeRobot's trainer leaves an episode's last frames out for a policy that says so.
        self._drop_last = getattr(config, "drop_n_last_frames", 0)
        # SmolVLA asks for the observation of "now" explicitly and gets it with a time axis.
        self._time_axis = config.observation_delta_indices is not None

    def __len__(self) -> int:
        return len(self.recordings)

    def action_rows(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of the action chunks, and where they run past the episode: ``(batch, chunk)``."""
        return self._rows(indices, self._chunk)

    def _rows(
        self, indices: torch.Tensor, offsets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = indices[:, None] + offsets[None]
        first = self.recordings.first[indices][:, None]
        last = self.recordings.last[indices][:, None]
        return rows.clamp(first, last), (rows > last) | (rows < first)

    def usable(self, bad: torch.Tensor) -> torch.Tensor:
        """Rows of which every observed frame and every action are good, shape ``(n,)``."""
        unusable = bad.clone()
        if self._drop_last:
            rows = torch.arange(len(self))
            unusable |= rows > self.recordings.last - self._drop_last
        for offsets in (self._window, self._chunk):
            rows, padding = self._rows(torch.arange(len(self)), offsets)
            unusable |= (bad[rows] & ~padding).any(1)
        return torch.nonzero(~unusable).flatten()

    def batch(self, indices: torch.Tensor) -> dict[str, Any]:
        """The frames at ``indices`` (int64, shape ``(batch,)``) with their action chunks."""
        batch: dict[str, Any] = {}
        rows, padding = self.action_rows(indices)
        observed, unobserved = self._rows(indices, self._window)
        for name, values in self.recordings.columns.items():
            if name == ACTION:
                batch[name], batch[f"{name}_is_pad"] = values[rows], padding
            elif self._time_axis and name.startswith("observation."):
                batch[name], batch[f"{name}_is_pad"] = values[observed], unobserved
            else:
                batch[name] = values[indices]
        if self.pixels is not None:
            for name, images in self.pixels.batch(observed).items():
                batch[name] = images.squeeze(1)  # LeRobot gives one picture without a time axis
                if self._time_axis:
                    batch[f"{name}_is_pad"] = unobserved
        batch["task"] = [self.recordings.tasks[i] for i in indices.tolist()]
        return batch


class PolicyBatches:
    """Batches ready for ``policy.forward``, on the policy's device.

    Normalization and tokens depend only on the frame and the run's statistics, so they are computed
    once for all frames; a batch is then a few gathers. Images come from the feature cache, or from
    the pixel cache as float in 0..1.
    """

    def __init__(
        self,
        recorded: RecordedBatches,
        loaded: LoadedPolicy,
        statistics: Statistics,
        features: FeatureCache | None = None,
    ) -> None:
        self.recorded = recorded
        self.features = features
        self._loaded = loaded
        self._preprocess, _ = loaded.processors(statistics)
        # A policy that normalizes images, such as ACT, goes through its processor batch by batch.
        self._per_batch = not loaded.normalized_once
        if not self._per_batch:
            self._normalize_once()

    def _normalize_once(self) -> None:
        columns, tasks = self.recorded.recordings.columns, self.recorded.recordings.tasks
        states, actions, tokens, masks = [], [], [], []
        for start in range(0, len(self.recorded), NORMALIZE_BLOCK):
            rows = slice(start, start + NORMALIZE_BLOCK)
            block = self._preprocess(
                {STATE: columns[STATE][rows], ACTION: columns[ACTION][rows], "task": tasks[rows]}
            )
            states.append(block[STATE])
            actions.append(block[ACTION])
            tokens.append(block[TOKENS].cpu())
            masks.append(block[TOKEN_MASK].cpu())
        width = max(block.shape[1] for block in tokens)
        self._state, self._action = torch.cat(states), torch.cat(actions)
        self._tokens = torch.cat([_widen(block, width) for block in tokens])
        self._mask = torch.cat([_widen(block, width) for block in masks])
        self._longest = int(self._mask.sum(1).max())

    def batch(self, indices: torch.Tensor, augment: Augment | None = None) -> dict[str, Any]:
        """The frames at ``indices`` (int64, shape ``(batch,)``, on the CPU).

        ``augment`` changes each row's pictures; there are none of those whose features are kept.
        """
        if self._per_batch:
            raw = self.recorded.batch(indices)
            for camera in self.recorded.recordings.cameras.values():
                name = camera_feature(camera)
                if raw[name].dtype == torch.uint8:
                    raw[name] = augmented(raw[name].float() / 255, augment)
            prepared: dict[str, Any] = self._preprocess(raw)
            return prepared
        rows, padding = self.recorded.action_rows(indices)
        # Instructions are padded on the right: what no row uses is cut off. On a CPU that is no row
        # of this batch; on a GPU no row at all, so that all batches have the same shapes.
        mask = self._mask[indices]
        length = int(mask.sum(1).max()) if self._loaded.device.type == "cpu" else self._longest
        batch = {
            STATE: self._state[self._loaded.sent(indices)],
            ACTION: self._action[self._loaded.sent(rows)],
            f"{ACTION}_is_pad": self._loaded.sent(padding),
            TOKENS: self._loaded.sent(self._tokens[indices, :length]),
            TOKEN_MASK: self._loaded.sent(mask[:, :length]),
        }
        if self.features is not None:
            assert augment is None
            for camera, values in self.features.batch(indices).items():
                batch[camera_feature(camera)] = self._loaded.sent(values)
        elif self.recorded.pixels is not None:
            for name, images in self.recorded.pixels.batch(indices).items():
                batch[name] = augmented(self._loaded.sent(images).float() / 255, augment)
        return batch

    @property
    def bookkeeping(self) -> dict[str, torch.Tensor]:
        """LeRobot's index columns, for sampling and for naming frames."""
        return {name: self.recorded.recordings.columns[name] for name in BOOKKEEPING}


def _widen(block: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(block, (0, width - block.shape[1]))
