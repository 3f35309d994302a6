"""A policy of another Python package, which LeRobot calls a plugin.

zk0d knows no more of it than LeRobot's interfaces say. It is trained as a whole, over pixels and
kernel by kernel. What its loss and its plans draw at random comes from PyTorch's generator, which
is seeded by batch.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig

from zk0d.errors import UnavailableError
from zk0d.learning.policies.base import LoadedPolicy


class Loaded(LoadedPolicy):
    """Such a policy in memory; :func:`of_package` says which."""

    #: LeRobot's name of it.
    kind: ClassVar[str]

    @classmethod
    def tiny_config(cls, width: int) -> PreTrainedConfig:
        raise UnavailableError(
            f"model-name 'tiny': no package says what a tiny policy of type '{cls.kind}' is; take"
            " model-name=new, or a model of its own."
        )

    @classmethod
    def usual_config(cls) -> PreTrainedConfig:
        """The package's defaults."""
        made: PreTrainedConfig = PreTrainedConfig.get_choice_class(cls.kind)(
            device="cpu", push_to_hub=False
        )
        return made

    def seeded_losses(
        self, batch: dict[str, Any], numbers: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Their mean, under noise that is a function of ``seed`` and of the batch's rows."""
        with self._drawn(seed, int(numbers[0])):
            return super().seeded_losses(batch, numbers, seed)

    def plan(self, batch: dict[str, Any], episodes: torch.Tensor, frame: int) -> torch.Tensor:
        with self._drawn(int(episodes[0]), frame):
            return super().plan(batch, episodes, frame)

    @contextlib.contextmanager
    def _drawn(self, *numbers: int) -> Iterator[None]:
        """Within it PyTorch draws what these numbers say; afterwards as before."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))
            yield


def of_package(package: str, kind: str) -> type[Loaded]:
    """The class of the policy that ``package`` registers at LeRobot as ``kind``.

    Raises
    ------
    UnavailableError
        If it cannot be imported, or registers no such policy.
    """
    try:
        importlib.import_module(package)
    except Exception as error:  # a package's own code may raise anything
        raise UnavailableError(
            f"package {package} cannot be imported ({type(error).__name__}: {error}); install it"
            " again, or ask its authors."
        ) from error
    known = PreTrainedConfig.get_known_choices()
    if kind not in known or not known[kind].__module__.startswith(f"{package}."):
        own = [name for name, each in known.items() if each.__module__.startswith(f"{package}.")]
        raise UnavailableError(
            f"package {package} has no policy '{kind}'; it has {', '.join(own) or 'none'}."
        )
    return type(f"Loaded_{kind}", (Loaded,), {"kind": kind})
