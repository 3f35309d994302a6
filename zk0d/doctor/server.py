"""Rules about a coordinator."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zk0d.config.machine import GatewaySettings, SuperlinkSettings
from zk0d.doctor.finding import Unchecked, Wrong, rule
from zk0d.errors import ConfigError, Zk0dError

if TYPE_CHECKING:
    from cryptography import x509

LEAST_DAYS = 30
_ANEW = (
    "zk0bot server renew-ca --begin makes the next CA; docs/security.md, Certificates, has the"
    " steps, also for one that has ended"
)
_RENEW = "zk0bot server renew makes a new one; replace a certificate of your own yourself"

#: Who has a certificate: the SuperLink for loopback, the gateway for nodes.
Holder = SuperlinkSettings | GatewaySettings


@rule("ca")
def ca(link: SuperlinkSettings) -> str:
    """The CA certificate is one, and good for a while."""
    from cryptography import x509

    certificate = _load(link.ca, "superlink.ca")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        is_ca = constraints.value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise Wrong(
            f"superlink.ca: {link.ca} is not the certificate of a certificate authority.",
            "its basic constraints do not say CA",
            "put the CA's certificate there, not the server's",
        )
    return f"{link.ca}: {_days(certificate, link.ca, 'superlink.ca', _ANEW)}"


@rule("certificate")
def certificate(holder: Holder) -> str:
    """A certificate is good for a while and names where it is reached."""
    from cryptography import x509

    path, key = holder.certificate, f"{_section(holder)}.certificate"
    loaded = _load(path, key)
    days = _days(loaded, path, key, _ANEW if isinstance(holder, SuperlinkSettings) else _RENEW)
    try:
        alternatives = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        alternatives = x509.SubjectAlternativeName([])
    names = [
        *alternatives.get_values_for_type(x509.DNSName),
        *map(str, alternatives.get_values_for_type(x509.IPAddress)),
    ]
    if isinstance(holder, SuperlinkSettings) and "127.0.0.1" not in names:
        raise Wrong(
            f"{key}: {path} is not for 127.0.0.1, where this machine's services reach it.",
            f"it names {', '.join(names) or 'no host'}",
            _ANEW,
        )
    if not names:
        raise Wrong(
            f"{key}: {path} names no host, so no node trusts it.",
            "it has no subject alternative names",
            _RENEW,
        )
    return f"{path}: for {', '.join(names)}; {days}"


@rule("chain")
def chain(link: SuperlinkSettings, holder: Holder) -> str:
    """The CA signed a certificate; the gateway's may be of another CA, which nodes then need."""
    from cryptography.exceptions import InvalidSignature

    authority = _load(link.ca, "superlink.ca")
    path, key = holder.certificate, f"{_section(holder)}.certificate"
    loaded = _load(path, key)
    if holder is not link and loaded.issuer != authority.subject:
        return f"{path} is of another CA ({loaded.issuer.rfc4514_string()}), which nodes need"
    try:
        loaded.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise Wrong(
            f"{key}: {path} is not signed by {link.ca}.",
            str(error) or "the signature is another's",
            f"put the pair that belongs together there, or make one: {_ANEW}",
        ) from None
    return f"{path} is signed by {link.ca}"


@rule("certificate-key")
def certificate_key(holder: Holder) -> str:
    """A certificate's key belongs to it."""
    from cryptography.hazmat.primitives import serialization

    section = _section(holder)
    loaded = _load(holder.certificate, f"{section}.certificate")
    try:
        key = serialization.load_pem_private_key(holder.key.read_bytes(), password=None)
    except (FileNotFoundError, ValueError, TypeError):
        raise Wrong(
            f"{section}.key: {holder.key} is missing or no private key.",
            "it cannot be loaded",
            f"put the key of {holder.certificate} there, or make a pair: {_ANEW}",
        ) from None
    if key.public_key() != loaded.public_key():
        raise Wrong(
            f"{section}.key: {holder.key} is not the key of {holder.certificate}.",
            "their public halves differ",
            f"put the pair that belongs together there, or make one: {_ANEW}",
        )
    return f"{holder.key} is the key of {holder.certificate}"


