"""Units of one of several contributors, made from the plain ones so that they never differ.

``%i`` is the contributor's name. Each has folders, users, a socket and settings of its own.
"""

from __future__ import annotations

import re

from zk0d.machine import contributors
from zk0d.machine.roles import SERVICES, Role, target

#: What is started once is for the machine, which its contributors share.
_SHARED = [f"{each.unit}.service" for each in SERVICES if each.once]
_CLIENT = [each for each in SERVICES if Role.CLIENT in each.roles and not each.once]
#: The plain units that a contributor has.
PLAIN = (
    target(Role.CLIENT),
    *(f"{each.unit}.{kind}" for each in _CLIENT for kind in ("service", "socket", "timer")),
)
_SETTINGS = contributors.relocated("/etc/zk0d/client.toml", "%i")
_STEMS = "|".join(sorted({name.rpartition(".")[0] for name in PLAIN}))
_UNIT = re.compile(rf"\b({_STEMS})\.(?=service|socket|target|timer)")
_USERS_FOLDER = "%E/zk0d"
_ACCOUNT = re.compile(r"(User|Group|SocketGroup|SupplementaryGroups)=zk0d-[a-z]+")


def template(name: str, text: str) -> str:
    """The template of a plain unit.

    Parameters
    ----------
    name
        The plain unit's, such as ``zk0d-learner.socket``, or its drop-in's.
    text
        Its content.
    """
    made = [
        _comment(line) if line.startswith("#") else _directive(name, line)
        for line in text.splitlines()
    ]
    head = next(
        at for at, line in enumerate(made) if line.startswith("[")
    )  # a drop-in has no [Unit]
    made.insert(head, f"# Made from {name} by make reference; %i is its name.")
    return "\n".join(made) + "\n"


def _comment(line: str) -> str:
    said = re.sub(r"metrics on 127\.0\.0\.1:\d+", "metrics on a port of its settings", line)
    return contributors.relocated(_UNIT.sub(r"\1@.", said), "%i")


def _directive(name: str, line: str) -> str:
    key, _, _ = line.partition("=")
    if key == "Description":
        return f"{line} (%i)"
    if key == "Also":
        line = " ".join(word for word in line.split(" ") if word not in _SHARED)
    if _ACCOUNT.fullmatch(line):
        return f"{line}-%i"
    if line.endswith(_USERS_FOLDER):  # the user's own unit names the folder
        return f"{line}/{contributors.FOLDER}/%i"
    if key == "ExecStart":
        return line + _options(name)
    return contributors.relocated(_UNIT.sub(r"\1@%i.", line), "%i")


def _options(name: str) -> str:
    (service,) = [each for each in _CLIENT if f"{each.unit}.service" == name]
    given = {"role": Role.CLIENT, "file": _SETTINGS, "folder": _SETTINGS.rpartition("/")[0]}
    return f" {service.option.format(**given)}"
