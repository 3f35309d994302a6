"""``zk0bot server``: the coordinator's services on this host."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.cli import status as status_verb
from zk0d.cli import verbs
from zk0d.machine import roles, units

if TYPE_CHECKING:
    from zk0d.config.machine import ServerSettings
    from zk0d.machine.rollover import Cas

app = typer.Typer(no_args_is_help=True, help="The coordinator's services on this host.")


@app.command()
def init(
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or address of this coordinator; may be repeated."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="A certificate of your own for the gateway.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="That certificate's key.")] = None,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Make certificates, secrets, settings and the gateway's configuration; keep existing ones."""
    from zk0d.config.machine import ServerSettings
    from zk0d.errors import UsageError
    from zk0d.machine import gateway
    from zk0d.machine.setup import set_up_server

    if not host:
        raise UsageError("--host is missing: a name or address that nodes reach it by.")
    if bool(certificate) != bool(key):
        raise UsageError("--certificate and --key belong together; give both or none.")
    own: dict[str, object] = {}
    if certificate and key:
        own = {
            "certificate": certificate.absolute(),
            "key": key.absolute(),
            "address": f"{host[0]}:9443",
        }
    verbs.tell_kept(set_up_server(folder, host, {"gateway": own} if own else {}))
    gateway.configure(folder, ServerSettings.load(folder / "server.toml"))
    typer.echo("Next: zk0bot server start, then zk0bot server invite for each new contributor.")


