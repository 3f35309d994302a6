"""Fetches the coordinator's releases to an owner's machine.

What came of a file stays when the line is cut, and the next pull asks for the rest. A release gets
its name when each of its files has the hash that the coordinator signed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import httpx
from pydantic import ValidationError

from zk0d.config.amounts import say_bytes
from zk0d.config.families import FAMILIES, family_of, packaged
from zk0d.config.machine import ClientSettings
from zk0d.config.names import CONFIG_FILE
from zk0d.errors import (
    ConfigError,
    TryAgainError,
    UnavailableError,
    Zk0dError,
    disk_trouble,
    not_written,
)
from zk0d.federation.carrier import PATIENCE_SECONDS, Waits
from zk0d.federation.line import Line
from zk0d.files import link_file, make_folder, point, rename, whole_folder
from zk0d.learning.untrusted import refuse_code
from zk0d.machine import release_key
from zk0d.machine.authorities import Authorities
from zk0d.machine.node_word import HEADER, write_word
from zk0d.machine.rights import like_the_folder, writing
from zk0d.release.checkpoint import BEST, LATEST, series_of
from zk0d.release.manifest import (
    FILE,
    LONGEST_OFFER,
    Offer,
    Release,
    ReleaseFile,
    SignedOffer,
    SignedRelease,
)
from zk0d.release.pulled import NAMES, Pulled, PulledRelease, is_this

log = logging.getLogger("zk0d")

LOCK = ".lock"
#: Files of this size and more are one on the disk for all releases. Smaller ones are each release's
#: own, because an owner copies others over them.
SHARED_BYTES = 2**20
#: Disk that a pull leaves free.
KEPT_FREE = 64 * 2**20
#: A person is told so often how much came.
SAY_SECONDS = 15.0
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)


@dataclass(frozen=True)
class Offering:
    """What the coordinator offers, checked.

    Attributes
    ----------
    key
        The coordinator's, which signed it.
    pinned
        Whether this node knew the key before; else it is to be kept with the first release.
    """

    offer: Offer
    key: str
    pinned: bool

    def find(self, name: str) -> SignedRelease:
        """The release that a word means to the coordinator.

        Raises
        ------
        UnavailableError
            If it offers no such release.
        """
        offer = self.offer
        wanted = {LATEST: offer.latest, BEST: offer.best}.get(name, offer.runs.get(name, name))
        found = next((e for e in offer.releases if wanted and e.name == wanted), None)
        if found is not None:
            return found
        more = (
            f"; {offer.preparing} more are still being read there, so try again in a minute"
            if offer.preparing
            else ""
        )
        if name in NAMES:
            raise UnavailableError(
                "the coordinator has no release yet: none of its checkpoints has passed the"
                f" gate{more}; zk0bot policy list shows them.",
                reason="no_release",
            )
        raise UnavailableError(
            f"the coordinator offers no release '{name}'{more}; zk0bot policy list shows those that"
            " it offers.",
            reason="no_release",
        )

    def releases(self) -> list[Release]:
        """All that can be read, the newest last; what is not signed or refused is left out."""
        found = []
        for each in self.offer.releases:
            try:
                each.check(self.key)
                found.append(each.read())
            except ConfigError as error:
                log.warning("%s", error.message)
        return sorted(found, key=lambda release: (release.began, release.round))


class Source:
    """The coordinator, as the node with this key sees it.

    Parameters
    ----------
    key
        The file of the node's private key.
    line
        The owner's; by default all of it, and nothing is counted.
    authorities
        By which the coordinator is known, if not by those of the settings.
    patience
        Seconds without a byte, after which a transfer is given up.
    """

    def __init__(
        self,
        settings: ClientSettings,
        key: Path,
        line: Line | None = None,
        *,
        authorities: Authorities | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._settings = settings
        self._key = key
        self._line = line or Line(settings.limits)
        self._patience = patience
        self._page = settings.coordinator.presence_page
        self._http = httpx.Client(
            verify=(authorities or Authorities.of(settings)).context(),
            timeout=httpx.Timeout(30.0),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()
        self._line.close()

    def ask(self) -> Offering:
        """What the coordinator offers now.

        Raises
        ------
        TryAgainError
            If it cannot be reached.
        UnavailableError
            If it refuses this node, or does not share releases.
        ConfigError
            If the answer is not signed by the key that this node knows.
        """
        headers, nonce = self._signed("/releases")
        try:
            with self._http.stream("GET", f"{self._page}/releases", headers=headers) as answer:
                if answer.status_code != HTTPStatus.OK:
                    raise self._refusal(answer)
                body = bytearray()
                for part in answer.iter_bytes():
                    body += part
                    if len(body) > 2 * LONGEST_OFFER:
                        raise TryAgainError(f"{self._page}: its list of releases is too long.")
        except httpx.TransportError as error:
            raise TryAgainError(
                f"the coordinator {self._settings.coordinator.address} cannot be reached"
                f" ({_plain(error)}); zk0bot policy list --here shows what is on this machine."
            ) from None
        known = Pulled.of(self._settings).known_key(self._settings)
        try:
            told = SignedOffer.model_validate_json(bytes(body))
            key = known or release_key.read_public(told.key)
        except (ValidationError, ConfigError):
            raise TryAgainError(
                f"{self._page}: its list of releases cannot be read; try again later."
            ) from None
        try:
            return Offering(told.read(key, nonce), key, bool(known))
        except ValueError:
            raise ConfigError(
                "the coordinator's list of releases is not signed by the key"
                f" {release_key.fingerprint(key)[:16]} that this node knows; nothing is fetched."
                " Ask its operator; if its key changed, zk0bot client join with a new invite.",
                reason="wrong_signature",
            ) from None

    def fetch(
        self,
        release: Release,
        file: ReleaseFile,
        path: Path,
        may: Callable[[], int],
        say: Callable[[str], None],
    ) -> None:
        """Have ``path`` hold a release's file, from where it was cut.

        Parameters
        ----------
        may
            Called before each request: how many bytes it may ask for, 0 for any; raises where the
            line may not be used.
        say
            Takes a line now and then: how much is there.

        Raises
        ------
        TryAgainError
            If nothing moves any more. What came stays.
        ConfigError
            If what came is not what was signed. It is removed.
        """
        page = f"/releases/{release.name}/{file.sha256}"
        waits, said = Waits(self._page, self._patience, time.sleep), time.monotonic()
        with writing(path), path.open("ab") as out:
            if out.tell() > file.size:
                out.truncate(0)
            while (at := out.tell()) < file.size:
                most = [count for count in (may(), self._line.part, file.size) if count]
                end = min(file.size, at + min(most))
                headers, _ = self._signed(page)
                headers["accept-encoding"] = "identity"
                if at or end < file.size:
                    headers["range"] = f"bytes={at}-{end - 1}"
                try:
                    with self._http.stream("GET", self._page + page, headers=headers) as answer:
                        wanted = HTTPStatus.PARTIAL_CONTENT if "range" in headers else HTTPStatus.OK
                        if answer.status_code != wanted:
                            answer.read()
                            if answer.status_code in _REFUSED:
                                raise self._refusal(answer)
                            waits.refused(answer)
                            continue
                        for part in answer.iter_raw():
                            # More than was asked for would only fail the hash.
                            out.write(part[: end - out.tell()])
                            self._line.received(len(part))
                            waits.moved()
                            if time.monotonic() - said >= SAY_SECONDS:
                                said = time.monotonic()
                                of = say_bytes(file.size)
                                say(f"{file.path}: {say_bytes(out.tell())} of {of}")
                except httpx.TransportError as error:
                    waits.cut(error)
        if not is_this(path, file.size, file.sha256):
            path.unlink(missing_ok=True)
            raise ConfigError(
                f"release {release.name}: {file.path} is not the file that the coordinator signed;"
                " what came is removed; pull again, and ask the coordinator's operator if it stays"
                " so.",
                reason="wrong_hash",
            )

    def _signed(self, page: str) -> tuple[dict[str, str], str]:
        path = httpx.URL(self._page + page).path
        word, nonce = write_word(self._key, path)
        return {HEADER: word}, nonce

    def _refusal(self, answer: httpx.Response) -> Zk0dError:
        """The coordinator's own sentence, where it refuses."""
        answer.read()
        address = self._settings.coordinator.address
        if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return TryAgainError(
                f"the coordinator {address} answers HTTP status {answer.status_code}; try again"
                " later."
            )
        if answer.headers.get("content-type", "").startswith("text/plain"):
            said = " ".join(answer.text.split())
            return UnavailableError(
                f"the coordinator {address} refuses this: {said}", reason="refused"
            )
        return UnavailableError(
            f"the coordinator {address} knows no releases to fetch (HTTP status"
            f" {answer.status_code}): it shares none, or its zk0d is older than this one.",
            reason="refused",
        )


