"""Which Flower this was read against and tested with."""

from __future__ import annotations

from importlib.metadata import version

from zk0d.errors import UnavailableError

TESTED = "1.41"


def check_version() -> str:
    """Flower's version; raises :class:`UnavailableError` if it is not the tested minor version."""
    found = version("flwr")
    if not found.startswith(f"{TESTED}."):
        raise UnavailableError(
            f"flwr {found} is installed, this zk0d works with {TESTED}.x; install zk0d with its"
            " constraints file."
        )
    return found
