"""The coordinator's key of its releases: what it signs with it, and by which one a node knows them.

The private half lies in the SuperLink's own folder, where its service signs. Invites carry the
public half. A node whose invite had none takes the one that the coordinator shows it first, over
TLS, and keeps to that.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zk0d.errors import ConfigError
from zk0d.files import make_folder, write_file
from zk0d.machine.keys import (
    check_signed,
    fingerprint_of,
    load_private_key,
    load_public_key,
    make_node_key,
    sign_word,
)
from zk0d.machine.rights import like_the_folder, writing

FILE = "release.key"
#: In a node's folder of releases: the key that it was shown first.
PINNED = "release.pub"
_WHERE = "the coordinator's key of releases"


def own_key(state: Path) -> Path:
    """The private key in the SuperLink's folder; it is made if there is none.

    Raises
    ------
    TryAgainError
        If it cannot be made, or this user may not look.
    """
    path = state / FILE
    with writing(path):
        if not path.exists():
            if not state.exists():  # systemd then gives it to the SuperLink's user
                make_folder(state)
                state.chmod(0o700)
            try:
                make_node_key(path)
            except FileExistsError:  # the service and root came at once
                return path
            for made in (path, path.with_suffix(".pub")):
                like_the_folder(made)
    return path


def public_half(key: Path) -> str:
    """A private key's public half, in one line as OpenSSH writes it."""
    return _text(load_private_key(key).public_key())


def read_public(text: str, where: str = _WHERE) -> str:
    """The same line, if it is a key; raises :class:`ConfigError` if not."""
    return _text(load_public_key(text.strip().encode(), where))


def fingerprint(public: str) -> str:
    """How such a key is called in a sentence."""
    return fingerprint_of(load_public_key(public.encode(), _WHERE))


def to_point(public: str) -> bytes:
    """A key in few bytes, for an invite."""
    return load_public_key(public.encode(), _WHERE).public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint
    )


def from_point(point: bytes) -> str:
    """What :func:`to_point` wrote; raises ``ValueError`` if it is none."""
    return _text(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point))


def sign(key: Path, what: str, text: str) -> str:
    """Sign a text.

    Parameters
    ----------
    what
        Says what kind of text it is, so that none counts as another.
    """
    return sign_word(key, lambda signer: _said(signer, what, text))


def check(public: str, what: str, text: str, signature: str) -> None:
    """Check what :func:`sign` made; raises ``ValueError`` if it is not that key's."""
    key = load_public_key(public.encode(), _WHERE)
    check_signed(key, lambda signer: _said(signer, what, text), signature)


def known(given: Path, folder: Path) -> str:
    """The key by which a node knows its coordinator's releases; empty if it knows none yet.

    Parameters
    ----------
    given
        The file that an invite's key was written to, which comes first.
    folder
        The node's folder of releases.

    Raises
    ------
    ConfigError
        If a file is there and holds none, or cannot be read.
    """
    for path in (given, folder / PINNED):
        try:
            return read_public(path.read_text(encoding="utf-8"), str(path))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: no public key can be read ({error}).") from None
    return ""


def pin(folder: Path, public: str) -> None:
    """Keep to a key from now on; raises :class:`TryAgainError` if it cannot be written."""
    path = folder / PINNED
    with writing(path):
        write_file(path, f"{public}\n", mode=0o644)
        like_the_folder(path)


def _text(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()


def _said(signer: str, what: str, text: str) -> bytes:
    hashed = hashlib.sha256(text.encode()).hexdigest()
    return f"zk0d-{what}-1|{signer}|{hashed}".encode()
