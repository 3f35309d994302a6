"""Node keys and shared secrets.

Every private file is made with mode 0600 before a byte is in it.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zk0d.errors import ConfigError
from zk0d.files import make_folder, write_file
from zk0d.machine.rights import writing


def make_node_key(path: Path) -> str:
    """Make a node's P-384 key at ``path`` and its public half beside it; the fingerprint."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(
        path,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ),
    )
    write_public_half(path, path.with_suffix(".pub"))
    return fingerprint(path.with_suffix(".pub"))


def write_public_half(key: Path, path: Path) -> None:
    """Write the public half of the private key ``key``, as OpenSSH does."""
    public = load_private_key(key).public_key()
    text = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_file(path, text + b"\n")


def load_public_key(content: bytes, where: Path | str) -> ec.EllipticCurvePublicKey:
    """A public key as OpenSSH writes it.

    Raises
    ------
    ConfigError
        If it is no P-256, P-384 or P-521 public key; names ``where``.
    """
    try:
        key = serialization.load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
        raise ConfigError(f"{where}: no public key can be read ({error}).") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError(
            f"{where}: is not an elliptic-curve key; make one with zk0bot node keygen."
        )
    return key


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A node's private key.

    Raises
    ------
    ConfigError
        If the file holds none.
    """
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError) as error:
        raise ConfigError(f"{path}: no private key can be read ({error}).") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(
            f"{path}: is not an elliptic-curve key; make one with zk0bot node keygen."
        )
    return key


def public_pem(path: Path) -> bytes:
    """A public key file (OpenSSH) as the PEM that Flower registers.

    Raises
    ------
    ConfigError
        If the file holds no P-256, P-384 or P-521 public key.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: no public key can be read ({error}).") from None
    return _public_pem(load_public_key(content, path))


def fingerprint(path: Path) -> str:
    """SHA-256 of the registered public key: how a node is known everywhere."""
    return hashlib.sha256(public_pem(path)).hexdigest()


def fingerprint_of(key: ec.EllipticCurvePublicKey) -> str:
    """The same, of a key in memory."""
    return hashlib.sha256(_public_pem(key)).hexdigest()


def sign_word(key: Path, said: Callable[[str], bytes]) -> str:
    """A node's signature, in base64 for a header, of what it says.

    Parameters
    ----------
    said
        Makes it of the node's fingerprint.

    Raises
    ------
    ConfigError
        If the file holds no key.
    """
    private = load_private_key(key)
    signed = said(fingerprint_of(private.public_key()))
    return base64.urlsafe_b64encode(private.sign(signed, ec.ECDSA(hashes.SHA256()))).decode()


def check_word(public: Path, said: Callable[[str], bytes], signature: str) -> None:
    """Check what :func:`sign_word` made.

    Raises
    ------
    ValueError
        If it is not that key's.
    ConfigError
        If the file holds no key.
    OSError
        If it cannot be read.
    """
    check_signed(load_public_key(public.read_bytes(), public), said, signature)


def check_signed(
    key: ec.EllipticCurvePublicKey, said: Callable[[str], bytes], signature: str
) -> None:
    """The same with a key in memory; raises ``ValueError`` if it is not that key's."""
    signed = said(fingerprint_of(key))
    try:
        key.verify(base64.urlsafe_b64decode(signature), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise ValueError("it is not signed by this key") from None


def private_fingerprint(path: Path) -> str:
    """The fingerprint of the public half of a node's private key.

    Raises
    ------
    ConfigError
        If the file holds no such key.
    """
    return fingerprint_of(load_private_key(path).public_key())


def sealed_form(key: Path) -> Path:
    """Where a key lies that systemd-creds encrypted."""
    return key.with_name(f"{key.name}.cred")


def make_secret(path: Path) -> None:
    """A secret that two local processes share."""
    write_private(path, secrets.token_hex(32).encode())


def renew_secrets(paths: Sequence[Path]) -> None:
    """Put new secrets in the place of those that are there; each is whole at any moment.

    Raises
    ------
    ConfigError
        If one is not there.
    TryAgainError
        If it cannot be written.
    """
    for path in paths:
        with writing(path):
            if not path.exists():
                raise ConfigError(f"{path}: there is no secret here; is this the settings' folder?")
            write_file(path, secrets.token_hex(32).encode(), mode=0o600)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read; refuses to replace one that is there."""
    make_folder(path.parent)
    write_file(path, content, mode=0o600, new=True)


def _public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def main() -> None:
    """Print a private key's fingerprint.

    For who wants that and not 8 MB of library for months.
    """
    try:
        print(private_fingerprint(Path(sys.argv[1])))
    except ConfigError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
