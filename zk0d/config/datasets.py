"""Recordings that a node lends beside others: a ``[[dataset]]`` table of ``client.toml`` each."""

from __future__ import annotations

from typing import Self

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from zk0d.config.base import Settings
from zk0d.config.names import Cameras, DatasetUriText

#: Characters of an instruction; policies read far fewer.
LONGEST_TASK = 1000


class DatasetSettings(Settings):
    """One of a node's datasets, and which part of it is lent."""

    uri: DatasetUriText = Field(
        description="The recordings: hf:user/name, user/name or local:/folder."
    )
    cameras: Cameras | None = Field(
        None,
        description="Its camera names, mapped to the policy's; without it, those of [cameras].",
    )
    weight: PositiveFloat = Field(
        1.0,
        allow_inf_nan=False,
        description="How often a frame of it is drawn; at 2 twice as often as one of weight 1.",
    )
    episodes: tuple[NonNegativeInt, ...] = Field(
        (), description="Only these episodes, by number; all if there are none."
    )
    last: NonNegativeInt = Field(0, description="Only so many episodes, the newest; 0 takes all.")
    task: str = Field(
        "",
        max_length=LONGEST_TASK,
        description="The instruction of all its episodes, in place of what was recorded.",
    )

    @model_validator(mode="after")
    def _names_episodes_once(self) -> Self:
        if self.episodes and self.last:
            raise ValueError("episodes and last both choose episodes; give one of them")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether it takes the recordings as they are."""
        return not (self.episodes or self.last or self.task)