def pull(
    settings: ClientSettings,
    source: Source,
    name: str,
    *,
    offering: Offering | None = None,
    say: Callable[[str], None] = lambda line: None,
    may: Callable[[], int] = lambda: 0,
) -> PulledRelease:
    """Have a release of the coordinator lie here.

    Parameters
    ----------
    name
        ``latest``, ``best``, a run's name for its best, or ``RUN/ROUND``.
    offering
        What the coordinator offers, if it was asked already.
    say
        Takes lines for the person.
    may
        As in :meth:`Source.fetch`.

    Raises
    ------
    Zk0dError
        If there is no such release, it is refused, it cannot be fetched, or has no room here.
    """
    pulled = Pulled.of(settings)
    with _alone(pulled.folder):
        offering = offering or source.ask()
        signed = offering.find(name)
        signed.check(offering.key)
        release = signed.read()
        check_fits(release)
        if not offering.pinned:
            release_key.pin(pulled.folder, offering.key)
            say(f"the coordinator's key {release_key.fingerprint(offering.key)[:16]} is kept")
        folder = release.folder_in(pulled.folder)
        there = _there(folder, signed)
        if there is None:
            files = _fetched(pulled, source, release, say, may)
            there = _install(folder, signed, files)
        else:
            say(f"release {release.name} is here already")
        for link in (LATEST, BEST):
            if getattr(offering.offer, link) == release.name:
                with writing(pulled.folder):
                    point(pulled.folder / link, folder)
                    like_the_folder(pulled.folder / link)
        _clear(pulled.incoming, offering)
        return there


