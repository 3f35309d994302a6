"""Secrets that systemd hands over (``LoadCredential=``), or their files where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from zk0d.errors import ConfigError

FOLDER_VARIABLE = "CREDENTIALS_DIRECTORY"


def credential(name: str, path: Path, key: str) -> Path:
    """The credential ``name`` if there is one, else ``path``, which the setting ``key`` named.

    Raises
    ------
    ConfigError
        If it cannot be read.
    """
    folder = os.environ.get(FOLDER_VARIABLE)
    given = Path(folder) / name if folder else None
    # A unit gives a blank where the file is missing: otherwise systemd would fail the start with
    # nothing said about which file it was.
    found = given if given is not None and _has_content(given) else path
    try:
        blank = not found.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{key}: {found} cannot be read ({error.strerror}).") from None
    if blank:
        raise ConfigError(f"{key}: {found} is empty.")
    return found


def optional_credential(name: str, path: Path) -> str | None:
    """What the credential ``name`` or else the file ``path`` says; ``None`` where there is none."""
    folder = os.environ.get(FOLDER_VARIABLE)
    for found in (Path(folder) / name if folder else None, path):
        if found is not None and os.access(found, os.R_OK) and _has_content(found):
            return found.read_text(encoding="utf-8").strip()
    return None


def _has_content(path: Path) -> bool:
    return path.exists() and bool(path.read_bytes().strip())


def fingerprint_of(key: Path) -> str:
    """The fingerprint of a node's private key; raises :class:`ConfigError` if it is none.

    In a process of its own: the library for keys takes 8 MB, for one line, for months.
    """
    said = subprocess.run(
        [sys.executable, "-m", "zk0d.machine.keys", str(key)],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.returncode:
        lines = said.stderr.strip().splitlines() or [f"{key} cannot be read."]
        raise ConfigError(lines[-1])
    return said.stdout.strip()
