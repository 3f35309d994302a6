"""Which Flower this was read against and tested with."""

from __future__ import annotations

from importlib.metadata import version

from zk0d.errors import UnavailableError

#: Minor versions. pyproject.toml's range is the same, and constraints.txt pins the newest; tests
#: hold both.
TESTED = ("1.41", "1.42")


def check_version() -> str:
    """Flower's version; raises :class:`UnavailableError` if it is not of :data:`TESTED`."""
    found = version("flwr")
    if not found.startswith(tuple(f"{minor}." for minor in TESTED)):
        raise UnavailableError(
            f"flwr {found} is installed, this zk0d works with {_tested()}; install zk0d with its"
            " constraints file."
        )
    return found


def lacks(what: str) -> UnavailableError:
    """The error of a Flower that has no ``what``, which we would change."""
    return UnavailableError(
        f"this Flower has no {what}; install {_tested()}, as zk0d's constraints file says."
    )


def _tested() -> str:
    return " or ".join(f"{minor}.x" for minor in TESTED)