def check_fits(release: Release) -> None:
    """Refuse a release that the LeRobot of this machine could not load.

    Raises
    ------
    UnavailableError
        Naming the version, or what is missing.
    """
    try:
        here = version("lerobot")
    except PackageNotFoundError:
        here = ""
    if series_of(here) != series_of(release.lerobot):
        raise UnavailableError(
            f"release {release.name} was written with LeRobot {release.lerobot or '(not said)'},"
            f" and this machine has {here or 'none'}; install the coordinator's version of zk0d, or"
            " pull a release of this version.",
            reason="other_lerobot",
        )
    if release.policy not in FAMILIES and not packaged(release.policy):
        raise UnavailableError(
            f"release {release.name} is a policy of type '{release.policy}', which this zk0d does"
            f" not know ({', '.join(FAMILIES)}); install the coordinator's version of zk0d.",
            reason="unknown_policy",
        )
    family = family_of(release.policy)
    if family.needs and find_spec(family.needs) is None:
        raise UnavailableError(
            f"release {release.name} is a policy of type '{release.policy}', which needs the"
            f" package {family.needs}; {family.cure} in zk0d's environment.",
            reason="unknown_policy",
        )


def _there(folder: Path, signed: SignedRelease) -> PulledRelease | None:
    """The release, if it lies here whole."""
    try:
        found = PulledRelease.read(folder)
    except ConfigError:
        return None
    return found if found.signed.text == signed.text and found.has_sizes() else None


