"""A coordinator changes its certificate authority (CA), while its nodes go on.

:func:`begin` makes the next CA and has the present one name it (``tls/ca.next.json``); ``ca.crt``
then holds both. The coordinator's service tells nodes, which say when they have it. :func:`finish`
has the next CA sign the certificates and takes its place; :func:`cancel` takes it back before that.
Each goes on where it was cut off.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from zk0d.config.machine import ServerSettings
from zk0d.errors import ConfigError, UsageError
from zk0d.files import rename, write_file
from zk0d.machine import audit, certificates, roster
from zk0d.machine.certificates import is_issued_by
from zk0d.machine.rights import writing
from zk0d.machine.state import STATE, read_json, write_json
from zk0d.machine.successor import Successor, fingerprint, pems

KNOWN = "authority.json"  #: in the SuperLink's folder: which nodes have the next CA
VERSION = 1
#: A node that was online in this time is waited for.
LATELY_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class Cas:
    """The CAs of a coordinator.

    Attributes
    ----------
    present
        The certificate (PEM) of the one that signs now.
    next
        The one that is to follow.
    shown
        The fingerprint of the one that signed the gateway's certificate; empty if that is a public
        authority's.
    """

    present: str
    next: Successor | None
    shown: str


@dataclass(frozen=True)
class Standing:
    """How a node of the roster stands in a change of the CA.

    Attributes
    ----------
    has
        Whether it has the next CA.
    seen
        When it was last online, in seconds since 1970; infinity if it is, 0 if never.
    """

    name: str
    has: bool
    seen: float

    @property
    def is_missed(self) -> bool:
        """Whether the change waits for it."""
        return not self.has and time.time() - self.seen < LATELY_SECONDS


def next_file(ca: Path) -> Path:
    """What names the next CA, beside the certificate of the present one."""
    return ca.with_name("ca.next.json")


def read_cas(ca: Path, certificate: Path) -> Cas:
    """The CAs as their files have them.

    Parameters
    ----------
    certificate
        The gateway's.

    Raises
    ------
    ConfigError
        If a file cannot be read.
    """
    try:
        known = pems(ca.read_text(encoding="utf-8"))
        seen = x509.load_pem_x509_certificate(certificate.read_bytes())
        issuers = [pem for pem in known if is_issued_by(seen, _loaded(pem))]
        present = known[0]
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{ca}: the certificates cannot be read ({error}).") from None
    return Cas(present, _read_next(ca), fingerprint(issuers[0]) if issuers else "")


def begin(settings: ServerSettings) -> Cas:
    """Make the next CA beside the present one, or go on with that.

    Raises
    ------
    ConfigError
        If the present one or its key cannot be read.
    TryAgainError
        If something cannot be written.
    """
    ca = settings.superlink.ca
    with writing(ca.parent):
        if _read_next(ca) is None:
            key, present = certificates.authority(ca.parent)
            made_key, made = certificates.make_authority()
            # The key first: what names the CA says that there is one.
            write_file(_next_key(ca), made_key, mode=0o600)
            named = Successor.of(made, present, key)
            write_file(next_file(ca), json.dumps(named.to_json()), mode=0o644)
        following = _read_next(ca)
        assert following is not None
        there = pems(ca.read_text(encoding="utf-8"))
        # Whoever takes this file takes both; the first one signs.
        if following.fingerprint not in map(fingerprint, there):
            write_file(ca, "".join([*there, following.certificate]))
    return read_cas(ca, settings.gateway.certificate)


def finish(settings: ServerSettings) -> None:
    """Have the next CA sign the certificates, and take the place of the present one.

    What names it stays: :func:`end` removes that when the services have the new certificates.

    Raises
    ------
    UsageError
        If there is no next CA.
    ConfigError
        If its key is not there.
    TryAgainError
        If something cannot be written.
    """
    ca = settings.superlink.ca
    following = _read_next(ca)
    if following is None:
        raise UsageError(
            "no change of the CA is under way; zk0bot server renew-ca --begin begins one."
        )
    with writing(ca.parent):
        newer = _next_key(ca)
        # Without the key it has its place already.
        key = newer if newer.exists() else ca.with_name("ca.key")
        certificates.sign_all(ca.parent, following.certificate, key)
        if newer.exists():
            rename(newer, ca.with_name("ca.key"))
        write_file(ca, following.certificate)


def cancel(settings: ServerSettings) -> str:
    """Take the next CA back: the present one stays, which signed all that is in use.

    Returns
    -------
    str
        Its fingerprint; empty if its making had been cut off.

    Raises
    ------
    UsageError
        If there is none, or :func:`finish` has begun to use it.
    ConfigError
        If the certificates cannot be read.
    TryAgainError
        If something cannot be written.
    """
    ca = settings.superlink.ca
    following, key = _read_next(ca), _next_key(ca)
    if following is None and not key.exists():
        raise UsageError(
            "no change of the CA is under way: none was begun, or --finish has ended it, and then"
            " nodes know the new CA alone; --begin begins another."
        )
    with writing(ca.parent):
        if following is not None:
            if certificates.uses(ca.parent, following.certificate):
                raise UsageError(
                    "--finish has begun to use the next CA, so it cannot be taken back: zk0bot"
                    " server renew-ca --finish continues."
                )
            there = pems(ca.read_text(encoding="utf-8"))
            kept = [each for each in there if fingerprint(each) != following.fingerprint]
            write_file(ca, "".join(kept))
            # Before its key: finish takes a next CA without a key for one that has its place.
            next_file(ca).unlink()
        key.unlink(missing_ok=True)
    return following.fingerprint if following is not None else ""


def end(settings: ServerSettings) -> None:
    """The change is done.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    path = next_file(settings.superlink.ca)
    with writing(path):
        path.unlink(missing_ok=True)


