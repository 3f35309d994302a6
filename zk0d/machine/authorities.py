"""By which authorities (CAs) a node knows its coordinator.

The first are those of ``coordinator.ca``, which only root writes. The coordinator names others that
follow; the SuperNode's service keeps these in its own folder, where it may write. When the
coordinator shows a certificate of a later one, the earlier ones are trusted no more; when it names
none to follow, the later ones are not.
"""

from __future__ import annotations

import ssl
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from zk0d.config.machine import ClientSettings
from zk0d.errors import ConfigError
from zk0d.machine.state import read_json, write_json
from zk0d.machine.successor import Successor, fingerprint, pems

FILE = "authorities.json"
VERSION = 1


@dataclass(frozen=True)
class Authorities:
    """Those of a node.

    Attributes
    ----------
    given
        The certificates of ``coordinator.ca`` (PEM).
    followed
        Those that were named since, each by one before it, and checked.
    settled
        The fingerprint of the one that the coordinator was seen to use; empty before that.
    """

    given: tuple[str, ...]
    followed: tuple[Successor, ...] = ()
    settled: str = ""
    _known: dict[str, str] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        for pem in self.given:
            self._known[fingerprint(pem)] = pem
        for each in self.followed:
            if each.by in self._known:  # else root put another CA to coordinator.ca
                self._known.setdefault(each.fingerprint, each.certificate)
        fingerprints = list(self._known)
        if self.settled in fingerprints:
            for earlier in fingerprints[: fingerprints.index(self.settled)]:
                del self._known[earlier]

    @classmethod
    def read(cls, ca: Path, state: Path) -> Authorities:
        """Those of the file ``coordinator.ca`` and what is kept in the SuperNode's folder.

        Raises
        ------
        ConfigError
            If the file holds no certificate.
        """
        try:
            given = tuple(pems(ca.read_text(encoding="utf-8", errors="replace")))
            if not given:
                raise ValueError("there is none")
            kept = read_json(state / FILE)
            try:
                followed = tuple(Successor.read(each) for each in kept.get("followed", ()))
            except ConfigError:
                followed = ()
            return cls(given, followed, str(kept.get("settled", "")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{ca}: no certificate can be read ({error}).") from None

    @classmethod
    def of(cls, settings: ClientSettings) -> Authorities:
        """Those of a node; raises as :meth:`read`."""
        return cls.read(settings.coordinator.ca, settings.supernode.state)

    @property
    def pem(self) -> str:
        """The certificates of those that are trusted now."""
        return "".join(self._known.values())

    @property
    def first(self) -> str:
        """The fingerprint of the first of them."""
        return next(iter(self._known))

    @property
    def have_followed(self) -> bool:
        """Whether those of ``coordinator.ca`` are not all that matters."""
        return tuple(self._known.values()) != self.given

    def __contains__(self, ca: str) -> bool:
        return ca in self._known

    def certificate(self, ca: str) -> str | None:
        """The certificate (PEM) of one that is trusted, by its fingerprint."""
        return self._known.get(ca)

    def context(self) -> ssl.SSLContext:
        """What checks the coordinator's certificate.

        Raises
        ------
        ConfigError
            If a certificate cannot be used.
        """
        return context_of(self.pem)

    def with_next(self, successor: Successor) -> Authorities:
        """These and the next one, which was checked."""
        return replace(self, followed=(*self.followed, successor))

    def until(self, ca: str) -> Authorities:
        """One and those before it; what ``coordinator.ca`` holds stays."""
        known = list(self._known)
        later = known[known.index(ca) + 1 :]
        return replace(
            self, followed=tuple(each for each in self.followed if each.fingerprint not in later)
        )

    def settle(self, ca: str) -> Authorities:
        """Only this one and those after it."""
        return replace(self, settled=ca)

    def keep(self, state: Path) -> None:
        """Write down what followed.

        Raises
        ------
        TryAgainError
            If it cannot be written.
        """
        followed = [asdict(each) for each in self.followed]
        content = {"version": VERSION, "followed": followed, "settled": self.settled}
        write_json(state / FILE, content, durable=True)


def context_of(pem: str) -> ssl.SSLContext:
    """What checks a server's certificate by these authorities.

    Raises
    ------
    ConfigError
        If a certificate cannot be used.
    """
    try:
        return ssl.create_default_context(cadata=pem)
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"coordinator.ca: no certificate can be read ({error}).") from None
