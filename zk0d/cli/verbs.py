"""What several verbs share: those of ``zk0bot server`` and ``zk0bot client``, and options."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.machine import contributors, roles, units

if TYPE_CHECKING:
    from zk0d.services.foreground import Program

#: Services work in folders of their own, so a relative one would be another there.
Folder = Annotated[Path, typer.Option(help="Folder of the settings.", callback=Path.absolute)]
Contributor = Annotated[
    str, typer.Option(contributors.OPTION, help="One of several contributors here, by its name.")
]
Follow = Annotated[bool, typer.Option("-f", "--follow", help="Show new lines as they come.")]
Lines = Annotated[int, typer.Option("-n", "--lines", min=1, help="Number of newest lines.")]


def place(folder: Path, contributor: str) -> Path:
    """The folder of the settings that ``--folder`` and ``--contributor`` mean together.

    Raises
    ------
    UsageError
        If there is no such contributor.
    """
    return contributors.existing(folder, contributor)


def check_new(folder: Path, what: str) -> None:
    """Refuse a folder for something new that holds something, or lies in recordings.

    Raises
    ------
    UsageError
        Naming ``what``, the option or argument.
    """
    from zk0d.config.names import check_apart
    from zk0d.errors import UsageError

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{what}: {folder} is not empty; name a new folder.")
    check_apart(folder, what)


def start(
    role: str, folder: Path, *, changed: bool = False, besides: Sequence[Program] = ()
) -> None:
    """Start the services: by systemd, now and at every boot, or here, until Ctrl-C.

    Parameters
    ----------
    changed
        Whether the caller changed something, for the line that is printed.
    besides
        What runs here beside the services.
    """
    if not units.by_systemd(folder):
        from zk0d.services import standalone

        standalone.run(role, folder, besides)
    elif units.start(role, folder, changed=changed):
        typer.echo(f"started; zk0bot {role} status{contributors.option(folder)} shows the state")
    else:
        typer.echo("it runs already; nothing was changed")


def stop(role: str, folder: Path) -> None:
    """Stop them: by systemd, now and at every boot, or where they run in the foreground."""
    if units.by_systemd(folder):
        units.stop(role, folder)
        return
    from zk0d.services import standalone

    if not standalone.stop(role, folder):
        typer.echo("nothing runs", err=True)


def logs(of: Sequence[str], follow: bool, lines: int, contributor: str = "") -> None:
    """What the services wrote to systemd's journal."""
    from zk0d.errors import UnavailableError

    if not units.has_systemd():
        raise UnavailableError(
            "systemd does not run here, so it keeps no log; the services write to the terminal of"
            " zk0bot start."
        )
    contributors.existing(units.SYSTEM_FOLDER, contributor)
    names = [
        word for role in of for name in roles.units(role, contributor) for word in ("-u", name)
    ]
    more = ["--follow"] if follow else []
    subprocess.run(["journalctl", "--no-pager", f"--lines={lines}", *names, *more], check=False)


def renew_secrets(role: str, folder: Path, files: Sequence[Path], services: Sequence[str]) -> None:
    """Make new secrets and have the services that share them read them together."""
    from zk0d.machine.keys import renew_secrets as renew

    renew(files)
    if units.by_systemd(folder):
        whose = contributors.name_of(folder)
        names = [f"{roles.service(name).unit_of(whose)}.service" for name in services]
        units.systemctl("try-restart", *names)
        typer.echo("the services that run have their new secrets")
    else:
        typer.echo(f"the new secrets count after a restart: zk0bot {role} stop, then start")


def tell_kept(files: Sequence[Path]) -> None:
    """Say which files were there already."""
    for path in files:
        typer.echo(f"{path} is there already and kept", err=True)