@app.command()
def invite(
    duration: Annotated[
        str, typer.Option("--for", help="Let nodes in by itself for so long (30m, 2h, 7d).")
    ] = "",
    uses: Annotated[int, typer.Option(help="With --for: how many nodes it lets in.")] = 1,
    list_: Annotated[
        bool, typer.Option("--list", help="List the invites that let nodes in by themselves.")
    ] = False,
    revoke: Annotated[
        str, typer.Option(metavar="ID", help="End one of them; --list shows its ID.")
    ] = "",
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Print the line that a contributor gives to zk0bot setup."""
    from zk0d.cli.client import seconds
    from zk0d.config.machine import ServerSettings
    from zk0d.errors import UsageError
    from zk0d.machine.audit import note
    from zk0d.machine.enrolment import invite_of
    from zk0d.machine.invites import OpenInvites

    if bool(duration) + list_ + bool(revoke) > 1 or (uses != 1 and not duration):
        raise UsageError("--for with --uses, --list and --revoke are three different commands.")
    settings = ServerSettings.load(folder / "server.toml")
    invites = OpenInvites(settings.superlink.state)
    if list_:
        for each in invites.still_open():
            until = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.until))
            typer.echo(f"{each.id}  until {until}  {each.uses} left")
        return
    if revoke:
        invites.revoke(revoke)
        note(folder, "invite.revoked", invite=revoke)
        typer.echo(f"invite {revoke} lets no node in any more")
        return
    made = invite_of(settings)
    if duration:
        opened, token = invites.add(seconds(duration, "--for"), uses)
        note(folder, "invite.made", invite=opened.id, until=opened.until, uses=uses)
        made = replace(made, token=token)
        typer.echo(
            f"invite {opened.id}: its line lets nodes in for {duration}, {uses} in all;"
            f" zk0bot server invite --revoke {opened.id} ends it",
            err=True,
        )
    typer.echo(made.to_line())
    known = f"CA fingerprint {made.fingerprint}" if made.ca else "certificate of a public CA"
    typer.echo(f"{made.address}, {known}", err=True)


@app.command()
def renew(
    force: Annotated[bool, typer.Option("--force", help="Renew it in any case.")] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Renew the gateway's certificate if it ends within 30 days; a timer runs this each day."""
    from zk0d.machine import certificates, gateway
    from zk0d.machine.rights import writing

    with writing(folder):
        renewed = certificates.renew(folder / "tls", force=force)
    if not renewed:
        typer.echo("the certificate is valid for more than 30 days")
        return
    gateway.show_certificate(folder)
    typer.echo("the certificate is renewed")


@app.command(name="renew-ca")
def renew_ca(
    begin: Annotated[
        bool, typer.Option("--begin", help="Make the next CA; nodes then trust both.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Use the next CA alone; a run under way resumes.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Before --finish: take the next CA back.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="With --finish: also if a node lacks the next CA.")
    ] = False,
    folder: verbs.Folder = units.CONFIG_FOLDER,
) -> None:
    """Change the certificate authority (CA) in two steps, or show which nodes have the next one."""
    from zk0d.config.machine import ServerSettings
    from zk0d.errors import UnavailableError, UsageError
    from zk0d.machine import rollover
    from zk0d.machine.audit import note

    if begin + finish + cancel > 1 or (force and not finish):
        raise UsageError(
            "--begin, --finish and --cancel are steps; give one of them. --force belongs to"
            " --finish."
        )
    settings = ServerSettings.load(folder / "server.toml")
    if cancel:
        note(folder, "ca.cancelled", ca=rollover.cancel(settings))
        typer.echo("the next CA is taken back; nodes that have it drop it by themselves")
    cas = rollover.read_cas(settings.superlink.ca, settings.gateway.certificate)
    if begin:
        is_new = cas.next is None
        cas = rollover.begin(settings)
        if is_new and cas.next is not None:
            note(folder, "ca.begun", ca=cas.next.fingerprint, by=cas.next.by)
    _show_ca(settings, cas)
    if not finish:
        return
    missed = [each.name for each in rollover.standings(settings) if each.is_missed]
    # Who trusts a public authority needs nothing of ours.
    if missed and cas.shown and not force:
        raise UnavailableError(
            f"the next CA is not on {', '.join(missed)} yet, which would be cut off; wait until"
            " they have been online, or add --force and send their owners a new invite."
        )
    rollover.finish(settings)
    if units.by_systemd(folder):
        names = ("gateway", "superlink", "server-superexec")
        units.systemctl("try-restart", *(f"{roles.service(n).unit}.service" for n in names))
    rollover.end(settings)
    note(folder, "ca.finished", ca=cas.next.fingerprint if cas.next else "", missed=missed)
    typer.echo(
        "the next CA is the only one now; the services have its certificates"
        if units.by_systemd(folder)
        else "the next CA counts after a restart: zk0bot server stop, then start"
    )


def _show_ca(settings: ServerSettings, cas: Cas) -> None:
    from zk0d.machine import rollover
    from zk0d.machine.successor import fingerprint

    if cas.next is None:
        typer.echo(f"CA {fingerprint(cas.present)[:16]}; no change of it is under way")
        return
    typer.echo(f"CA {cas.next.by[:16]}, to be followed by {cas.next.fingerprint[:16]}")
    for each in rollover.standings(settings) if cas.shown else ():
        if each.has:
            said = "has the next CA"
        elif each.is_missed:
            said = "does not have it yet"
        else:
            said = "does not have it, and was not online in the last 30 days"
        typer.echo(f"node {each.name}: {said}")


@app.command(name="renew-secrets")
def renew_secrets(folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """Make new secrets of this host's services and restart them; a run under way resumes."""
    from zk0d.config.machine import ServerSettings
    from zk0d.machine.audit import note

    link = ServerSettings.load(folder / "server.toml").superlink
    verbs.renew_secrets(
        "server", folder, [link.secret, link.control_secret], ["superlink", "server-superexec"]
    )
    note(folder, "secrets.renewed")


@app.command()
def start(folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """Start the services, now and at every boot; without systemd, here until Ctrl-C."""
    from zk0d.config.machine import ServerSettings
    from zk0d.machine import gateway
    from zk0d.services import standalone

    settings = ServerSettings.load(folder / "server.toml")
    besides = [standalone.gateway(folder, settings)]
    changed = gateway.configure(folder, settings)
    if units.by_systemd(folder):
        gateway.hand_over_certificate(settings)
    verbs.start("server", folder, changed=changed, besides=besides)
    if changed and units.by_systemd(folder):
        units.systemctl("restart", gateway.UNIT)


@app.command()
def stop(folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """Stop the services, now and at every boot; a run under way fails."""
    verbs.stop("server", folder)


@app.command()
def status(as_json: status_verb.Json = False, folder: verbs.Folder = units.CONFIG_FOLDER) -> None:
    """Show the services' state; exit code 1 if something is wrong."""
    status_verb.show(["server"], as_json, folder)


@app.command()
def logs(follow: verbs.Follow = False, lines: verbs.Lines = 50) -> None:
    """Show the services' lines in systemd's journal."""
    verbs.logs(["server"], follow, lines)
