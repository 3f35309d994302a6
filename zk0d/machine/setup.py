"""Sets a machine up: keys, certificates, secrets, and the settings file of its role.

What is there is kept, so that a second call makes what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import tomlkit

from zk0d.config.base import Settings
from zk0d.config.machine import RELEASE_KEY, ClientSettings, ServerSettings
from zk0d.config.names import check_apart
from zk0d.errors import ConfigError
from zk0d.files import whole_file, write_file
from zk0d.machine import contributors, instances
from zk0d.machine.certificates import LOOPBACK, make_certificates
from zk0d.machine.keys import make_node_key, make_secret, sealed_form, write_private
from zk0d.machine.rights import writing
from zk0d.machine.units import SYSTEM_FOLDER

TOKEN_FILE = "invite.token"
SYSTEM_CA = Path("/etc/ssl/certs/ca-certificates.crt")
_HEAD = "# docs/settings.md has every key.\n"
_HELD_OUT = """
# Held-out recordings to evaluate on:
# [[evaluation]]
# name = "held-out"
# dataset-uri = "local:/data/held-out"
"""


def set_up_server(
    folder: Path, hosts: Sequence[str], settings: Mapping[str, Any] | None = None
) -> list[Path]:
    """Make everything of a coordinator; the files that were there, and are kept.

    Parameters
    ----------
    hosts
        Names and addresses that nodes reach it by.
    settings
        What ``server.toml`` is to hold besides where its files are.

    Raises
    ------
    UsageError
        If the folder lies in recordings.
    ConfigError
        If the settings are wrong.
    TryAgainError
        If the folder cannot be written.
    """
    check_apart(folder, "--folder")
    given = ServerSettings.parse(
        merged(_server_paths(folder), settings or {}), where="this coordinator"
    )
    secrets = [folder / "superexec.secret", folder / "control.secret"]
    file, authority = folder / "server.toml", folder / "tls" / "ca.key"
    kept = [path for path in (authority, *secrets, file) if path.exists()]
    with writing(folder):
        (folder / "roster.d").mkdir(parents=True, exist_ok=True)
        if folder.absolute() != SYSTEM_FOLDER:  # systemd-tmpfiles makes it there
            given.transfers.incoming.mkdir(parents=True, exist_ok=True)
        if authority not in kept:
            make_certificates(authority.parent, [*hosts, *LOOPBACK])
        for path in secrets:
            if path not in kept:
                make_secret(path)
        if file not in kept:
            write_settings(file, given, "" if given.evaluation else _HELD_OUT)
    return kept


def set_up_client(
    folder: Path,
    name: str,
    coordinator: str,
    ca: bytes | None,
    settings: Mapping[str, Any] | None = None,
    release_key: str = "",
) -> list[Path]:
    """Make everything of a contributor; the files that were there, and are kept.

    Parameters
    ----------
    coordinator
        HOST:PORT of its gateway.
    ca
        The coordinator's certificate, which replaces one that is there; ``None`` for the system's
        authorities.
    settings
        What ``client.toml`` is to hold besides these and where its files are.
    release_key
        The public key of the coordinator's releases, which replaces one that is there.

    Raises
    ------
    UsageError
        If the folder lies in recordings.
    ConfigError
        If the settings are wrong.
    TryAgainError
        If the folder cannot be written.
    """
    check_apart(folder, "--folder")
    own = {"name": name, "coordinator": {"address": coordinator}}
    paths = merged(_client_paths(folder), own)
    key, secret, file = (folder / n for n in ("node.key", "superexec.secret", "client.toml"))
    contributor = contributors.name_of(folder)
    if contributor and not file.exists():
        paths = merged(paths, instances.port_settings(contributors.root_of(folder)))
    given = ClientSettings.parse(merged(paths, settings or {}), where="this node")
    kept = [path for path in (key, secret, file) if path.exists()]
    set_authority(folder, ca)
    set_release_key(folder, release_key)
    with writing(folder):
        if key not in kept and not sealed_form(key).exists():
            make_node_key(key)
        if secret not in kept:
            make_secret(secret)
        if file not in kept:
            write_settings(file, given)
    if contributor and contributors.root_of(folder.absolute()) == SYSTEM_FOLDER:
        instances.make_users(contributor)
    return kept


def write_settings(path: Path, settings: Settings, remark: str = "") -> None:
    """Write a settings file with what ``settings`` were given, and a remark at its end."""
    given = settings.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    write_file(path, f"{_HEAD}{tomli_w.dumps(given)}{remark}")


def set_authority(folder: Path, ca: bytes | None) -> bool:
    """Have a contributor trust this certificate, or the system's authorities; whether it is new.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    path = folder / "tls" / "ca.crt"
    with writing(folder):
        if ca is None:
            if path.is_symlink():
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(SYSTEM_CA)
            return True
        if path.exists() and not path.is_symlink() and path.read_bytes() == ca:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, ca)
        return True


