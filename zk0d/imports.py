"""Importing LeRobot loads what a policy family needs, not what every family would.

``lerobot.policies`` imports all of LeRobot's families, and two of them diffusers, datasets and
pandas. transformers and diffusers each read the file lists of all installed packages. Together
that is more than half of the seconds in which a learner starts. :func:`be_lazy` changes neither
package; it changes when their code runs:

- a package in :data:`LATE` runs its ``__init__`` when somebody asks it for a name that is no module
  of it, so ``lerobot.policies.factory`` can be imported without the other families;
- a module in :data:`ASKING` gets :class:`Distributions`, which looks up what it is asked for.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader

#: Packages whose ``__init__`` imports much more than the modules in them need.
LATE = ("lerobot.policies", "lerobot.policies.evo1", "lerobot.policies.groot")
#: Modules that call ``importlib.metadata.packages_distributions`` while they are imported.
ASKING = ("transformers.utils.import_utils", "diffusers.utils.import_utils")


def be_lazy() -> None:
    """Let the imports of this process follow the rules above."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class Distributions(Mapping[str, list[str]]):
    """Which distributions an importable package comes from, looked up one by one.

    The same as ``importlib.metadata.packages_distributions()``, except that a distribution with
    the package's own name is taken for its only one.
    """

    def __getitem__(self, package: str) -> list[str]:
        from importlib import metadata

        name = package.replace("_", "-")
        try:
            metadata.distribution(name)
        except (metadata.PackageNotFoundError, ValueError):
            return self._all[package]
        return [name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @cached_property
    def _all(self) -> Mapping[str, list[str]]:
        from importlib import metadata

        return metadata.packages_distributions()


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in LATE and fullname not in ASKING:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec and spec.loader:
            spec.loader = (_Late if fullname in LATE else _Asking)(spec.loader)  # type: ignore[assignment]
        return spec


class _Wrapped:
    """A loader that has all that the one beneath it has, such as the source."""

    def __init__(self, beneath: Loader) -> None:
        self.beneath = beneath

    def __getattr__(self, name: str) -> Any:
        return getattr(self.beneath, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.beneath.create_module(spec)


class _Late(_Wrapped):
    """Runs a package's ``__init__`` when a name is missing in it."""

    def exec_module(self, module: ModuleType) -> None:
        lock = threading.RLock()
        begun = False

        def missing(name: str) -> Any:
            nonlocal begun
            # What looks at all modules asks for such names, and they are no reason to import.
            if not name.startswith("__"):
                with lock:
                    if not begun:
                        begun = True
                        self.beneath.exec_module(module)
                if name in module.__dict__:
                    return module.__dict__[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = missing


class _Asking(_Wrapped):
    def exec_module(self, module: ModuleType) -> None:
        from importlib import metadata

        usual = metadata.packages_distributions
        metadata.packages_distributions = Distributions
        try:
            self.beneath.exec_module(module)
        finally:
            metadata.packages_distributions = usual
