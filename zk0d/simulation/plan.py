"""What a simulation is made of: its contributors, what goes wrong, and where it runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from zk0d.config.base import Settings
from zk0d.config.machine import Precision, ReadingSettings
from zk0d.config.names import Alias, Cameras, DatasetUriText
from zk0d.errors import UsageError
from zk0d.learning.statistics import Statistics

Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class VirtualNode(Settings):
    """One contributor."""

    name: Alias
    dataset_uri: DatasetUriText
    episodes: list[NonNegativeInt] = Field(
        default_factory=list, description="Its part of the dataset; empty: all of it."
    )
    cameras: Cameras = Field(
        default_factory=dict, description="Its camera names, mapped to the policy's."
    )
    slow: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = Field(
        1.0, description="A step takes this many times as long."
    )
    poisoned: bool = Field(
        False, description="Its updates are reversed and made four times as long."
    )


class Contributors(Settings):
    """A file that names contributors: ``[[contributor]]`` tables."""

    contributor: list[VirtualNode]


class Plan(Settings):
    """Everything that a worker needs to be any of the contributors."""

    nodes: list[VirtualNode]
    state: Path = Field(description="Folder where contributors keep moments between rounds.")
    model_name: str
    models: dict[str, Path] = Field(default_factory=dict)
    seed: NonNegativeInt = 0
    drop: Share = Field(0.0, description="Probability that a node gives no answer to a round.")
    missing: dict[PositiveInt, list[str]] = Field(
        default_factory=dict,
        description="By round, nodes that give no answer; once for each time one is asked.",
    )
    statistics: Literal["merged", "own"] = Field(
        "merged",
        description="Normalize with the run's statistics, or (an experiment) each with its own.",
    )
    forced_statistics: Statistics | None = Field(
        None, description="Every node's answer to a request for its statistics."
    )
    waits: bool = Field(
        False,
        description="Let the others really wait for a slow one, as on Ray. In one process the"
        " simulation has a clock of its own.",
    )
    reading: ReadingSettings = ReadingSettings()
    device: str = "auto"
    precision: Precision = "auto"
    cpu_threads: NonNegativeInt = 0

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [node.name for node in self.nodes]
        if not names:
            raise ValueError("there are no contributors")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two contributors have the name '{twice[0]}'")
        return self


_SLOW = re.compile(r"(\d+)@(\d+(?:\.\d+)?)x")


def with_faults(nodes: list[VirtualNode], slow: list[str], poison: int) -> list[VirtualNode]:
    """Make some contributors slow or hostile.

    Parameters
    ----------
    slow
        Texts such as ``3@2x``: three contributors, the first that are not slow yet, take twice as
        long.
    poison
        How many, the last ones, send poisoned updates.

    Raises
    ------
    UsageError
        If a text cannot be read, or there are not that many contributors.
    """
    changed = list(nodes)
    at = 0
    for text in slow:
        found = _SLOW.fullmatch(text)
        if found is None or float(found[2]) < 1.0:
            raise UsageError(
                f"--slow: {text!r} cannot be read; write 3@2x: three take twice as long."
            )
        count = int(found[1])
        if at + count > len(nodes):
            raise UsageError(
                f"--slow: there are {len(nodes)} contributors, {at + count} are named."
            )
        for index in range(at, at + count):
            changed[index] = changed[index].model_copy(update={"slow": float(found[2])})
        at += count
    if poison > len(nodes):
        raise UsageError(f"--poison: there are {len(nodes)} contributors, {poison} are named.")
    for index in range(len(nodes) - poison, len(nodes)):
        changed[index] = changed[index].model_copy(update={"poisoned": True})
    return changed
