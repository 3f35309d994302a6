"""``[limits]`` of ``client.toml``: what an owner lends of the machine and of its line."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt, field_validator

from zk0d.config.amounts import Bytes, say_bytes
from zk0d.config.base import Settings
from zk0d.config.families import BUILT, FAMILIES
from zk0d.config.hours import Hours, HoursText
from zk0d.config.names import FamilyName

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
    policies: list[FamilyName] = Field(
        default=list(FAMILIES),
        description="Policies that may be trained here. learner.policy-packages lets in those of"
        " other packages.",
    )
    models: list[str] = Field(
        default_factory=list,
        description="Base models that may be trained here; empty: those under models and"
        f" fetch-models, and those that are built ({', '.join(BUILT)}).",
    )
    hours: HoursText = Field(
        "",
        description="Local time in which it may train, such as '22:00-07:00' or 'mon-fri"
        " 22:00-07:00, sat, sun'; empty: always. A round that has begun is finished.",
    )
    only_when_idle: bool = Field(
        False,
        description="Train only while no session has been used for five minutes, by logind's word,"
        " and no other program works on the GPU.",
    )
    on_battery: bool = Field(False, description="Train also while a laptop runs on its battery.")
    priority: list[str] = Field(
        default_factory=list,
        description="Programs that come first, such as ['steam', 'blender']: while one runs,"
        " nothing is trained.",
    )
    gpu_memory_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of the GPU's memory that the learner may take."
    )
    gpu_max_celsius: Annotated[int, Field(ge=0, le=110)] = Field(
        0,
        description="No step is taken while the GPU is hotter, until it is 5 degrees cooler; 0: its"
        " driver's own limit.",
    )
    gpu_power_watts: Annotated[int, Field(ge=0, le=2000)] = Field(
        0,
        description="Watts that each GPU of the learner may draw, while zk0d-client.target runs; 0:"
        " as it is. Only the system's service zk0d-gpu-power can set it.",
    )
    power_share: Annotated[float, Field(ge=0.05, le=1.0)] = Field(
        1.0,
        description="Share of the time that it computes. It rests between steps, so the mean power"
        " is about that share. It needs no system service, as gpu-power-watts does.",
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
    transfer_hours: HoursText = Field(
        "",
        description="Local time in which a round's transfer may begin, as in hours; empty: always.",
    )
    metered: bool = Field(
        False,
        description="Transfer also over a connection that NetworkManager calls metered, such as a"
        " phone's.",
    )

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

    @property
    def training_hours(self) -> Hours:
        """When it may train."""
        return Hours.parse(self.hours)

    @property
    def line_hours(self) -> Hours:
        """When a round's transfer may begin."""
        return Hours.parse(self.transfer_hours)

    @property
    def ask_to_rest(self) -> bool:
        """Whether the owner named something that comes before training."""
        return bool(self.hours or self.priority or self.only_when_idle)