def standings(settings: ServerSettings) -> list[Standing]:
    """How each node of the roster stands; empty without a next CA."""
    link = settings.superlink
    following = _read_next(link.ca)
    if following is None:
        return []
    has, seen = who_has(link.state, following.fingerprint), _last_seen(link.state)
    found: dict[str, Standing] = {}
    for entry in roster.entries(link.roster):
        before = found.get(entry.name, Standing(entry.name, False, 0.0))
        found[entry.name] = Standing(
            entry.name, before.has or entry.key in has, max(before.seen, seen.get(entry.key, 0.0))
        )
    return list(found.values())


def who_has(state: Path, ca: str) -> dict[str, float]:
    """Which nodes said that they have a CA, by key, and when."""
    kept = read_json(state / KNOWN)
    return dict(kept.get("nodes", {})) if ca and kept.get("ca") == ca else {}


def keep_who_has(state: Path, ca: str, nodes: dict[str, float]) -> None:
    """Write down what :func:`who_has` reads; raises :class:`TryAgainError` if it cannot."""
    write_json(state / KNOWN, {"version": VERSION, "ca": ca, "nodes": nodes}, durable=True)


def _last_seen(state: Path) -> dict[str, float]:
    """When each key was online last, by the audit log."""
    seen = {}
    for line in audit.read(state):
        if line.get("kind") == "node.online":
            seen[line["key"]] = float("inf")
        elif line.get("kind") == "node.offline":
            seen[line["key"]] = float(line["time"])
    for node in read_json(state / STATE).get("nodes", ()):
        if node.get("online"):
            seen[node["key"]] = float("inf")
    return seen


def _read_next(ca: Path) -> Successor | None:
    path = next_file(ca)
    try:
        return Successor.read(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ConfigError):
        raise ConfigError(
            f"{path}: cannot be read; remove it, and zk0bot server renew-ca --begin makes another"
            " CA."
        ) from None


def _next_key(ca: Path) -> Path:
    return ca.with_name("ca.next.key")


def _loaded(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())
