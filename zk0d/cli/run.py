"""``zk0bot run``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0d.cli import verbs
from zk0d.machine import units

if TYPE_CHECKING:
    from zk0d.config.machine import ServerSettings
    from zk0d.config.run import RunSettings
    from zk0d.flower.control import Control
    from zk0d.record.events import Event
    from zk0d.record.state import RunState

LOOK_SECONDS = 0.5
RUN_SETTINGS = "run settings"
#: A run that Flower calls finished has its last journal line by now.
LAST_LINE_SECONDS = 5.0

Superlink = Annotated[
    str, typer.Option(help="HOST:PORT of the SuperLink on loopback (by default server.toml's).")
]
Ca = Annotated[
    Path | None, typer.Option(help="CA certificate of that SuperLink (by default server.toml's).")
]

Secret = Annotated[
    Path | None, typer.Option(help="File of its control secret (by default server.toml's).")
]


def run(
    config: Annotated[
        list[str] | None,
        typer.Option("-c", "--config", help="Run settings, 'num-server-rounds=50 policy=act'."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to train.")] = None,
    resume: Annotated[
        str, typer.Option(metavar="RUN", help="Resume this run after its last committed round.")
    ] = "",
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Show each round until the run's end.")
    ] = False,
    superlink: Superlink = "",
    ca: Ca = None,
    secret: Secret = None,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Start a run on this coordinator; its bundle holds settings and no code."""
    from zk0d.config.run import parse_overrides, run_settings
    from zk0d.errors import UsageError
    from zk0d.machine.audit import note

    values = parse_overrides(config or [])
    if rounds is not None:
        values["num-server-rounds"] = rounds
    if resume:
        if values:
            raise UsageError(
                f"--resume {resume} keeps the settings that the run began with; leave out -c and"
                " --rounds, or start a new run."
            )
        values["resume"] = resume
    settings = run_settings(values) if resume else _checked(values, folder, bool(superlink))
    with control(folder, superlink, ca, secret) as link:
        number = _at_work(link, folder, resume) if resume else 0
        number = number or link.start_run(settings)
        typer.echo(number)
        changed = {"resume": resume} if resume else values
        note(folder, "run.requested", run=str(number), settings=changed)
        if follow:
            try:
                _follow(link, folder, number, resume or str(number))
            except KeyboardInterrupt:
                typer.echo(f"the run continues; zk0bot stop {number} would end it", err=True)


def _checked(values: dict[str, Any], folder: Path, elsewhere: bool) -> RunSettings:
    """The settings of a new run, with those of this coordinator's ``[run]`` table if it is its own.

    What would fail at the run's end is refused, and what this coordinator lacks.
    """
    from zk0d.config.run import run_settings

    if elsewhere or not (folder / "server.toml").exists():
        settings = run_settings(values)
        settings.check_end(RUN_SETTINGS)
        return settings
    server = coordinator(folder)
    settings = server.run_settings(values)
    server.check_run(settings, RUN_SETTINGS)
    return settings


def known_run(folder: Path, run: str) -> RunState | None:
    """A run's state by its journal; ``None`` if it is not here, or this user may not read it."""
    from zk0d.record.state import RunState

    try:
        state = RunState.read(coordinator(folder).runs / run)
    except PermissionError:
        return None
    return state if state.run and state.phase != "starting" else None


def _at_work(link: Control, folder: Path, run: str) -> int:
    """Flower's number of a run that waits, asked to try at once; 0 if no ServerApp works on it.

    Raises
    ------
    UsageError
        If it is under way: two ServerApps must not write one journal.
    """
    from zk0d.errors import UsageError, not_written
    from zk0d.files import write_file
    from zk0d.flower.control import FINISHED
    from zk0d.record.journal import TRY_NOW

    state = known_run(folder, run)
    working = {str(each.run_id) for each in link.runs() if each.status != FINISHED}
    if state is None or state.flower not in working:
        return 0
    if state.waiting is None:
        raise UsageError(f"run {run} is under way; there is nothing to resume.")
    home = coordinator(folder).runs / run
    try:
        write_file(home / TRY_NOW, "")
    except OSError as error:
        raise not_written(f"{home}: the run cannot be asked to try", error) from None
    typer.echo(f"run {run} waits and tries at once: {state.waiting.message}", err=True)
    return int(state.flower)


