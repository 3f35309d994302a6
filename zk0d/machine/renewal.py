"""A node's request to change its key, signed with the old key and with the new one.

The old signature shows that the node itself asks, the new one that it holds the new key. The
request is of a moment and counts for minutes, so that a copy of it is worth nothing later.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from zk0d.config.names import check_alias
from zk0d.errors import ConfigError
from zk0d.machine.keys import fingerprint_of, load_private_key, load_public_key

#: A request counts for so long: no further than a node's clock may be off.
RENEWAL_SECONDS = 300.0
_WHERE = "the renewal"


@dataclass(frozen=True)
class Renewal:
    """What a node asks.

    Attributes
    ----------
    name
        The node's name.
    old
        The fingerprint of its key until now.
    key
        Its new public key as OpenSSH writes it.
    moment
        When it was asked, in seconds since 1970.
    """

    name: str
    old: str
    key: str
    moment: int

    @classmethod
    def of(cls, name: str, old: Path, new: Path) -> Renewal:
        """The request of this moment, to change from one private key to another.

        Raises
        ------
        ConfigError
            If a key cannot be read, or the name is none.
        """
        from cryptography.hazmat.primitives import serialization

        public = load_private_key(new).public_key()
        text = public.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        ).decode()
        known = fingerprint_of(load_private_key(old).public_key())
        return cls(check_alias(name), known, text, int(time.time()))

    @property
    def fingerprint(self) -> str:
        """That of the new key."""
        return fingerprint_of(load_public_key(self.key.encode(), _WHERE))

    @property
    def age(self) -> float:
        """Seconds since it was asked by this machine's clock; negative if that is yet to come."""
        return time.time() - self.moment

    def signed(self) -> bytes:
        """What both keys sign."""
        lines = ("zk0d node renewal", self.name, self.old, self.key, str(self.moment))
        return "".join(f"{line}\n" for line in lines).encode()

    def to_body(self, old: Path, new: Path) -> str:
        """The JSON to send."""
        renewal = {"name": self.name, "old": self.old, "key": self.key, "moment": self.moment}
        signatures = {
            which: base64.b64encode(
                load_private_key(path).sign(self.signed(), ec.ECDSA(hashes.SHA384()))
            ).decode()
            for which, path in (("old", old), ("new", new))
        }
        return json.dumps({"renewal": renewal, "signatures": signatures})


@dataclass(frozen=True)
class SignedRenewal:
    """A renewal as it came, not checked yet."""

    renewal: Renewal
    by_old: bytes
    by_new: bytes

    @classmethod
    def read(cls, body: bytes) -> SignedRenewal | None:
        """What :meth:`Renewal.to_body` wrote; ``None`` if the body is something else.

        Raises
        ------
        ConfigError
            If it is a renewal, and not whole.
        """
        try:
            content = json.loads(body)
            if "renewal" not in content:
                return None
        except (ValueError, TypeError, RecursionError):
            return None
        try:
            asked, signatures = content["renewal"], content["signatures"]
            name, old, key, moment = (asked[each] for each in ("name", "old", "key", "moment"))
            by_old, by_new = (
                base64.b64decode(signatures[which], validate=True) for which in ("old", "new")
            )
        except (ValueError, KeyError, TypeError):
            raise _damaged() from None
        texts = all(isinstance(each, str) for each in (name, old, key))
        if not texts or type(moment) is not int or "\n" in key or "\n" in old:
            raise _damaged()
        # Of the key's text only kind and content, as the roster has it.
        if key != " ".join(key.split(" ")[:2]):
            raise _damaged()
        return cls(Renewal(check_alias(name), old, key, moment), by_old, by_new)

    def check(self, old: Path) -> None:
        """Check both signatures.

        Parameters
        ----------
        old
            The roster's file of the old key.

        Raises
        ------
        ConfigError
            If one is not its key's.
        """
        asked = self.renewal
        for key, signature in (
            (load_public_key(old.read_bytes(), old), self.by_old),
            (load_public_key(asked.key.encode(), _WHERE), self.by_new),
        ):
            try:
                key.verify(signature, asked.signed(), ec.ECDSA(hashes.SHA384()))
            except InvalidSignature:
                raise _damaged() from None


def _damaged() -> ConfigError:
    return ConfigError(
        "the renewal is damaged: a signature is not its key's; run zk0bot node renew again."
    )
