"""A dataset made ready for one policy: frames decoded or embedded, unusable ones counted out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

import torch

from zk0d.config.machine import CacheSettings
from zk0d.errors import DataError
from zk0d.learning.batches import PolicyBatches, RecordedBatches
from zk0d.learning.frames import BadFrames, FeatureCache, FrameBudget, PixelCache
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.progress import Progress
from zk0d.learning.recordings import Recordings
from zk0d.learning.spec import check_fit
from zk0d.learning.statistics import Statistics


class PreparedRecordings:
    """What stays in memory between the rounds of a run.

    Parameters
    ----------
    cache
        How much memory frames may take, and whether a frozen encoder's outputs replace them.
    max_bad_frames
        How many frames may be unusable.
    holdout_episodes
        How many episodes, the last, are kept out of training and statistics; or which.
    episodes
        Only these are decoded, and of no others are there batches; all, if there are none.
    augments
        Whether training changes pictures, so that no encoder's outputs can replace them.
    tell
        Takes where frames will be, and how far decoding is.

    Attributes
    ----------
    usable
        Rows to sample from, int64, shape ``(n,)``.
    held_out
        Usable rows of the held-out episodes, int64, shape ``(m,)``.
    held_out_episodes
        Their numbers.
    bad
        Unusable frames, bool, shape ``(frames,)``.
    summary
        What these recordings, or this share of them, look like from outside.

    Raises
    ------
    DataError
        If the recordings do not fit the policy, or too many of their frames cannot be used.
    """

    def __init__(
        self,
        recordings: Recordings,
        policy: LoadedPolicy,
        cache: CacheSettings,
        max_bad_frames: int = 0,
        holdout_episodes: int | Collection[int] = 0,
        *,
        episodes: Collection[int] = (),
        augments: bool = False,
        tell: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        check_fit(recordings.summary, policy.spec, recordings.uri, recordings.camera_map)
        self.recordings = recordings
        self.policy = policy
        frames = BadFrames(recordings, max_bad_frames)
        budget = FrameBudget.of(cache)
        pixels = None
        self.features = None
        if cache.vision_features and policy.frozen_vision and not augments:
            self.features = FeatureCache(
                recordings,
                frames,
                budget,
                policy.embed_images,
                made_by=policy.vision_key(),
                episodes=episodes,
                tell=tell,
            )
        else:
            pixels = PixelCache(
                recordings,
                frames,
                budget,
                policy.shrunk_images,
                made_by=policy.config.type,
                episodes=episodes,
                tell=tell,
            )
        self.recorded = RecordedBatches(recordings, pixels, policy.config)
        self.bad = frames.bad
        usable = self.recorded.usable(frames.bad)
        self.held_out_episodes = self._held_out(holdout_episodes)
        self._held = torch.isin(
            recordings.columns["episode_index"],
            torch.tensor(self.held_out_episodes, dtype=torch.int64),
        )
        if episodes:
            numbers = recordings.columns["episode_index"]
            outside = ~torch.isin(numbers, torch.tensor(sorted(episodes)))
            usable = usable[~outside[usable]]
            self._held |= outside
        held = self._held[usable]
        self.usable, self.held_out = usable[~held], usable[held]
        if not len(self.usable):
            raise DataError(f"{recordings.uri}: no frame can be used; record it again.")
        self._batches: tuple[str, PolicyBatches] | None = None
        self._whole = self
        self._notices: list[str] | None = None
        self.summary = recordings.summary

    def share(self, episodes: Collection[int]) -> PreparedRecordings:
        """The same with only these episodes to train on and to count; nothing is copied.

        Raises
        ------
        DataError
            If no frame of them can be used.
        """
        numbers = self.recordings.columns["episode_index"]
        outside = ~torch.isin(numbers, torch.tensor(sorted(episodes)))
        part = copy.copy(self)
        part._held = self._held | outside
        part.usable = self.usable[~outside[self.usable]]
        part.held_out = self.held_out[~outside[self.held_out]]
        if not len(part.usable):
            raise DataError(
                f"{self.recordings.uri}: no frame of a contributor's episodes can"
                " be used; check the recordings, or split them in another way."
            )
        part.summary = self.summary.model_copy(
            update={"episodes": len(set(episodes)), "frames": int((~outside).sum())}
        )
        return part

    def batches(self, statistics: Statistics) -> PolicyBatches:
        """Batches normalized with ``statistics``; prepared again only when these change."""
        if self._whole is not self:
            return self._whole.batches(statistics)
        if self._batches is None or self._batches[0] != statistics.sha256:
            made = PolicyBatches(self.recorded, self.policy, statistics, self.features)
            self._batches = (statistics.sha256, made)
        return self._batches[1]

    def draws(self) -> torch.Tensor | None:
        """How often each of ``usable`` is drawn, shape ``(n,)``; ``None`` if all are alike."""
        draws = self.recordings.draws()
        return None if draws is None else draws[self.usable]

    def statistics(self) -> Statistics:
        """Statistics of state and action over the good frames, as the policy needs them."""
        good = ~(self.bad | self._held)
        return self.recordings.statistics(good, histograms=self.policy.quantiles)

    def notices(self) -> list[str]:
        """What is odd about them for this policy, in counts: their owner may tell others."""
        whole = self._whole
        if whole._notices is None:
            tasks = set(self.recordings.tasks)
            cut, tokens = self.policy.cut_instructions(tasks, self.statistics())
            said = (
                f"{cut} of {len(tasks)} instructions are longer than the {tokens} tokens that the"
                " policy reads; the rest of each is cut."
            )
            whole._notices = [said] if cut else []
        return whole._notices

    def _held_out(self, episodes: int | Collection[int]) -> list[int]:
        """The last ``episodes`` episodes of each dataset; or those named that are there."""
        if isinstance(episodes, int):
            return self.recordings.newest(episodes)
        return sorted(set(episodes) & set(self.recordings.episodes))
