"""``zk0bot setup``: one conversation from nothing to a node that is online.

Each answer is in ``client.toml`` before the next question, so that a second call continues
where the first one stopped.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zk0d.cli import client, verbs
from zk0d.cli.questions import Questions
from zk0d.machine import contributors, units

if TYPE_CHECKING:
    from zk0d.config.machine import ClientSettings
    from zk0d.daemon.child import Child
    from zk0d.doctor.finding import Finding, Host
    from zk0d.learning.found import FoundDataset
    from zk0d.machine.enrolment import Invite

#: Of datasets that were found.
MOST_SHOWN = 15
#: To read every number of large recordings.
CHECK_SECONDS = 3600.0
LOG = "services.log"
_NUMBERED = "a number of the list, a folder, or user/name on the hub"


def setup(
    invite: Annotated[
        str | None, typer.Argument(help="The line from zk0bot server invite; without it, it asks.")
    ] = None,
    name: client.Name = "",
    dataset: Annotated[
        str | None, typer.Option(help="A folder, or user/name; without it, it looks and asks.")
    ] = None,
    contact: client.Contact = "",
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing; take the defaults, for scripts.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="Wait so long to be online (30s, 20m, 2h).")] = "1h",
    folder: verbs.Folder = units.CONFIG_FOLDER,
    contributor: client.NewContributor = "",
) -> None:
    """Set this node up by questions: from an invite to a node that is online."""
    import click

    client.seconds(timeout, "--timeout")
    talk = Conversation(Questions(yes=yes), client.new_place(folder, contributor))
    try:
        talk.join(invite, name)
        talk.choose_recordings(dataset)
        talk.map_cameras()
        talk.ask_limits()
        talk.ask_to_join(contact)
        talk.go_online(timeout)
    except (click.Abort, KeyboardInterrupt):
        typer.echo("\nzk0bot: interrupted; zk0bot setup continues from here.", err=True)
        raise typer.Exit(130) from None


class Conversation:
    """The steps; each asks only what the settings in ``folder`` do not say yet."""

    def __init__(self, questions: Questions, folder: Path) -> None:
        self._questions = questions
        self._say = questions.say
        self._folder = folder
        self._file = folder / "client.toml"
        self._changed = False  # whether services that run have older settings

    def join(self, invite: str | None, name: str) -> None:
        """Whose node this is and what it is called: settings and key.

        Raises
        ------
        UsageError
            If there is no invite, or the node belongs to another coordinator already.
        ConfigError
            If invite or name are none.
        TryAgainError
            If the settings cannot be written.
        """
        from zk0d.config.names import check_alias
        from zk0d.errors import TryAgainError
        from zk0d.machine.setup import keep_token, set_up_client

        if self._file.exists():
            self._return(invite, name)
            return
        place = next(each for each in (self._folder, *self._folder.parents) if each.exists())
        if not os.access(place, os.W_OK):
            raise TryAgainError(
                f"{self._folder}: cannot be written; are you root? sudo zk0bot setup, or --folder"
                " for a folder of your own."
            )
        read = self._invite(invite)
        usual = check_alias(name or client.usual_name(self._folder))
        # Before the next question, so that no invite is pasted twice.
        set_up_client(
            self._folder, usual, read.address, read.authorities, release_key=read.release_key
        )
        keep_token(self._folder, read.token)
        self._say(f"Its settings and its key are in {self._folder}.")
        if not name:
            called = self._questions.ask_until("What is this node called?", check_alias, usual)
            if called != usual:
                self._change({"name": called})

    def _invite(self, line: str | None) -> Invite:
        """The invite that was given, or a person pastes."""
        from zk0d.errors import UsageError

        if line is None and self._questions.yes:
            raise UsageError("INVITE is missing: the line that zk0bot server invite printed.")
        invite = (
            _read_invite(line)
            if line is not None
            else self._questions.ask_until("The invite of your coordinator", _read_invite)
        )
        self._say(f"Coordinator {invite.address}")
        ours = f"CA fingerprint {invite.fingerprint}"
        self._say(f"  {ours if invite.ca else 'certificate of a public CA'}")
        return invite

    def _return(self, invite: str | None, name: str) -> None:
        """It was set up before, at least so far."""
        from zk0d.errors import UsageError
        from zk0d.machine.setup import keep_token, set_authority, set_release_key

        settings = self._settings
        address = settings.coordinator.address
        if invite is not None or not address:
            read = self._invite(invite)
            if address and read.address != address:
                raise UsageError(
                    f"this node belongs to {address} and the invite is of {read.address}; give"
                    " --folder for a second node, or write the new address into"
                    f" coordinator.address of {self._file}."
                )
            if set_authority(self._folder, read.authorities):
                self._changed = True
            set_release_key(self._folder, read.release_key)
            if not address:
                self._change({"coordinator": {"address": read.address}})
            if read.token:
                keep_token(self._folder, read.token)
        if name and name != settings.name:
            self._change({"name": name})
        settings = self._settings
        self._say(
            f"This node is called {settings.name} and belongs to {settings.coordinator.address}"
            f" ({self._file}; --name gives it another name)."
        )

    def choose_recordings(self, dataset: str | None) -> None:
        """Which recordings it lends, after a check of them.

        Raises
        ------
        UsageError
            If nobody can be asked, and not exactly one dataset is where LeRobot keeps them.
        DataError, ConfigError
            If nobody can be asked, and they cannot be used.
        """
        chosen = [each.uri for each in self._settings.lent]
        if dataset is None and chosen:
            self._say(f"Recordings: {', '.join(chosen)}")
            return
        if dataset is not None:
            self._use(dataset)
            return
        from zk0d.learning.found import lerobot_folders, look_through

        places = lerobot_folders()
        found = look_through(places)[:MOST_SHOWN]
        usable = [each for each in found if not each.problem]
        if self._questions.yes:
            self._use(_only(usable, places))
            return
        self._list(found, places)
        first = str(1 + found.index(usable[0])) if usable else ""

        def take(answer: str) -> None:
            from zk0d.errors import UsageError

            if not answer:
                raise UsageError(f"name the recordings: {_NUMBERED}.")
            listed = answer.isdigit() and 0 < int(answer) <= len(found)
            self._use(str(found[int(answer) - 1].folder) if listed else answer)

        question = "Which recordings does this node lend?"
        self._questions.ask_until(f"{question} ({_NUMBERED})", take, first)

    def _list(self, found: list[FoundDataset], places: list[Path]) -> None:
        if not found:
            self._say(f"There are no recordings in {' or '.join(map(str, places))}.")
            return
        self._say("Recordings on this machine:")
        for number, each in enumerate(found, start=1):
            facts = each.problem or f"{each.episodes} episodes, {each.minutes:.1f} minutes"
            self._say(f"  {number:2}  {each.name}: {facts}")

    def _use(self, dataset: str) -> None:
        """Check a dataset and write it to the settings."""
        from zk0d.config.names import DatasetUri
        from zk0d.errors import DataError
        from zk0d.machine import recordings

        uri = DatasetUri.typed(dataset)
        if uri.fetched and not self._is_here(uri):
            self._say(
                f"{uri} is not on this machine; it is downloaded, and checked when it is here."
            )
        else:
            if not uri.fetched:
                self._say(f"Checking {uri.folder}: every number is read, which may take minutes.")
            for found in self._findings(str(uri)):
                if found.ok is False:
                    why = "; ".join(filter(None, (found.evidence, found.cure)))
                    problem = found.problem.removeprefix("dataset-uri: ").rstrip(".")
                    raise DataError(f"{problem} ({why}).")
                self._say(f"  {found.evidence or f'not checked: {found.problem}'}")
        if recordings.choose([str(uri)], self._folder, self._say):
            self._changed = True

    def _findings(self, uri: str) -> Iterator[Finding]:
        """What ``zk0bot data check`` and the doctor find."""
        from zk0d.doctor.recordings import dataset, dataset_values

        host = self._host()
        found = dataset(host, uri)
        yield found
        if found.ok:
            yield dataset_values(host, uri, {}, seconds=CHECK_SECONDS)

    def _host(self) -> Host:
        from zk0d.doctor.finding import Host

        return Host.of(self._folder)

    def _is_here(self, uri: Any) -> bool:
        from zk0d.config.names import DATASET_FILE
        from zk0d.doctor.recordings import folder_of

        return (folder_of(self._host(), str(uri)) / DATASET_FILE).exists()

    def map_cameras(self) -> None:
        """What its cameras are for the usual policy, by suggestion, if they have other names."""
        from zk0d.config.cameras import suggest_cameras
        from zk0d.config.families import FAMILIES
        from zk0d.config.run import RunSettings

        settings = self._settings
        own = self._cameras(settings)
        policy = RunSettings().policy
        wanted = FAMILIES[policy].cameras
        if "cameras" in settings.model_fields_set or not set(own) - set(wanted):
            return
        near = suggest_cameras(own, wanted)
        mapping = {name: near.get(name, "") for name in own}
        self._say(f"The policy that is usual here ({policy}) has other names for cameras:")
        for name, to in mapping.items():
            self._say(f"  {name} would be {to or 'left out'}")
        if not self._questions.agrees("Call them so?", default=True):
            mapping = self._ask_cameras(mapping, wanted)
        self._change({"cameras": mapping})

    def _cameras(self, settings: ClientSettings) -> list[str]:
        """The recordings' cameras that a policy may take; none if they are not here yet."""
        from zk0d.config.cameras import MappedAt, camera_name
        from zk0d.config.names import DatasetUri
        from zk0d.doctor.recordings import folder_of
        from zk0d.errors import Zk0dError
        from zk0d.learning.cameras import map_cameras
        from zk0d.learning.layout import read_info

        # Datasets of one node have the same cameras.
        uri = DatasetUri.parse(settings.lent[0].uri)
        if uri.fetched and not self._is_here(uri):
            return []
        try:
            info = read_info(folder_of(self._host(), str(uri)), str(uri))
            used, _ = map_cameras(info, str(uri), {}, MappedAt.SETTINGS)
        except Zk0dError:  # zk0bot doctor and the learner say what is wrong
            return []
        return [camera_name(key) for key in used]

    def _ask_cameras(self, usual: dict[str, str], wanted: tuple[str, ...]) -> dict[str, str]:
        from zk0d.errors import UsageError

        taken: dict[str, str] = {}

        def take(answer: str) -> str:
            to = "" if answer == "-" else answer
            if to and to in taken.values():
                raise UsageError(f"'{to}' is another camera's already.")
            return to

        self._say(f"The policy has {', '.join(wanted)}; - leaves a camera out.")
        for name, to in usual.items():
            free = to if to not in taken.values() else ""
            taken[name] = self._questions.ask_until(f"{name} is", take, free or "-")
        if not any(taken.values()):
            raise UsageError("every camera is left out, and a policy needs at least one.")
        return taken

    def ask_limits(self) -> None:
        """What the owner lends of the machine and its line."""
        if "limits" in self._settings.model_fields_set or self._questions.yes:
            return
        self._say("What you lend; [limits] in client.toml has more, and every run obeys it.")
        limits: dict[str, object] = {}

        def take(key: str, answer: str) -> None:
            from zk0d.config.limits import LimitsSettings

            LimitsSettings.parse({key: answer or 0 if key == "upload-rate" else answer}, where=key)
            limits[key] = answer or (0 if key == "upload-rate" else "")

        ask = self._questions.ask_until
        ask(
            "When may it train? (such as 22:00-07:00, or mon-fri 22:00-07:00, sat, sun)",
            lambda answer: take("hours", "" if answer == "always" else answer),
            "always",
        )
        limits["only-when-idle"] = self._questions.agrees(
            "Rest while you use this computer?", default=False
        )
        ask(
            "How much may it upload a second? (such as 1 MB)",
            lambda answer: take("upload-rate", "" if answer == "no limit" else answer),
            "no limit",
        )
        self._change({"limits": limits})

    def ask_to_join(self, contact: str) -> None:
        """Show the request as text and as a QR code, unless the coordinator knows this node."""
        from zk0d.cli import qr
        from zk0d.machine import node_key
        from zk0d.machine.keys import fingerprint

        if self._is_let_in(contact):
            self._say("The coordinator has approved this node.")
            return
        text = node_key.request(self._folder, contact)
        self._say("\nSend this to the coordinator's operator; it holds no secret:\n")
        self._say(text)
        code = qr.qr_code(node_key.request_line(self._folder, contact))
        if qr.fits_here(code):
            self._say("\nThe same for a telephone's camera:\n")
            self._say(code)
        self._say("\nTell the operator this fingerprint by another way, such as by voice:")
        self._say(f"  {_in_groups(fingerprint(self._folder / 'node.pub'))}\n")

    def _is_let_in(self, contact: str) -> bool:
        """Whether the coordinator knows this node, or the invite's token lets it in now."""
        from zk0d.config.names import check_alias
        from zk0d.machine.setup import kept_token

        if self._coordinators_word().get("enrolled"):
            return True
        while kept_token(self._folder):
            answer = client.enrol(self._folder, contact)
            if answer.approved:
                return True
            self._say(f"The invite does not let this node in: {answer.sentence}.")
            if not answer.name_taken or self._questions.yes:
                break
            other = self._questions.ask_until("Another name for this node?", check_alias)
            self._change({"name": other})
        return False

    def _coordinators_word(self) -> dict[str, Any]:
        """What the presence page says of this node's key; empty if it does not answer."""
        from zk0d.errors import ConfigError
        from zk0d.machine.authorities import Authorities
        from zk0d.machine.keys import fingerprint
        from zk0d.services.coordinator import ask_presence

        coordinator = self._settings.coordinator
        key = fingerprint(self._folder / "node.pub")
        try:
            trust = Authorities.of(self._settings).context()
        except ConfigError:
            return {}
        word = ask_presence(f"{coordinator.presence_page}/nodes/{key}", trust)
        if word.failure:
            self._say(f"The coordinator {coordinator.address} does not answer now: {word.failure}.")
        return word.answer

    def go_online(self, timeout: str) -> None:
        """Start the services and wait, with one live line, until this node is online.

        Without systemd they run here, until Ctrl-C.

        Raises
        ------
        TryAgainError
            If it is not online in time.
        Zk0dError
            If a service cannot run.
        """
        with self._services() as child:
            self._wait(timeout, child)
            self._say(f"\n{self._settings.name} is online. What next:")
            mine = contributors.option(self._folder)
            self._say(f"  zk0bot status{mine}               what it does now")
            self._say(f"  zk0bot top{mine}                  losses, steps, GPU, live")
            self._say(f"  zk0bot client pause --for 2h{mine}")
            self._say(f"  {self._file} has the limits; restart the services after a change")
            if child is None:
                return
            try:  # as soon as it is said, it may be pressed
                self._say(f"The services run here until Ctrl-C; their lines are in {child.log}.")
                while child.alive:
                    time.sleep(client.LOOK_SECONDS)
            except KeyboardInterrupt:
                self._say("stopped")
                return
            child.check()

    @contextmanager
    def _services(self) -> Iterator[Child | None]:
        """Start them; the process that runs them, if it is one of ours."""
        from zk0d.daemon.child import Child
        from zk0d.daemon.environment import program_path
        from zk0d.services import standalone

        state = self._settings.supernode.state
        if units.by_systemd(self._folder):
            if self._changed:
                units.restart("client", self._folder)
            else:
                units.start("client", self._folder)
            yield None
            return
        if standalone.look("client", state):
            if self._changed:
                self._say("The services run with the settings of before: restart them.")
            yield None
            return
        state.mkdir(parents=True, exist_ok=True)
        child = Child(
            "zk0bot client start",
            [program_path("zk0bot"), "client", "start", "--folder", str(self._folder)],
            os.environ,
            state / LOG,
            state,
        )
        try:
            yield child
        finally:
            child.stop(standalone.STOP_SECONDS)

    def _wait(self, timeout: str, child: Child | None) -> None:
        from zk0d.errors import TryAgainError
        from zk0d.machine.state import STATE, read_json

        settings = self._settings
        deadline = time.monotonic() + client.seconds(timeout, "--timeout")
        with _live_line() as show:
            while True:
                said = read_json(settings.supernode.state / STATE)
                if client.is_ready(settings, said):
                    return
                line = said.get("status") or "the services start"
                if said.get("online"):
                    line = f"{line}; the learner reads the recordings"
                show(line)
                if child is not None:
                    child.check()
                if time.monotonic() > deadline:
                    raise TryAgainError(
                        f"this node is not online after {timeout} ({line}); zk0bot setup continues"
                        " from here."
                    )
                time.sleep(client.LOOK_SECONDS)

    @property
    def _settings(self) -> ClientSettings:
        from zk0d.config.machine import ClientSettings

        return ClientSettings.load(self._file)

    def _change(self, changes: dict[str, Any]) -> None:
        from zk0d.machine.setup import change_client

        change_client(self._file, changes)
        self._changed = True


