"""``[limits]`` of ``client.toml``: what an owner lends of the machine and of its line."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, PositiveInt, field_validator

from zk0d.config.amounts import Bytes, say_bytes
from zk0d.config.base import Settings
from zk0d.config.families import BUILT, FAMILIES
from zk0d.config.names import PolicyName

#: The coordinator gives up a piece of an update that comes at less than half of this rate.
LEAST_RATE = 8_000
#: Less than any round moves.
LEAST_BYTES_PER_DAY = 1_000_000


class LimitsSettings(Settings):
    """Limits of a run on this machine; no run can widen them."""

    max_steps: PositiveInt = Field(
        10_000,
        description="Optimizer steps per round; the node refuses a round that asks for more.",
    )
    max_batch_size: PositiveInt = Field(1024, description="Frames per optimizer step.")
    policies: list[PolicyName] = Field(
        default=list(FAMILIES), description="Policies that may be trained here."
    )
    models: list[str] = Field(
        default_factory=list,
        description="Base models that may be trained here; empty: those under models and"
        f" fetch-models, and those that are built ({', '.join(BUILT)}).",
    )
    hours: str = Field(
        "", description="Local time in which it may train, such as '22:00-07:00'; empty: always."
    )
    gpu_memory_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of the GPU's memory that the learner may take."
    )
    power_share: Annotated[float, Field(ge=0.05, le=1.0)] = Field(
        1.0,
        description="Share of the time that it computes. It rests between steps, so the mean power"
        " is about that share. Only root can set a cap in the driver (nvidia-smi -pl).",
    )
    upload_rate: Bytes = Field(
        0,
        description="Bytes a second that it sends of an update, such as 2000000 or '2 MB'; 0: as"
        " fast as the line.",
    )
    download_rate: Bytes = Field(
        0, description="Bytes a second at which it takes a round's weights; 0: as fast as the line."
    )
    bytes_per_day: Bytes = Field(
        0,
        description="Bytes of weights and updates from midnight to midnight, both ways together,"
        " such as '20 GB'; 0: any number.",
    )
    transfer_hours: str = Field(
        "",
        description="Local time in which a round's transfer may begin, such as '22:00-07:00';"
        " empty: always.",
    )
    metered: bool = Field(
        False,
        description="Transfer also over a connection that NetworkManager calls metered, such as a"
        " phone's.",
    )

    @field_validator("hours", "transfer_hours")
    @classmethod
    def _are_hours(cls, value: str) -> str:
        if value:
            _parse_hours(value)
        return value

    @field_validator("upload_rate", "download_rate")
    @classmethod
    def _finishes(cls, value: int) -> int:
        if 0 < value < LEAST_RATE:
            raise ValueError(
                f"at {value} bytes a second no round is finished; give it {say_bytes(LEAST_RATE)}"
                " or more, or 0 for no limit"
            )
        return value

    @field_validator("bytes_per_day")
    @classmethod
    def _holds_a_round(cls, value: int) -> int:
        if 0 < value < LEAST_BYTES_PER_DAY:
            raise ValueError(
                f"{value} bytes hold no round; give it {say_bytes(LEAST_BYTES_PER_DAY)} or more, or"
                " 0 for no limit"
            )
        return value

    def may_train_at(self, minute: int) -> bool:
        """Whether it may train at this minute of the day, local time."""
        return _is_within(self.hours, minute)

    def may_transfer_at(self, minute: int) -> bool:
        """Whether a round's transfer may begin at this minute of the day, local time."""
        return _is_within(self.transfer_hours, minute)


_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


def _is_within(hours: str, minute: int) -> bool:
    if not hours:
        return True
    begin, end = _parse_hours(hours)
    if begin <= end:
        return begin <= minute < end
    return minute >= begin or minute < end


def _parse_hours(text: str) -> tuple[int, int]:
    found = _HOURS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} are not hours; write them as '22:00-07:00'")
    a, b, c, d = (int(part) for part in found.groups())
    begin, end = 60 * a + b, 60 * c + d
    if begin == end:
        raise ValueError(f"{text!r} begin when they end, so never; leave it empty for always")
    return begin, end
