"""What a contributor and a coordinator send each other before they are connected.

An *invite* is one line: where the coordinator is and which CA its certificate is signed by. A
*request* is a short text: a node's name and public key, signed with that key, so that nobody can
ask for a key that is not theirs and a mangled text is seen. The fingerprints are there to be
compared by voice. A request holds no secret; an invite does if it has a *token*, which lets nodes
in without a person's word (:mod:`zk0d.machine.invites`).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
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
from zk0d.errors import ConfigError, TryAgainError
from zk0d.machine import release_key
from zk0d.machine.certificates import LOOPBACK, is_issued_by, names_of
from zk0d.machine.keys import fingerprint_of, load_private_key, load_public_key
from zk0d.machine.successor import pems

INVITE = "zk0d-invite-1:"
#: A request in one line, of the characters that a QR code packs best; a point ends it.
LINE = "ZK0D-REQUEST-1:"
BEGIN, END = "-----BEGIN ZK0D NODE REQUEST-----", "-----END ZK0D NODE REQUEST-----"
LONGEST_CONTACT = 100
_LINE = re.compile(rf"{LINE}([A-Z2-7]+)\.")
#: The curves that keys may be of, by the bytes of a compressed point.
_CURVES: dict[int, ec.EllipticCurve] = {
    33: ec.SECP256R1(),
    49: ec.SECP384R1(),
    67: ec.SECP521R1(),
}
TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")
_ADDRESS = re.compile(r"[A-Za-z0-9._\-]+:[0-9]{1,5}|\[[0-9A-Fa-f:]+\]:[0-9]{1,5}")


@dataclass(frozen=True)
class Invite:
    """Where a coordinator is and how it is known.

    Attributes
    ----------
    address
        HOST:PORT.
    ca
        A PEM certificate, or empty for a public authority's.
    token
        What a node shows to be let in at once; empty if a person decides.
    next
        The certificate of the CA that is to follow, while one follows another.
    release_key
        The public key that signs the coordinator's releases, as OpenSSH writes it; empty if it
        shares none.
    """

    address: str
    ca: str
    token: str = ""
    next: str = ""
    release_key: str = ""

    def to_line(self) -> str:
        """The one line to send."""
        content = json.dumps(
            {
                "address": self.address,
                "ca": _to_der(self.ca),
                "fingerprint": self.fingerprint,
                **({"token": self.token} if self.token else {}),
                **({"next": _to_der(self.next)} if self.next else {}),
                **({"release": _to_text(self.release_key)} if self.release_key else {}),
            },
            separators=(",", ":"),
        )
        return INVITE + base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the CA certificate, or empty."""
        return ca_fingerprint(self.ca) if self.ca else ""

    @property
    def authorities(self) -> bytes | None:
        """What a node's ``coordinator.ca`` is to hold; ``None`` for a public authority."""
        return (self.ca + self.next).encode() if self.ca else None

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
            address = str(content["address"])
            ca, following = _from_der(content["ca"]), _from_der(content.get("next", ""))
            signs = _from_text(content.get("release", ""))
            invite = cls(address, ca, _token(content.get("token", "")), following, signs)
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
        known = pems(settings.superlink.ca.read_text(encoding="utf-8"))
        ours = any(
            is_issued_by(seen, x509.load_pem_x509_certificate(pem.encode())) for pem in known
        )
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
    signs = ""
    if settings.share_releases:
        # Who may not read it here is no worse off: the node then takes the one it is shown first.
        with contextlib.suppress(TryAgainError, ConfigError):
            signs = release_key.public_half(release_key.own_key(settings.superlink.state))
    if not ours:
        return Invite(address, "", release_key=signs)
    # While one CA follows another, the file has both.
    return Invite(address, known[0], next="".join(known[1:2]), release_key=signs)


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
        signature = self._sign(private_key)
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

    def to_line(self, private_key: Path) -> str:
        """The same in one short line, for a QR code."""
        point = load_public_key(self.key.encode(), "the request").public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
        )
        words = f"{self.name}\n{self.contact}\n".encode()
        content = words + bytes([len(point)]) + point + self._sign(private_key)
        return f"{LINE}{base64.b32encode(content).decode().rstrip('=')}."

    def _sign(self, private_key: Path) -> bytes:
        return load_private_key(private_key).sign(self._signed(), ec.ECDSA(hashes.SHA384()))

    def _check(self, signature: bytes) -> None:
        public = load_public_key(self.key.encode(), "the request")
        public.verify(signature, self._signed(), ec.ECDSA(hashes.SHA384()))

    def to_enrolment(self, private_key: Path, token: str) -> str:
        """The JSON that asks to be let in by a token; only the key's owner can make it."""
        shown = load_private_key(private_key).sign(
            _shown(token, self.fingerprint), ec.ECDSA(hashes.SHA384())
        )
        content = {
            "request": self.to_line(private_key),
            "token": token,
            "signature": base64.b64encode(shown).decode(),
        }
        return json.dumps(content)

    @classmethod
    def from_enrolment(cls, body: bytes) -> tuple[Request, str]:
        """The request and the token of what :meth:`to_enrolment` wrote.

        Raises
        ------
        ConfigError
            If it is none, or request or token are not what the key's owner signed.
        """
        try:
            content = json.loads(body)
            text, token = content["request"], content.get("token", "")
            signature = base64.b64decode(content.get("signature", ""), validate=True)
            known = isinstance(text, str) and isinstance(token, str)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            known = False
        if not known:
            raise ConfigError("the enrolment cannot be read; zk0bot setup sends one.")
        request = cls.from_text(text)
        if not token:
            return request, ""
        try:
            public = load_public_key(request.key.encode(), "the request")
            public.verify(signature, _shown(token, request.fingerprint), ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            raise _damaged() from None
        return request, token

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
        """Read what :meth:`to_text` or :meth:`to_line` wrote.

        What a mail adds before and after is passed over.

        Raises
        ------
        ConfigError
            If there is none in the text, or it is not what the key's owner signed.
        """
        # A mail may quote it, or wrap its long lines.
        cleaned = "\n".join(line.strip().lstrip("> ").strip() for line in text.splitlines())
        if LINE in cleaned:
            return cls._from_line(cleaned.replace("\n", ""))
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
        try:
            request = cls(_name(values["name"]), values["key"], _contact(values["contact"]))
            signature = base64.b64decode(values["signature"], validate=True)
            request._check(signature)
        except (KeyError, binascii.Error, InvalidSignature):
            raise _damaged() from None
        if values.get("fingerprint") != request.fingerprint:
            raise _damaged()
        return request

    @classmethod
    def _from_line(cls, text: str) -> Request:
        try:
            found = _LINE.search(text)
            body = found[1] if found else ""
            content = base64.b32decode(body + "=" * (-len(body) % 8))
            name, contact, rest = content.split(b"\n", 2)
            size = rest[0]
            point = ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[size], rest[1 : size + 1])
            key = point.public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
            request = cls(_name(name.decode()), key.decode(), _contact(contact.decode()))
            request._check(rest[size + 1 :])
        except (ValueError, LookupError, InvalidSignature):
            raise _damaged() from None
        return request


