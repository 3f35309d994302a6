"""What a contributor and a coordinator send each other before they are connected.

An *invite* is one line: where the coordinator is and which CA its certificate is signed by. A
*request* is a short text: a node's name and public key, signed with that key, so that nobody can
ask for a key that is not theirs and a mangled text is seen. Neither holds a secret; the
fingerprints are there to be compared by voice.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zk0d.config.machine import ServerSettings
from zk0d.config.names import Alias, check_alias
from zk0d.errors import ConfigError
from zk0d.machine.certificates import LOOPBACK, is_issued_by, names_of
from zk0d.machine.keys import fingerprint_of, load_private_key, load_public_key

INVITE = "zk0d-invite-1:"
BEGIN, END = "-----BEGIN ZK0D NODE REQUEST-----", "-----END ZK0D NODE REQUEST-----"
LONGEST_CONTACT = 100
_ADDRESS = re.compile(r"[A-Za-z0-9._\-]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")


@dataclass(frozen=True)
class Invite:
    """``address`` is HOST:PORT; ``ca`` a PEM certificate, or empty for a public authority's."""

    address: str
    ca: str

    def to_line(self) -> str:
        """The one line to send."""
        der = b""
        if self.ca:
            der = x509.load_pem_x509_certificate(self.ca.encode()).public_bytes(
                serialization.Encoding.DER
            )
        content = json.dumps(
            {
                "address": self.address,
                "ca": base64.b64encode(der).decode(),
                "fingerprint": self.fingerprint,
            },
            separators=(",", ":"),
        )
        return INVITE + base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA certificate, or empty."""
        return ca_fingerprint(self.ca) if self.ca else ""

    @classmethod
    def from_line(cls, line: str) -> Invite:
        """Read what :meth:`to_line` wrote.

        Raises
        ------
        ConfigError
            If it is none, or not whole.
        """
        text = "".join(line.split())
        if not text.startswith(INVITE):
            raise ConfigError(
                f"the invite does not begin with '{INVITE}'; copy the whole line that zk0bot"
                " server invite printed."
            )
        body = text.removeprefix(INVITE)
        try:
            content = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            address, der = str(content["address"]), base64.b64decode(content["ca"], validate=True)
            pem = ""
            if der:
                certificate = x509.load_der_x509_certificate(der)
                pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
            invite = cls(address, pem)
            whole = content["fingerprint"] == invite.fingerprint
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole or not _ADDRESS.fullmatch(address):
            raise ConfigError(
                "the invite is damaged; copy the whole line that zk0bot server invite printed."
            )
        return invite


def invite_of(settings: ServerSettings) -> Invite:
    """What a contributor needs to find this coordinator and to know it.

    Raises
    ------
    ConfigError
        If its certificates cannot be read.
    """
    gateway = settings.gateway
    try:
        seen = x509.load_pem_x509_certificate(gateway.certificate.read_bytes())
        ca = settings.superlink.ca.read_text(encoding="utf-8")
        ours = is_issued_by(seen, x509.load_pem_x509_certificate(ca.encode()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"gateway.certificate: {gateway.certificate} cannot be read ({error}); zk0bot server"
            " init makes it."
        ) from None
    address = gateway.address
    if not address:
        names = [name for name in names_of(seen) if name not in LOOPBACK] or ["localhost"]
        host = f"[{names[0]}]" if ":" in names[0] else names[0]
        address = f"{host}:{gateway.port}"
    return Invite(address, ca if ours else "")


@dataclass(frozen=True)
class Request:
    """A node that wants to join; ``key`` is its public key as OpenSSH writes it."""

    name: str
    key: str
    contact: str

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(load_public_key(self.key.encode(), "the request"))

    def _signed(self) -> bytes:
        return f"zk0d node request\n{self.name}\n{self.key}\n{self.contact}\n".encode()

    def to_text(self, private_key: Path) -> str:
        """The block to send, signed with the node's key."""
        signature = load_private_key(private_key).sign(self._signed(), ec.ECDSA(hashes.SHA384()))
        return "\n".join(
            [
                BEGIN,
                f"name: {self.name}",
                f"key: {self.key}",
                f"fingerprint: {self.fingerprint}",
                f"contact: {self.contact}",
                f"signature: {base64.b64encode(signature).decode()}",
                END,
            ]
        )

    @classmethod
    def of(cls, name: Alias, public_key: Path, contact: str = "") -> Request:
        """The request of the node with this public key.

        Raises
        ------
        ConfigError
            If the key cannot be read, or name or contact are not what they may be.
        """
        try:
            key = public_key.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"{public_key}: cannot be read ({error.strerror}); zk0bot node keygen makes it."
            ) from None
        return cls(_name(name), " ".join(key.split()[:2]), _contact(contact))

    @classmethod
    def from_text(cls, text: str) -> Request:
        """Read what :meth:`to_text` wrote; what a mail adds before and after is passed over.

        Raises
        ------
        ConfigError
            If there is none in the text, or it is not what the key's owner signed.
        """
        # A mail may quote it, or wrap its long lines.
        cleaned = "\n".join(line.strip().lstrip("> ").strip() for line in text.splitlines())
        found = re.search(f"{BEGIN}\n(.*?)\n{END}", cleaned, re.DOTALL)
        if found is None:
            raise ConfigError(
                f"there is no node request in the text; it begins with '{BEGIN}' and is printed by"
                " zk0bot node request."
            )
        values: dict[str, str] = {}
        last = ""
        for line in found[1].splitlines():
            key, colon, value = line.partition(": ")
            if colon and key in ("name", "key", "fingerprint", "contact", "signature"):
                last = key
                values[key] = value.strip()
            elif line == "contact:":
                values["contact"] = ""
            elif last:
                # Between a key's kind and its content there is a space, nowhere else.
                between = " " if last == "key" and " " not in values[last] else ""
                values[last] += between + line
        damaged = ConfigError(
            "the node request is damaged: its signature is not its key's; ask for the whole block"
            " again."
        )
        try:
            request = cls(_name(values["name"]), values["key"], _contact(values["contact"]))
            signature = base64.b64decode(values["signature"], validate=True)
            public = load_public_key(request.key.encode(), "the request")
            public.verify(signature, request._signed(), ec.ECDSA(hashes.SHA384()))
        except (KeyError, binascii.Error, InvalidSignature):
            raise damaged from None
        if values.get("fingerprint") != request.fingerprint:
            raise damaged
        return request


def ca_fingerprint(pem: str) -> str:
    """SHA-256 of a certificate, hexadecimal."""
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()


def _name(name: str) -> str:
    return check_alias(name)


def _contact(contact: str) -> str:
    contact = contact.strip()
    if len(contact) > LONGEST_CONTACT or not contact.isprintable():
        raise ConfigError(
            f"--contact: at most {LONGEST_CONTACT} characters on one line, such as a mail address."
        )
    return contact
