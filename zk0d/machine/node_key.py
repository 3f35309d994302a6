"""The key of this node: made, changed, renewed, sealed, and used to ask for admission."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from zk0d.config.machine import ClientSettings
from zk0d.errors import UnavailableError, UsageError
from zk0d.files import rename, whole_file, write_file
from zk0d.machine import contributors, units
from zk0d.machine.enrolment import Request
from zk0d.machine.keys import make_node_key, private_fingerprint, sealed_form, write_public_half
from zk0d.machine.renewal import Renewal
from zk0d.machine.rights import writing
from zk0d.machine.roles import service

NEXT = "node.next.key"
CREDENTIAL = "node.key"
_DROP_IN = ("50-sealed-key", "the key is sealed")


def make(path: Path) -> str:
    """Make this node's key; its fingerprint.

    Raises
    ------
    UsageError
        If there is one.
    TryAgainError
        If it cannot be written.
    """
    with writing(path):
        try:
            return make_node_key(path)
        except FileExistsError:
            raise UsageError(
                f"{path} is there already: this node has a key (zk0bot node request shows it); to"
                " change it: zk0bot node keygen --next."
            ) from None


def request(folder: Path, contact: str, *, newer: bool = False) -> str:
    """The signed request to join of the node whose settings lie in ``folder``.

    ``newer`` is for the key to change to.
    """
    key = folder / (NEXT if newer else "node.key")
    return with_key(key, _unsigned(folder, key, contact).to_text)


def request_line(folder: Path, contact: str) -> str:
    """The same in one short line."""
    key = folder / "node.key"
    return with_key(key, _unsigned(folder, key, contact).to_line)


def enrolment(folder: Path, contact: str, token: str) -> str:
    """What asks to let the node in by an invite's token."""
    key = folder / "node.key"
    asked = _unsigned(folder, key, contact)
    return with_key(key, lambda plain: asked.to_enrolment(plain, token))


def with_key[T](key: Path, use: Callable[[Path], T]) -> T:
    """What ``use`` makes of the file of a private key, also if that is sealed."""
    sealed = sealed_form(key)
    if key.exists() or not sealed.exists():
        return use(key)
    with tempfile.TemporaryDirectory() as there:
        plain = Path(there) / "key"
        plain.write_bytes(_systemd_creds("decrypt", str(sealed), "-"))
        return use(plain)


def _unsigned(folder: Path, key: Path, contact: str) -> Request:
    name = ClientSettings.load(folder / "client.toml").name
    return Request.of(name, key.with_suffix(".pub"), contact)


def change(key: Path) -> None:
    """Put the key that the node changes to in its place.

    Raises
    ------
    UsageError
        If there is none.
    TryAgainError
        If it cannot be written.
    """
    newer = key.with_name(NEXT)
    if not newer.exists():
        raise UsageError(f"{newer}: there is no key to change to; zk0bot node keygen --next.")
    with writing(key):
        for suffix in (".key", ".pub"):
            rename(newer.with_suffix(suffix), key.with_suffix(suffix))
    sealed_form(key).unlink(missing_ok=True)
    if units.by_systemd(key.parent):
        for unit in _units(key):
            units.write_drop_in(unit, *_DROP_IN, [])
            units.systemctl("try-restart", unit)


def renewal(folder: Path) -> tuple[Renewal, str]:
    """The signed request to change to the next key, which is made if there is none yet.

    Raises
    ------
    ConfigError
        If a key cannot be read.
    TryAgainError
        If the next key cannot be written.
    """
    key, newer = folder / "node.key", folder / NEXT
    if not newer.exists():
        make(newer)
    name = ClientSettings.load(folder / "client.toml").name

    def signed(plain: Path) -> tuple[Renewal, str]:
        asked = Renewal.of(name, plain, newer)
        return asked, asked.to_body(plain, newer)

    return with_key(key, signed)


def is_changing(folder: Path) -> bool:
    """Whether the next key took the place of the old one, which is still kept."""
    return _kept(folder / "node.key") is not None