def _to_der(pem: str) -> str:
    if not pem:
        return ""
    certificate = x509.load_pem_x509_certificate(pem.encode())
    return base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()


def _from_der(text: str) -> str:
    der = base64.b64decode(text, validate=True)
    if not der:
        return ""
    certificate = x509.load_der_x509_certificate(der)
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _to_text(public: str) -> str:
    return base64.b64encode(release_key.to_point(public)).decode()


def _from_text(text: str) -> str:
    point = base64.b64decode(text, validate=True)
    return release_key.from_point(point) if point else ""


def _token(text: object) -> str:
    if text and not (isinstance(text, str) and TOKEN.fullmatch(text)):
        raise ValueError("not a token")
    return str(text)


def ca_fingerprint(pem: str) -> str:
    """SHA-256 of a certificate, hexadecimal."""
    return x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256()).hex()


def _shown(token: str, fingerprint: str) -> bytes:
    """What binds a token to a key, so that nobody enrols another's request with it."""
    hashed = hashlib.sha256(token.encode()).hexdigest()
    return f"zk0d enrolment\n{hashed}\n{fingerprint}\n".encode()


def _damaged() -> ConfigError:
    return ConfigError(
        "the node request is damaged: its signature is not its key's; ask for the whole block"
        " again."
    )


def _name(name: str) -> str:
    return check_alias(name)


def _contact(contact: str) -> str:
    contact = contact.strip()
    if len(contact) > LONGEST_CONTACT or not contact.isprintable():
        raise ConfigError(
            f"--contact: at most {LONGEST_CONTACT} characters on one line, such as a mail address."
        )
    return contact
