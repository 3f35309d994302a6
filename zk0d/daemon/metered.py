"""Whether this machine's connection is metered, by NetworkManager's word.

NetworkManager says it of the device with the best default route: by the owner's setting, or by a
guess, as for a phone. systemd-networkd knows of no such thing. Where NetworkManager does not run,
no connection counts as metered.
"""

from __future__ import annotations

import json
import subprocess

_ASK = (
    *("busctl", "--json=short", "--auto-start=no", "--timeout=2", "get-property"),
    *("org.freedesktop.NetworkManager", "/org/freedesktop/NetworkManager"),
    *("org.freedesktop.NetworkManager", "Metered"),
)
#: Of NetworkManager's ``NMMetered``: yes, and a guess that it is.
_YES = (1, 3)
_SECONDS = 5.0


def is_metered() -> bool:
    """Ask now."""
    try:
        said = subprocess.run(_ASK, capture_output=True, timeout=_SECONDS, check=True).stdout
        return json.loads(said)["data"] in _YES
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError):
        return False