@contextmanager
def _live_line() -> Iterator[Any]:
    """Shows one line that changes; where there is no terminal, each other line."""
    from rich.console import Console

    console, before = Console(), ""

    def tell(line: str) -> None:
        nonlocal before
        if line != before:
            before = line
            console.print(line, soft_wrap=True, highlight=False, markup=False)

    if not console.is_terminal:
        yield tell
        return
    from rich.text import Text

    with console.status("") as status:
        yield lambda line: status.update(Text(line))


def _only(usable: list[FoundDataset], places: list[Path]) -> str:
    """The one dataset that there is to lend."""
    from zk0d.errors import UsageError

    if len(usable) == 1:
        return str(usable[0].folder)
    where = " or ".join(map(str, places))
    if not usable:
        raise UsageError(f"there are no recordings in {where}; name them with --dataset.")
    names = ", ".join(each.name for each in usable)
    raise UsageError(f"there are several recordings ({names}); name yours with --dataset.")


def _read_invite(line: str) -> Invite:
    from zk0d.machine.enrolment import Invite

    return Invite.from_line(sys.stdin.read() if line == "-" else line)


def _in_groups(fingerprint: str) -> str:
    """A fingerprint as one reads it aloud."""
    return " ".join(fingerprint[at : at + 4] for at in range(0, len(fingerprint), 4))
