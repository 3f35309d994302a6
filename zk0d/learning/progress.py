"""How far a learner is, as it travels to whoever waits, and in words. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

GIB = 2**30


def size(count: int) -> str:
    """So many bytes, in words."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """So many seconds, in words."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class CacheUse:
    """Where the frames of a dataset will be; in bytes."""

    frames: int
    memory: int
    disk: int  #: some of it may be in memory as well
    again: int  #: what is not kept: each batch decodes it again
    folder: str

    def __str__(self) -> str:
        places = [
            f"{size(count)} {where}"
            for count, where in (
                (self.memory, "in memory"),
                (self.disk, f"in {self.folder}"),
                (self.again, "that each batch decodes again"),
            )
            if count
        ]
        return f"{self.frames:,} frames take {', '.join(places)}"


@dataclass(frozen=True)
class Decoding:
    """Frames are decoded."""

    frames: int
    of: int
    seconds: float  #: since it began
    memory: int  #: bytes that the process has
    kept: int = 0  #: of the frames that are done, those that an earlier start had decoded

    @property
    def left(self) -> float:
        """Seconds until it is over, about; infinity while nothing says so."""
        # What is read is done in no time.
        decoded, rest = self.frames - self.kept, self.of - self.frames
        if not rest:
            return 0.0
        return self.seconds * rest / decoded if decoded else float("inf")

    def __str__(self) -> str:
        left = f" {duration(self.left)} left," if self.left < float("inf") else ""
        return (
            f"decoding: {self.frames:,} of {self.of:,} frames,{left}"
            f" {size(self.memory)} of memory in use"
        )

    def to_others(self) -> str:
        """The same as part of a sentence for who knows nothing of this machine."""
        left = f", about {duration(self.left)} left" if self.left < float("inf") else ""
        return f"decoding {self.frames:,} of {self.of:,} frames{left}"


@dataclass(frozen=True)
class Training:
    """Steps are taken."""

    step: int
    steps: int
    seconds: float  #: since the first was begun
    loss: float | None = None

    def __str__(self) -> str:
        if not self.step:
            return f"training step 0/{self.steps}: the first is under way"
        left = self.seconds * (self.steps - self.step) / self.step
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        return f"training step {self.step}/{self.steps}, {left:.0f} s left{loss}"


@dataclass(frozen=True)
class Cooling:
    """The GPU is hotter than its owner allows, and no step is taken."""

    celsius: int
    limit: int  #: training continues at this or less

    def __str__(self) -> str:
        return f"the GPU has {self.celsius} °C: training continues at {self.limit} °C"


@dataclass(frozen=True)
class Energy:
    """What the round has taken of the GPU's energy; told once, after its last step."""

    joules: float

    def __str__(self) -> str:
        return f"the GPU took {self.joules / 3600:.3g} Wh in this round"


Progress = CacheUse | Decoding | Training | Cooling | Energy
_KINDS: dict[str, type[Progress]] = {
    "cache": CacheUse,
    "decoding": Decoding,
    "training": Training,
    "cooling": Cooling,
    "energy": Energy,
}


def event_of(progress: Progress) -> dict[str, Any]:
    """The learner's event that tells it."""
    kind = next(name for name, each in _KINDS.items() if isinstance(progress, each))
    return {"event": "progress", "what": kind, **asdict(progress)}


def told_by(event: Mapping[str, Any]) -> Progress | None:
    """What an event tells; ``None`` if it tells nothing of this."""
    kind = _KINDS.get(event.get("what", ""))
    if kind is None:
        return None
    return kind(**{field.name: event[field.name] for field in fields(kind)})