def control(folder: Path, superlink: str, ca: Path | None, secret: Path | None) -> Control:
    """The SuperLink of this coordinator, by ``server.toml`` unless options say otherwise."""
    from zk0d.config.machine import DEFAULT_CA, ServerSettings
    from zk0d.flower.control import Control

    link = ServerSettings().superlink if superlink and ca else coordinator(folder).superlink
    return Control(
        superlink or f"127.0.0.1:{link.port}",
        ca or link.ca or DEFAULT_CA,
        None if link.open_control else secret or link.control_secret,
    )


def coordinator(folder: Path) -> ServerSettings:
    """Its settings; the defaults where there are none."""
    from zk0d.config.machine import ServerSettings

    path = folder / "server.toml"
    return ServerSettings.load(path) if path.exists() else ServerSettings()


def _follow(link: Control, folder: Path, number: int, name: str) -> None:
    from zk0d.errors import Zk0dError
    from zk0d.flower.control import FINISHED
    from zk0d.record.events import RunFailed, RunFinished
    from zk0d.record.journal import JournalTail

    tail = JournalTail(coordinator(folder).runs / name)
    if name != str(number):
        tail.new_events()  # what it did before is known
    ended = 0.0
    while True:
        for event in tail.new_events():
            _show(event)
            if isinstance(event, RunFinished):
                return
            if isinstance(event, RunFailed):
                raise Zk0dError(f"run {name} failed: {event.message}", reason="run_failed")
        state = link.run(number)
        if state.status == FINISHED:
            # Its ServerApp may have died without a last line.
            ended = ended or time.monotonic()
            if time.monotonic() - ended > LAST_LINE_SECONDS:
                raise Zk0dError(
                    f"run {name} {state.outcome}: {state.details}; if it was interrupted, the"
                    " coordinator resumes it (zk0bot status)."
                )
        time.sleep(LOOK_SECONDS)


def _show(event: Event) -> None:
    from zk0d.record.events import (
        ModelReady,
        NodeMeasured,
        NodeNotMeasured,
        NodePreparing,
        NodeRefused,
        RoundCommitted,
        RoundFailed,
        RunContinued,
        RunWaiting,
        UpdateRefused,
    )

    match event:
        case RoundCommitted():
            measured = event.evaluation.loss if event.evaluation else None
            loss = f", policy loss {measured:.4f}" if measured is not None else ""
            nodes = f", {len(event.nodes)} nodes" if event.round else ""
            typer.echo(f"round {event.round} is committed{nodes}{loss}")
        case NodeMeasured():
            typer.echo(
                f"{event.node} has evaluated the weights of round {event.round}, loss"
                f" {event.loss:.4f}"
            )
        case NodeNotMeasured():
            typer.echo(
                f"{event.node} has not evaluated the weights of round {event.round}"
                f" ({event.reason})"
            )
        case UpdateRefused():
            typer.echo(f"round {event.round}: {event.node} is left out ({event.reason})")
        case ModelReady() if event.spec.notice:
            typer.echo(event.spec.notice)
        case NodePreparing():
            typer.echo(f"{event.node} is {event.message}")
        case NodeRefused():
            typer.echo(f"{event.node} cannot train: {event.message}")
        case RoundFailed():
            typer.echo(f"round {event.round} failed: {event.message}")
        case RunWaiting():
            typer.echo(f"the run waits: {event.message}; it continues {event.until}")
        case RunContinued():
            typer.echo("the run continues")