def change_and_keep(folder: Path) -> None:
    """Put the next key in the old one's place, and keep that in ``node.key.old``.

    What was cut off continues where it was. A node whose key is sealed has its new key sealed, too.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    UnavailableError
        If the new key cannot be sealed.
    """
    key, newer = folder / "node.key", folder / NEXT
    sealed = sealed_form(key)
    with writing(key):
        if _kept(key) is None:
            if key.exists():
                write_file(_old(key), key.read_bytes(), mode=0o600)
            else:
                # Under the same name, which systemd-creds checks.
                write_file(_old(sealed), sealed.read_bytes(), mode=0o600)
        for suffix in (".key", ".pub"):
            if newer.with_suffix(suffix).exists():
                rename(newer.with_suffix(suffix), key.with_suffix(suffix))
        if key.exists():
            sealed.unlink(missing_ok=True)
    if _old(sealed).exists() and key.exists():
        seal(key)
    else:
        _restart(folder)


def _restart(folder: Path) -> None:
    """Have a SuperNode that systemd runs read its key again; without systemd it does so itself."""
    if units.by_systemd(folder):
        for unit in _units(folder / "node.key"):
            units.systemctl("try-restart", unit)


def change_back(folder: Path) -> None:
    """Put the old key that is kept in its place again; the new one is gone.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    key = folder / "node.key"
    kept = _kept(key)
    assert kept is not None
    back = kept.with_suffix("")
    with writing(key):
        rename(kept, back)
        for form in {key, sealed_form(key)} - {back}:
            form.unlink(missing_ok=True)
        with_key(key, lambda plain: write_public_half(plain, key.with_suffix(".pub")))
    _restart(folder)


def kept_fingerprint(folder: Path) -> str:
    """The fingerprint of the old key that is kept.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    kept = _kept(folder / "node.key")
    assert kept is not None
    if kept == _old(folder / "node.key"):
        return private_fingerprint(kept)
    with tempfile.TemporaryDirectory() as there:
        plain = Path(there) / "key"
        plain.write_bytes(_systemd_creds("decrypt", str(kept), "-"))
        return private_fingerprint(plain)


def forget_old(folder: Path) -> None:
    """Remove the old key that was kept."""
    key = folder / "node.key"
    with writing(key):
        for path in (_old(key), _old(sealed_form(key))):
            path.unlink(missing_ok=True)


def _old(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _kept(key: Path) -> Path | None:
    return next((p for p in (_old(key), _old(sealed_form(key))) if p.exists()), None)


def seal(key: Path) -> Path:
    """Encrypt a key for this machine alone; the sealed file. The plain one goes.

    Raises
    ------
    UsageError
        If there is no plain key.
    UnavailableError
        If this machine cannot do it.
    """
    sealed = sealed_form(key)
    if not key.exists():
        raise UsageError(
            f"{key}: there is no plain key; {sealed} is its sealed form."
            if sealed.exists()
            else f"{key}: there is no key; zk0bot node keygen makes one."
        )
    if not units.has_systemd() or shutil.which("systemd-creds") is None:
        raise UnavailableError(
            "systemd-creds is not here (systemd 250 and newer have it); the key stays a file that"
            " only root can read."
        )
    # The plain file goes only if the sealed one gives it back, and is on the disk.
    with whole_file(sealed, mode=0o600) as draft:
        _systemd_creds("encrypt", str(key), str(draft))
        if _systemd_creds("decrypt", str(draft), "-") != key.read_bytes():
            raise UnavailableError(
                f"{sealed}: cannot be decrypted again; the key stays a plain file."
            )
    for unit in _units(key):
        units.write_drop_in(unit, *_DROP_IN, [f"LoadCredentialEncrypted={CREDENTIAL}:{sealed}"])
    key.unlink()
    for unit in _units(key):
        units.systemctl("try-restart", unit)
    return sealed


def _units(key: Path) -> list[str]:
    """The units that use a key: that of the SuperNode, and what fetches releases."""
    whose = contributors.name_of(key.parent)
    users = map(service, ("supernode", "policy-updates"))
    return [f"{each.unit_of(whose)}.service" for each in users]


def _systemd_creds(verb: str, *files: str) -> bytes:
    said = subprocess.run(
        ["systemd-creds", f"--name={CREDENTIAL}", verb, *files], capture_output=True, check=False
    )
    if said.returncode:
        why = said.stderr.decode(errors="replace").strip().splitlines() or ["it says nothing"]
        raise UnavailableError(f"systemd-creds cannot {verb} {files[0]} ({why[-1]}).")
    return said.stdout