@rule("roster")
def roster(folder: Path) -> str:
    """Each file of the roster is a node's key, and none is there twice."""
    from zk0d.machine.keys import fingerprint

    if not folder.is_dir():
        raise Wrong(
            f"superlink.roster: there is no folder {folder}.",
            "no node may join",
            f"mkdir {folder}, and zk0bot node approve puts nodes' keys into it",
        )
    seen: dict[str, Path] = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            key = fingerprint(path)
        except ConfigError as error:
            path.open("rb").close()
            raise Wrong(
                f"superlink.roster: {path} is not a node's key, so it is ignored.",
                error.message,
                "remove it, and let zk0bot node approve take that node's request",
            ) from None
        if key in seen:
            raise Wrong(
                f"superlink.roster: {seen[key].name} and {path.name} are the same key.",
                f"both have the fingerprint {key[:16]}",
                "two nodes cannot share a key: remove one, and let the other node make its own with"
                " zk0bot node keygen",
            )
        seen[key] = path
    names = ", ".join(path.stem for path in seen.values())
    return f"{len(seen)} keys in {folder}{f': {names}' if names else '; no node may join yet'}"


@rule("nodes")
def nodes(link: SuperlinkSettings) -> str:
    """The SuperLink answers, and its nodes are those of the roster."""
    try:
        from zk0d.flower.control import Control
    except ImportError as error:
        raise Unchecked(f"Flower does not load ({error.name})") from None
    from zk0d.machine.roster import node_name, read_roster

    try:
        secret = None if link.open_control else link.control_secret
        with Control(f"127.0.0.1:{link.port}", link.ca, secret) as control:
            found = control.nodes()
    except ConfigError as error:  # for which there is a rule of its own
        raise Unchecked(error.message) from None
    except Zk0dError as error:
        raise Wrong(
            f"superlink.port: the SuperLink at 127.0.0.1:{link.port} gives a wrong answer or none.",
            error.message,
            "zk0bot server start starts it; zk0bot server logs says why it ends",
        ) from None
    wanted, present = read_roster(link.roster), {node.key: node for node in found}
    missing = [node_name(path) for key, path in wanted.items() if key not in present]
    more = [node.name for key, node in present.items() if key not in wanted]
    if missing or more:
        raise Wrong(
            "the SuperLink's nodes are not those of the roster.",
            "; ".join(
                f"{what}: {', '.join(names)}"
                for what, names in (
                    ("not let in", missing),
                    ("let in, but not in the roster", more),
                )
                if names
            ),
            "zk0d superlink corrects this within ten seconds while it runs: zk0bot server start",
        )
    online = sum(node.online for node in found)
    return f"{len(found)} nodes as in {link.roster}, {online} online"


def _load(path: Path, key: str) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        said = "there is no such file"
    except ValueError:
        said = "it holds no certificate"
    raise Wrong(
        f"{key}: {path} is missing or no certificate.",
        said,
        "zk0bot server init --host NAME makes a CA and a certificate",
    )


def _section(holder: Holder) -> str:
    return "superlink" if isinstance(holder, SuperlinkSettings) else "gateway"


def _days(loaded: x509.Certificate, path: Path, key: str, cure: str) -> str:
    now = datetime.datetime.now(datetime.UTC)
    if loaded.not_valid_before_utc > now:
        raise Wrong(
            f"{key}: {path} is not valid yet.",
            f"it begins at {loaded.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, this machine's clock"
            f" says {now:%Y-%m-%d %H:%M}",
            "set the clock: timedatectl set-ntp true",
        )
    days = (loaded.not_valid_after_utc - now).total_seconds() / 86400
    if days < LEAST_DAYS:
        over = "has expired" if days < 0 else f"expires in {days:.0f} days"
        raise Wrong(
            f"{key}: {path} {over}; then no node can join.",
            f"it ends at {loaded.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            cure,
        )
    return f"good for {days:.0f} days"
