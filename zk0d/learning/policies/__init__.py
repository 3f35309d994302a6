"""What is special about each policy family, one file each, behind :class:`~.base.LoadedPolicy`."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

from zk0d.config.families import FAMILIES
from zk0d.errors import UnavailableError
from zk0d.learning.policies.base import LoadedPolicy


def family(name: str) -> type[LoadedPolicy]:
    """The class of a family of :data:`zk0d.config.families.FAMILIES`; only its file is loaded.

    Raises
    ------
    UnavailableError
        If it needs a package that is not installed.
    """
    needs = FAMILIES[name].needs
    if needs and find_spec(needs) is None:
        raise UnavailableError(
            f"policy '{name}' needs the package {needs}, which is not installed here; pip install"
            f" 'zk0d[{name}]'."
        )
    loaded: type[LoadedPolicy] = importlib.import_module(f"{__name__}.{name}").Loaded
    return loaded