def set_release_key(folder: Path, public: str) -> None:
    """Have a contributor know its coordinator's releases by this key; an empty one changes nothing.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    path = (folder / "tls/ca.crt").with_name(RELEASE_KEY)
    if public:
        with writing(path):
            write_file(path, f"{public}\n", mode=0o644)


def keep_token(folder: Path, token: str) -> None:
    """Keep an invite's token until the node is let in; an empty one is none.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    path = folder / TOKEN_FILE
    with writing(path):
        path.unlink(missing_ok=True)
        if token:
            write_private(path, token.encode())


def kept_token(folder: Path) -> str:
    """The token that is kept; empty if there is none."""
    try:
        return (folder / TOKEN_FILE).read_text(encoding="utf-8")
    except OSError:
        return ""


def change_client(path: Path, changes: Mapping[str, Any]) -> ClientSettings:
    """Set keys of ``client.toml``, in tables or not; the rest stays as it is, comments included.

    A key whose new value is ``None`` is taken out.

    Raises
    ------
    ConfigError
        If the settings would be wrong, or such a file cannot be changed by a program.
    TryAgainError
        If it cannot be written.
    """
    before = ClientSettings.load(path)
    wanted = ClientSettings.parse(
        merged(before.model_dump(by_alias=True, exclude_unset=True), changes), where=str(path)
    )
    content = tomlkit.parse(path.read_text(encoding="utf-8"))
    _set(content, changes)
    with writing(path), whole_file(path) as draft:
        draft.write_text(tomlkit.dumps(content), encoding="utf-8")
        if ClientSettings.load(draft) != wanted:
            keys = ", ".join(f"{key} = {value!r}" for key, value in changes.items())
            raise ConfigError(f"{path}: cannot be changed by a program; write by hand: {keys}.")
    return wanted


def _set(table: Any, changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if value is None:
            table.pop(key, None)
        elif isinstance(value, Mapping) and key in table:
            _set(table[key], value)
        else:
            table[key] = value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two settings' tables as one; where both have a key, it is that of ``over``, and none if
    that is ``None``.
    """
    both = dict(base) | {
        key: merged(base[key], value)
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        else value
        for key, value in over.items()
    }
    return {key: value for key, value in both.items() if value is not None}


def _server_paths(folder: Path) -> dict[str, Any]:
    """Where a coordinator's files are, if not where the settings' defaults say."""
    home = folder.absolute()
    if home == SYSTEM_FOLDER:
        return {}
    return {
        "state": home / "state/server",
        "superlink": {
            "state": home / "state/superlink",
            "roster": home / "roster.d",
            "ca": home / "tls/ca.crt",
            "certificate": home / "tls/link.crt",
            "key": home / "tls/link.key",
            "secret": home / "superexec.secret",
            "control-secret": home / "control.secret",
        },
        "gateway": {"certificate": home / "tls/server.crt", "key": home / "tls/server.key"},
        "superexec": {"state": home / "state/server/flower"},
        "evaluator": {"socket": home / "state/evaluator.sock"},
        "publish": {
            "state": home / "state/publish",
            "hf-token": home / "hf.token",
            "wandb-key": home / "wandb.key",
        },
    }


def _client_paths(folder: Path) -> dict[str, Any]:
    home = folder.absolute()
    if home == SYSTEM_FOLDER:
        return {}
    if contributors.root_of(home) == SYSTEM_FOLDER:
        return _paths_of_named(contributors.name_of(home))
    return {
        "coordinator": {"ca": home / "tls/ca.crt"},
        "supernode": {
            "key": home / "node.key",
            "secret": home / "superexec.secret",
            "state": home / "state/supernode",
        },
        "superexec": {"state": home / "state/superexec"},
        "learner": {"socket": home / "state/learner.sock", "state": home / "state/learner"},
        "owner": {"state": home / "state/owner"},
    }


def _paths_of_named(contributor: str) -> dict[str, Any]:
    """Where the files of one of several contributors are: as usual, in folders with its name."""
    usual = ClientSettings(name=contributor).model_dump(mode="json", by_alias=True)
    keys = {
        "coordinator": ("ca",),
        "supernode": ("key", "secret", "state"),
        "superexec": ("state",),
        "learner": ("socket", "state"),
        "owner": ("state",),
    }
    return {
        table: {key: contributors.relocated(usual[table][key], contributor) for key in listed}
        for table, listed in keys.items()
    }