def _fetched(
    pulled: Pulled,
    source: Source,
    release: Release,
    say: Callable[[str], None],
    may: Callable[[], int],
) -> dict[str, Path]:
    """Where each file of a release lies now, by its hash."""
    with writing(pulled.folder):
        pulled.incoming.mkdir(exist_ok=True)
        like_the_folder(pulled.incoming)
    files: dict[str, Path] = {}
    wanted: dict[str, ReleaseFile] = {}
    for file in release.files:
        path = pulled.incoming / file.sha256
        if (holder := pulled.holder(file.size, file.sha256)) is not None:
            files[file.sha256] = holder
        elif is_this(path, file.size, file.sha256):
            files[file.sha256] = path
        else:
            wanted[file.sha256] = file
    parts = {sha256: pulled.incoming / f"{sha256}.part" for sha256 in wanted}
    came = sum(part.stat().st_size for part in parts.values() if part.exists())
    missing = sum(file.size for file in wanted.values()) - came
    free = shutil.disk_usage(pulled.folder).free
    if missing + KEPT_FREE > free:
        raise TryAgainError(
            f"release {release.name} needs {say_bytes(missing)} more, and {pulled.folder} has"
            f" {say_bytes(free)} free; make room there, or set policies to another disk.",
            reason="disk_full",
        )
    resumed = f", {say_bytes(came)} came before" if came else ""
    say(
        f"release {release.name}: {say_bytes(release.size)}, of which {say_bytes(missing)} are to"
        f" come{resumed}"
    )
    for sha256, file in wanted.items():
        try:
            source.fetch(release, file, parts[sha256], may, say)
            rename(parts[sha256], pulled.incoming / sha256)
        except OSError as error:
            raise not_written(f"{pulled.folder}: cannot be written", error) from None
        finally:
            if parts[sha256].exists():
                like_the_folder(parts[sha256])
        files[sha256] = pulled.incoming / sha256
    return files


def _install(folder: Path, signed: SignedRelease, files: dict[str, Path]) -> PulledRelease:
    """Make a release's folder of its files; it appears whole, or not at all."""
    release = signed.read()
    try:
        _make_folders(folder.parent)
        with whole_folder(folder) as draft:
            for file in release.files:
                place = draft / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                if file.size >= SHARED_BYTES:
                    link_file(files[file.sha256], place)
                else:
                    shutil.copyfile(files[file.sha256], place)
            (draft / FILE).write_text(signed.model_dump_json(), encoding="utf-8")
            _check_content(draft, release)
            for path in draft.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o444)
                _owned_as(folder.parent, path)
            draft.chmod(0o755)
            _owned_as(folder.parent, draft)
    except OSError as error:
        said = disk_trouble(error)
        where = f"{folder}: the release cannot be written"
        raise not_written(where, error, "" if said else " or set policies elsewhere") from None
    return PulledRelease.read(folder)


def _check_content(folder: Path, release: Release) -> None:
    """Refuse what could run code, and a policy of another type than was signed."""
    refuse_code(folder, f"release {release.name}", release.policy)
    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        kind = str(content.get("type"))
    except (OSError, ValueError, AttributeError):
        kind = "nothing that can be read"
    if kind != release.policy:
        raise ConfigError(
            f"release {release.name}: its {CONFIG_FILE} is of {kind}, and its manifest says"
            f" {release.policy}; ask the coordinator's operator.",
            reason="bad_manifest",
        )


def _clear(incoming: Path, offering: Offering) -> None:
    """Remove what no offered release needs any more, and what lies in a release by now."""
    offered = {file.sha256 for release in offering.releases() for file in release.files}
    for path in incoming.glob("*"):
        if path.suffix != ".part" or path.stem not in offered:
            path.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder, for one pull at a time."""
    with writing(folder):
        _make_folders(folder)
        lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CREAT, 0o644)
        like_the_folder(folder / LOCK)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TryAgainError(
                f"{folder}: another pull is under way there; try again when it is done."
            ) from None
        yield
    finally:
        os.close(lock)


def _make_folders(folder: Path) -> None:
    """Make a folder that every user may read, as its parent's owner."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    make_folder(folder)
    folder.chmod(0o755)
    like_the_folder(folder)


def _owned_as(home: Path, path: Path) -> None:
    if os.geteuid() == 0:
        owner = home.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _plain(error: httpx.TransportError) -> str:
    text = str(error)
    if "certificate" in text.lower():
        return "its certificate is not signed by our CA"
    return text or type(error).__name__
