"""What is special about each policy family, one file each, behind :class:`~.base.LoadedPolicy`."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from zk0d.config.families import family_of, packaged
from zk0d.errors import ConfigError, UnavailableError
from zk0d.learning.policies.base import LoadedPolicy


def family(name: str, packages: Collection[str] = ()) -> type[LoadedPolicy]:
    """The class of a policy; only its file is loaded.

    Parameters
    ----------
    name
        One of :data:`zk0d.config.families.FAMILIES`, or a policy of another package.
    packages
        The packages that this machine's settings allow, each with its version.

    Raises
    ------
    UnavailableError
        If it needs a package that is not installed, or that has no such policy.
    ConfigError
        With reason ``policy_not_allowed`` if it is of a package that is not allowed here.
    """
    if other := packaged(name):
        return _of_package(*other, packages)
    known = family_of(name)
    if known.needs and find_spec(known.needs) is None:
        raise UnavailableError(
            f"policy '{name}' needs the package {known.needs}, which is not installed here;"
            f" {known.cure}."
        )
    loaded: type[LoadedPolicy] = importlib.import_module(f"{__name__}.{name}").Loaded
    return loaded


def package_version(name: str) -> str:
    """The installed version of the package that a policy is of; empty for LeRobot's own."""
    other = packaged(name)
    return version(other[0]) if other else ""


def _of_package(package: str, kind: str, packages: Collection[str]) -> type[LoadedPolicy]:
    pins = dict(each.split("==") for each in packages)
    if package not in pins:
        raise ConfigError(
            f"policy '{package}:{kind}' is of a package that this machine's settings do not allow;"
            f" to let its code run here, add '{package}==VERSION' to policy-packages.",
            reason="policy_not_allowed",
        )
    try:
        here = version(package)
    except PackageNotFoundError:
        here = ""
    if here != pins[package]:
        raise UnavailableError(
            f"policy-packages allows {package} {pins[package]}, and"
            f" {f'version {here} is' if here else 'it is not'} installed here; pip install"
            f" {package}=={pins[package]}, or change policy-packages."
        )
    from zk0d.learning.policies.of_packages import of_package

    return of_package(package, kind)
