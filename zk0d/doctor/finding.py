"""What a rule finds, and the machine that it looks at."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from zk0d.errors import Zk0dError
from zk0d.machine import units as machine_units
from zk0d.machine.contributors import name_of, relocated
from zk0d.machine.roles import Role, service, units


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    Attributes
    ----------
    ok
        ``None`` if it could not be checked here; ``problem`` then says why.
    """

    rule: str
    ok: bool | None
    problem: str = ""
    evidence: str = ""
    cure: str = ""


@dataclass(frozen=True)
class Host:
    """Where this machine keeps what zk0d does not choose itself."""

    systemd: bool
    #: By role.
    services: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {role: units(role) for role in Role}
    )
    shipped: Path = Path("/usr/lib/systemd/system")
    changed: Path = Path("/etc/systemd/system")
    hub: Path = Path("/var/cache/zk0d/hub")  #: where the unit ``fetch`` puts downloads
    fetch: str = service("fetch").unit

    @classmethod
    def of(cls, folder: Path) -> Host:
        """The machine, as that of whose settings lie in ``folder``."""
        name, systemd = name_of(folder), machine_units.by_systemd(folder)
        if not name:
            return cls(systemd)
        return cls(
            systemd,
            {Role.CLIENT: units(Role.CLIENT, name)},
            hub=Path(relocated(str(cls.hub), name)),
            fetch=service("fetch").unit_of(name),
        )


class Wrong(Exception):
    """A rule is broken."""

    def __init__(self, problem: str, evidence: str, cure: str) -> None:
        super().__init__(problem)
        self.finding = Finding("", False, problem, evidence, cure)


class Unchecked(Exception):
    """Why a rule cannot be looked at here."""


def rule[**P](name: str) -> Callable[[Callable[P, str]], Callable[P, Finding]]:
    """Make a finding of a function that returns evidence, or raises what is wrong.

    Whatever else it raises becomes a finding, too: no rule ends the doctor.
    """

    def named(function: Callable[P, str]) -> Callable[P, Finding]:
        @functools.wraps(function)
        def look(*args: P.args, **kwargs: P.kwargs) -> Finding:
            try:
                found = Finding("", True, evidence=function(*args, **kwargs))
            except Wrong as error:
                found = error.finding
            except Unchecked as error:
                found = Finding("", None, str(error))
            except Zk0dError as error:
                found = Finding("", False, error.message, f"reason {error.reason}", "see above")
            except PermissionError as error:
                what = error.filename or "its file"
                found = Finding("", None, f"{what} may not be read by this user; try it as root")
            except OSError as error:
                what = f"{error.filename}: " if error.filename else ""
                found = Finding("", None, f"{what}{error.strerror or type(error).__name__}")
            except Exception as error:
                # Its text is left out: nobody looked whether it holds a secret.
                found = Finding(
                    "", None, f"the check itself failed ({type(error).__name__}); please report it"
                )
            return replace(found, rule=name)

        return look

    return named


def in_one_line(text: str) -> str:
    """Text of another program, fit for one line."""
    return " ".join(text.split())
