"""``zk0d policy-updates``: fetches the coordinator's newest release, if the settings ask for it.

A timer starts it. It takes what passed the gate, and rests with the owner's line; what came of a
release stays, and the next start asks for the rest.
"""

from __future__ import annotations

import logging
from pathlib import Path

from zk0d.config.machine import ClientSettings, is_this_machine
from zk0d.daemon.line import LineBook
from zk0d.daemon.metered import is_metered
from zk0d.daemon.notify import Notify
from zk0d.errors import Zk0dError
from zk0d.federation.line import Line
from zk0d.machine.authorities import Authorities
from zk0d.machine.credentials import credential
from zk0d.release.pulled import Pulled

log = logging.getLogger("zk0d")

#: So much is asked for at once: then the line is looked at again.
PART_BYTES = 64 * 2**20
_RESTS = "line_rests"


def run(config: Path) -> None:
    """Fetch what is new, and end.

    Raises
    ------
    ConfigError
        If a release is refused, or something on this machine is wrong.
    TryAgainError
        If the coordinator cannot be reached, or the disk is full.
    """
    settings = ClientSettings.load(config)
    notify = Notify()
    if not settings.policy_updates:
        notify.status("policy-updates is off: nothing is fetched")
        return
    try:
        said = update(settings, notify)
    except Zk0dError as error:
        if error.reason != _RESTS:
            raise
        said = error.message
    log.info("%s", said)
    notify.status(said)


def update(settings: ClientSettings, notify: Notify) -> str:
    """Fetch the newest release; what became of it, in a sentence."""
    from zk0d.services.pull import Source, pull

    here = is_this_machine(settings.coordinator.presence_page)
    line = Line(
        settings.limits,
        LineBook(settings.policies_folder),
        besides=LineBook(settings.superexec.state),
        metered=(lambda: False) if here else is_metered,
    )
    line.room()  # before anything is asked
    key = credential("node.key", settings.supernode.key, "supernode.key")
    ca = credential("ca.crt", settings.coordinator.ca, "coordinator.ca")
    known = Authorities.read(ca, settings.supernode.state)
    source = Source(settings, key, line, authorities=known)
    try:
        offering = source.ask()
        latest = offering.offer.latest
        if not latest:
            return "the coordinator has no release yet"
        release = next((each for each in offering.releases() if each.name == latest), None)
        if release is not None and not release.passed:
            return (
                f"release {latest} did not pass the gate and was accepted by hand: zk0bot policy"
                " pull fetches it"
            )
        there = Pulled.of(settings).named("latest")
        notify.status(f"fetching release {latest}")

        def may() -> int:
            return min(line.room() or PART_BYTES, PART_BYTES)

        made = pull(settings, source, latest, offering=offering, say=notify.status, may=may)
    finally:
        source.close()
    news = there is None or there != made.folder.resolve()
    return f"release {latest} is {'here now' if news else 'here already'}: {made.folder}"
