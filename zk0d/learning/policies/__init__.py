"""What is special about each policy family, one file each, behind :class:`~.base.LoadedPolicy`."""

from __future__ import annotations

import importlib

from zk0d.learning.policies.base import LoadedPolicy


def family(name: str) -> type[LoadedPolicy]:
    """The class of a family of :data:`zk0d.config.families.FAMILIES`; only its file is loaded."""
    loaded: type[LoadedPolicy] = importlib.import_module(f"{__name__}.{name}").Loaded
    return loaded
