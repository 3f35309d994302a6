"""``zk0bot client``: the contributor's services on this host."""

from __future__ import annotations

import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0d.cli import node, verbs
from zk0d.cli import status as status_verb
from zk0d.machine import contributors, units

if TYPE_CHECKING:
    from zk0d.config.machine import ClientSettings
    from zk0d.services.coordinator import EnrolAnswer

LOOK_SECONDS = 0.5
_UNITS_OF_TIME = {"s": 1, "m": 60, "h": 3600, "d": 86400}

app = typer.Typer(no_args_is_help=True, help="The contributor's services on this host.")

Timeout = Annotated[str, typer.Option(help="Give up after this time (30s, 20m, 2h).")]


Name = Annotated[str, typer.Option(help="This node's name: a-z, 0-9 and '-'.")]
Dataset = Annotated[
    str | None, typer.Option(help="A folder, or user/name; without it, start asks.")
]
Contact = Annotated[str, typer.Option(help="Your mail address, for the operator.")]
NewContributor = Annotated[
    str,
    typer.Option(contributors.OPTION, help="Make one of several contributors here, of this name."),
]
Device = Annotated[str, typer.Option(help="What its learner computes on: auto, cpu, cuda:1 …")]


@app.command()
def join(
    invite: Annotated[
        str, typer.Argument(help="The line from zk0bot server invite; - reads the terminal.")
    ],
    name: Name = "",
    dataset: Dataset = None,
    contact: Contact = "",
    device: Device = "",
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: NewContributor = "",
) -> None:
    """Make this node's settings and key from an invite, and print its request to join."""
    from zk0d.machine.enrolment import Invite

    read = Invite.from_line(sys.stdin.read() if invite == "-" else invite)
    folder = new_place(folder, contributor)
    own = _own(dataset, device)
    _set_up(
        *(folder, name, read.address, read.authorities, own, contact),
        token=read.token,
        release_key=read.release_key,
    )


@app.command()
def init(
    name: Name = "",
    coordinator: Annotated[str, typer.Option(help="HOST:PORT of its gateway.")] = "",
    ca: Annotated[Path | None, typer.Option(help="The coordinator's ca.crt.")] = None,
    dataset: Dataset = None,
    contact: Contact = "",
    device: Device = "",
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: NewContributor = "",
) -> None:
    """Make them without an invite, from the coordinator's address and ca.crt."""
    from zk0d.errors import ConfigError, UsageError

    if not coordinator or ca is None:
        raise UsageError("--coordinator and --ca are needed; with an invite, zk0bot client join.")
    try:
        certificate = ca.read_bytes()
    except OSError as error:
        raise ConfigError(f"--ca: {ca} cannot be read ({error.strerror}).") from None
    folder = new_place(folder, contributor)
    _set_up(folder, name, coordinator, certificate, _own(dataset, device), contact)


def new_place(folder: Path, contributor: str) -> Path:
    """The folder of a contributor that may be new; raises :class:`UsageError` for its name."""
    return contributors.home(folder, contributors.check_name(contributor) if contributor else "")


def _own(dataset: str | None, device: str) -> dict[str, Any]:
    """What the settings hold besides whose node this is."""
    from zk0d.config.names import DatasetUri

    return {
        **({"dataset-uri": str(DatasetUri.typed(dataset))} if dataset else {}),
        **({"learner": {"device": device}} if device else {}),
    }


def _set_up(
    folder: Path,
    name: str,
    address: str,
    ca: bytes | None,
    own: dict[str, Any],
    contact: str,
    token: str = "",
    release_key: str = "",
) -> None:
    from zk0d.machine.setup import keep_token, set_up_client

    known = name or usual_name(folder)
    verbs.tell_kept(set_up_client(folder, known, address, ca, own, release_key))
    if token:
        keep_token(folder, token)
        answer = enrol(folder, contact)
        if answer.approved:
            typer.echo("the coordinator has approved this node", err=True)
        else:
            typer.echo(f"the invite does not let this node in: {answer.sentence}", err=True)
    node.show_request(folder, contact)


