"""Resting while the owner needs the machine: by ``[limits]``, without anybody's command.

``zk0d owner`` looks and writes a file. The SuperNode's service, the ClientApps and the learner
read it: the node leaves, ends what it does if the rest is at once, and comes back by itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from zk0d.config.limits import LimitsSettings
from zk0d.daemon.clock import uptime

FILE = "rest.json"
VERSION = 1
#: Without a look for so long nobody knows whether the owner needs the machine.
STALE_SECONDS = 60.0

Kind = Literal["hours", "battery", "program", "idle", "unknown"]


@dataclass(frozen=True)
class Rest:
    """Why a node rests, and until when.

    Parameters
    ----------
    when
        How a sentence goes on after "resting": "until 22:00 (limits.hours)".
    until
        In seconds since 1970, if that is known.
    at_once
        Whether what is under way ends at once; else it is finished.
    """

    kind: Kind
    when: str
    until: float | None = None
    at_once: bool = True

    def sentence(self) -> str:
        """What it means, for a status line of this machine."""
        return f"resting {self.when}; it comes back by itself"

    def told(self) -> str:
        """The same for the coordinator: which programs run here is none of its business."""
        when = self.when if self.kind == "hours" else "while its owner needs the machine"
        return f"this node rests {when}; it comes back by itself."


def told_of(rest: Rest | None) -> dict[str, Any]:
    """What is written into :data:`FILE` after a look."""
    return {"version": VERSION, "uptime": uptime(), "rest": asdict(rest) if rest else None}


def read_rest(folder: Path, limits: LimitsSettings) -> Rest | None:
    """The rest that counts now, for whoever trains on this machine.

    If nobody has looked lately, and ``limits`` name what comes first, the machine is its owner's.
    """
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
        # A boot begins at 0, and the file is of this boot.
        if not 0.0 <= uptime() - told["uptime"] <= STALE_SECONDS:
            raise ValueError
        return Rest(**told["rest"]) if told["rest"] else None
    except (OSError, KeyError, TypeError, ValueError):
        if not limits.ask_to_rest:
            return None
        return Rest("unknown", "until zk0d owner runs, which applies limits")
