"""A coordinator's next certificate authority (CA), named and signed by the present one.

Nodes get it over the presence page. The signature is that of the CA that they trust already, so it
does not matter who passes it on. A node's signed word then says that it has it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0d.daemon.environment import child_environment
from zk0d.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

# cryptography takes 12 MB of a SuperNode's service, for a check every few years: it is loaded in a
# process of its own there.

#: A header of a node's requests to the presence page.
HEADER = "zk0d-authority"
LONGEST_PEM = 4096
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n.+?\n-----END CERTIFICATE-----\n?", re.DOTALL)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Successor:
    """The next CA.

    Attributes
    ----------
    certificate
        Its own certificate (PEM).
    by
        The fingerprint of the CA that names it.
    signature
        That CA's, in base64.
    """

    certificate: str
    by: str
    signature: str

    @classmethod
    def of(cls, certificate: str, ca: str, key: ec.EllipticCurvePrivateKey) -> Successor:
        """Sign the next CA's certificate with the present CA's key."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        by = fingerprint(ca)
        signature = key.sign(_signed(by, fingerprint(certificate)), ec.ECDSA(hashes.SHA384()))
        return cls(certificate, by, base64.b64encode(signature).decode())

    @classmethod
    def read(cls, content: Any) -> Successor:
        """What :meth:`to_json` gave; nothing is checked but its form.

        Raises
        ------
        ConfigError
            If it is something else.
        """
        try:
            read = cls(**{key: content[key] for key in ("certificate", "by", "signature")})
            texts = all(isinstance(each, str) for each in asdict(read).values())
            if not texts or len(read.certificate) > LONGEST_PEM or len(pems(read.certificate)) != 1:
                raise ValueError
            ssl.PEM_cert_to_DER_cert(read.certificate)
        except (KeyError, TypeError, ValueError):
            raise ConfigError("what names the next CA cannot be read.") from None
        return read

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    @property
    def fingerprint(self) -> str:
        """That of the next CA."""
        return fingerprint(self.certificate)

    def check(self, ca: str) -> None:
        """Check that a CA (PEM) named it.

        Raises
        ------
        ConfigError
            If it did not, or what it named is no CA.
        """
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            key = x509.load_pem_x509_certificate(ca.encode()).public_key()
            assert isinstance(key, ec.EllipticCurvePublicKey)
            key.verify(
                base64.b64decode(self.signature, validate=True),
                _signed(fingerprint(ca), self.fingerprint),
                ec.ECDSA(hashes.SHA384()),
            )
            own = x509.load_pem_x509_certificate(self.certificate.encode())
            own.verify_directly_issued_by(own)
            is_ca = own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (
            ValueError,
            TypeError,
            AssertionError,
            InvalidSignature,
            x509.ExtensionNotFound,
        ):
            is_ca = False
        if not is_ca:
            raise ConfigError(
                f"the CA {self.fingerprint[:16]} is not named by ours ({fingerprint(ca)[:16]})."
            )


def pems(text: str) -> list[str]:
    """The certificates of a PEM text, one by one."""
    return [found if found.endswith("\n") else f"{found}\n" for found in _PEM.findall(text)]


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate (PEM), hexadecimal."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()


def write_word(key: Path, ca: str) -> str:
    """A header's value: the node with this private key has the CA with this fingerprint.

    Raises
    ------
    ConfigError
        If the file holds no key.
    """
    from zk0d.machine.keys import sign_word

    return f"{ca}.{sign_word(key, lambda node: _said(node, ca))}"


def read_word(text: str, public: Path) -> str:
    """The fingerprint of the CA that a node says it has.

    Parameters
    ----------
    public
        The node's public key in the roster.

    Raises
    ------
    ConfigError
        If the word is not that node's.
    """
    from zk0d.machine.keys import check_word

    try:
        ca, signature = text.split(".")
        if not _FINGERPRINT.fullmatch(ca):
            raise ValueError
        check_word(public, lambda node: _said(node, ca), signature)
    except (OSError, ValueError):
        raise ConfigError("a node's word that it has the next CA is not its own.") from None
    return ca


def checked_apart(successor: Successor, ca: str, key: Path) -> str:
    """:meth:`Successor.check`, and then :func:`write_word`, in a process of its own.

    Raises
    ------
    ConfigError
        As these do.
    """
    said = subprocess.run(
        [sys.executable, "-m", "zk0d.machine.successor", str(key)],
        input=json.dumps({"successor": successor.to_json(), "ca": ca}),
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(),
    )
    if said.returncode:
        raise ConfigError((said.stderr.strip().splitlines() or ["it cannot be checked."])[-1])
    return said.stdout.strip()


def _signed(by: str, certificate: str) -> bytes:
    return f"zk0d-next-ca-1|{by}|{certificate}".encode()


def _said(node: str, ca: str) -> bytes:
    return f"zk0d-has-ca-1|{node}|{ca}".encode()


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    try:
        named = Successor.read(asked["successor"])
        named.check(asked["ca"])
        print(write_word(Path(sys.argv[1]), named.fingerprint))
    except ConfigError as error:
        sys.exit(error.message)