def enrol(folder: Path, contact: str) -> EnrolAnswer:
    """Show the coordinator the invite's token; it is kept only if it may help later."""
    from zk0d.machine import node_key
    from zk0d.machine.authorities import Authorities
    from zk0d.machine.setup import keep_token, kept_token
    from zk0d.services import coordinator

    settings = _settings(folder)
    trust = Authorities.of(settings).context()
    body = node_key.enrolment(folder, contact, kept_token(folder))
    answer = coordinator.enrol(settings.coordinator.presence_page, trust, body)
    if answer.approved or answer.token_refused:
        keep_token(folder, "")
    return answer


@app.command()
def start(
    dataset: Annotated[
        list[str] | None,
        typer.Argument(help="The recordings, one or several: a folder, or user/name on the hub."),
    ] = None,
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Start the services, now and at every boot; without systemd, here until Ctrl-C."""
    from zk0d.machine import recordings
    from zk0d.machine.hold import read_hold
    from zk0d.machine.instances import check_ports

    folder = verbs.place(folder, contributor)
    check_ports(folder)
    if not dataset and sys.stdin.isatty() and not _settings(folder).lent:
        dataset = [typer.prompt("Recordings to train on (a folder, or user/name on the hub)")]
    changed = recordings.choose(dataset or [], folder, lambda line: typer.echo(line, err=True))
    hold = read_hold(_settings(folder).supernode.state)
    if hold is not None:
        typer.echo(f"this node is {hold.sentence()}", err=True)
    verbs.start("client", folder, changed=changed)


@app.command()
def stop(folder: verbs.Folder = units.CONFIG_FOLDER, contributor: verbs.Contributor = "") -> None:
    """Stop the services, now and at every boot; a round under way is abandoned."""
    verbs.stop("client", verbs.place(folder, contributor))


@app.command(name="renew-secrets")
def renew_secrets(
    folder: verbs.Folder = units.CONFIG_FOLDER, contributor: verbs.Contributor = ""
) -> None:
    """Make a new secret of this host's services and restart them; drain first in a round."""
    folder = verbs.place(folder, contributor)
    secret = _settings(folder).supernode.secret
    verbs.renew_secrets("client", folder, [secret], ["supernode", "client-superexec"])


@app.command()
def status(
    as_json: status_verb.Json = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Show the services' state; exit code 1 if something is wrong."""
    status_verb.show(["client"], as_json, verbs.place(folder, contributor))


@app.command()
def logs(
    follow: verbs.Follow = False, lines: verbs.Lines = 50, contributor: verbs.Contributor = ""
) -> None:
    """Show the services' lines in systemd's journal."""
    verbs.logs(["client"], follow, lines, contributor)


@app.command()
def pause(
    duration: Annotated[str, typer.Option("--for", help="How long (30m, 2h, 1d).")] = "8h",
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Leave after the message in work and return after a time; survives a reboot."""
    from zk0d.machine.hold import Hold

    hold = Hold.pause(seconds(duration, "--for"))
    hold.write(_settings(verbs.place(folder, contributor)).supernode.state)
    typer.echo(hold.sentence())


@app.command()
def resume(folder: verbs.Folder = units.CONFIG_FOLDER, contributor: verbs.Contributor = "") -> None:
    """End a pause or a drain."""
    from zk0d.machine import hold

    ended = hold.resume(_settings(verbs.place(folder, contributor)).supernode.state)
    typer.echo("it takes part again" if ended else "it was neither paused nor drained")


@app.command()
def drain(
    timeout: Timeout = "1h",
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Answer the message in work, leave, and wait for that; for maintenance."""
    from zk0d.machine.hold import Hold

    folder = verbs.place(folder, contributor)
    state = _settings(folder).supernode.state
    Hold.drain().write(state)
    _wait(
        state,
        lambda said: not said or said["left"],
        "this node has not left: its message is still in work",
        timeout,
    )
    again = f"zk0bot client resume{contributors.option(folder)}"
    typer.echo(f"this node has left; {again}, or a reboot, brings it back")


@app.command(name="open")
def open_page(
    folder: verbs.Folder = units.CONFIG_FOLDER, contributor: verbs.Contributor = ""
) -> None:
    """Show this node on a page of this machine, with pause and resume, until Ctrl-C."""
    from zk0d.services.own_door import OwnDoor
    from zk0d.services.own_page import OwnPage

    door = OwnDoor(OwnPage(verbs.place(folder, contributor)))
    typer.echo(door.url)
    typer.echo("the link works once, in a browser of this machine; Ctrl-C ends the page", err=True)
    try:
        door.wait()
        typer.echo("the page was not used any more, and has ended", err=True)
    except KeyboardInterrupt:
        typer.echo("ended", err=True)
    finally:
        door.close()


@app.command(name="wait-online")
def wait_online(
    timeout: Timeout = "2m",
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: verbs.Contributor = "",
) -> None:
    """Wait until the coordinator counts this node online and its learner is ready."""
    settings = _settings(verbs.place(folder, contributor))
    _wait(
        settings.supernode.state,
        lambda said: is_ready(settings, said),
        "this node is not online",
        timeout,
    )
    typer.echo("online")


@app.command()
def remove(
    contributor: Annotated[
        str, typer.Option(contributors.OPTION, help="The name of the contributor that goes.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Remove one of several contributors: services, users, settings, key; recordings stay."""
    from zk0d.errors import UsageError
    from zk0d.machine import removal
    from zk0d.services import standalone

    folder = contributors.existing(folder, contributor)
    going = ", ".join(map(str, removal.removed_with(folder)))
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"zk0bot cannot ask here whether {going} may go; add --yes.")
        typer.confirm(f"Remove {going}, with the node's key?", abort=True, err=True)
    if not units.by_systemd(folder):
        standalone.stop("client", folder)
    removal.remove(folder)
    typer.echo(f"the contributor {contributor} is removed; recordings stay where they are")


def is_ready(settings: ClientSettings, said: dict[str, Any]) -> bool:
    """Whether a node that tells ``said`` is online and its learner answers."""
    from zk0d.federation.learner_client import LearnerClient, LearnerError

    if not said.get("online"):
        return False
    try:
        with LearnerClient(settings.learner.socket) as learner:
            learner.status()
    except LearnerError:
        return False
    return True


def _wait(state: Path, done: Callable[[dict[str, Any]], bool], otherwise: str, limit: str) -> None:
    from zk0d.errors import TryAgainError
    from zk0d.machine.state import STATE, read_json

    deadline = time.monotonic() + seconds(limit, "--timeout")
    while True:
        said = read_json(state / STATE)
        if done(said):
            return
        if time.monotonic() > deadline:
            why = said.get("status") or "its SuperNode does not run, or you are not root"
            raise TryAgainError(f"{otherwise} after {limit} ({why}).")
        time.sleep(LOOK_SECONDS)


def seconds(text: str, option: str) -> float:
    """What a duration such as ``30m`` means; raises :class:`UsageError` with the option."""
    from zk0d.errors import UsageError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found or not float(found[1]):
        raise UsageError(f"{option}: {text!r} is not a duration; write 45s, 30m, 2h or 1d.")
    return float(found[1]) * _UNITS_OF_TIME[found[2]]


def usual_name(folder: Path) -> str:
    """What a node is called whose owner does not say: as its machine, and its contributor."""
    named = contributors.name_of(folder)
    return f"{host_name()[: 31 - len(named)]}-{named}" if named else host_name()


def host_name() -> str:
    """The name of this machine, as a node may be called."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower())
    return name.strip("-")[:32] or "node"


def _settings(folder: Path) -> ClientSettings:
    from zk0d.config.machine import ClientSettings

    return ClientSettings.load(folder / "client.toml")
