"""What a node that rests tells its coordinator: until when, signed with the node's key.

It travels as a header of the node's requests to the presence page. Why it rests is its owner's
business and is not told.
"""

from __future__ import annotations

import time
from pathlib import Path

from zk0d.errors import ConfigError

# cryptography takes 12 MB of a SuperNode's service, which needs it only while it rests.

HEADER = "zk0d-rest"
#: A note counts for so long: no further than a node's clock may be off.
NOTE_SECONDS = 300.0


def write_note(key: Path, until: float | None) -> str:
    """A header's value.

    Parameters
    ----------
    key
        The node's private key.
    until
        When it comes back, in seconds since 1970; ``None`` if nobody knows.

    Raises
    ------
    ConfigError
        If the file holds no key.
    """
    from zk0d.machine.keys import sign_word

    head = f"{until or 0:.0f}.{time.time():.0f}"
    return f"{head}.{sign_word(key, lambda node: _signed(node, head))}"


def read_note(text: str, public: Path) -> float | None:
    """When the node that wrote it comes back; ``None`` if it does not know.

    Parameters
    ----------
    public
        The node's public key in the roster.

    Raises
    ------
    ConfigError
        If it is none, is old, or another key signed it.
    """
    from zk0d.machine.keys import check_word

    try:
        until, moment, signature = text.split(".")
        head = f"{int(until)}.{int(moment)}"
        check_word(public, lambda node: _signed(node, head), signature)
        is_new = abs(time.time() - int(moment)) < NOTE_SECONDS
    except (OSError, ValueError):
        raise ConfigError("the note of a node that rests is not its own.") from None
    if not is_new:
        raise ConfigError("the note of a node that rests is old.")
    return float(until) if int(until) else None


def _signed(fingerprint: str, head: str) -> bytes:
    return f"zk0d-rest-1|{fingerprint}|{head}".encode()
