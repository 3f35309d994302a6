"""Keeping a node out of the federation for a while: ``zk0bot client pause`` and ``drain``.

A file in the SuperNode's state folder says it, so a pause outlives a reboot. The service looks at
it, lets the round's work be finished and its reply go out, and then leaves.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from zk0d.daemon.clock import uptime
from zk0d.errors import TryAgainError
from zk0d.machine.state import write_json

HOLD = "hold.json"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
#: The same, by systemd, for a service that does not see that file (ProcSubset=pid).
BOOT_VARIABLE = "ZK0D_BOOT_ID"


@dataclass(frozen=True)
class Hold:
    """Why the node stays out.

    Parameters
    ----------
    kind
        ``pause`` outlives a reboot and ends by itself; ``drain`` is for maintenance: it ends with
        the next boot.
    until
        When a pause ends, in seconds since 1970; ``None`` for a drain.
    boot
        The boot in which it was made.
    until_uptime
        When a pause ends, in seconds since that boot: the clock may be set meanwhile.
    """

    kind: Literal["pause", "drain"]
    until: float | None
    boot: str
    until_uptime: float | None = None

    @classmethod
    def pause(cls, seconds: float) -> Hold:
        return cls("pause", time.time() + seconds, boot_id(), uptime() + seconds)

    @classmethod
    def drain(cls) -> Hold:
        return cls("drain", None, boot_id())

    @property
    def over(self) -> bool:
        now = boot_id()
        if self.until is None:
            return bool(now) and self.boot != now
        if self.until_uptime is not None and now and self.boot == now:
            return uptime() >= self.until_uptime
        return time.time() >= self.until

    def sentence(self) -> str:
        """What it means, for a status line."""
        if self.until is None:
            return "drained: zk0bot client resume, or a reboot, brings it back"
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.until))
        return f"paused until {end}: zk0bot client resume ends it before"

    def write(self, state: Path) -> None:
        """Put it into a SuperNode's state folder."""
        write_json(state / HOLD, asdict(self), durable=True)


def read_hold(state: Path) -> Hold | None:
    """The hold that counts now; one that is over is removed."""
    try:
        hold = Hold(**json.loads((state / HOLD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        # Half-written it cannot be; whatever else it is, it keeps nobody out.
        end_hold(state)
        return None
    if hold.over:
        end_hold(state)
        return None
    return hold


def end_hold(state: Path) -> bool:
    """Remove a hold; whether there was one."""
    try:
        (state / HOLD).unlink()
    except FileNotFoundError:
        return False
    return True


def resume(state: Path) -> bool:
    """The same by a person's command.

    Raises
    ------
    TryAgainError
        If this user may not.
    """
    try:
        return end_hold(state)
    except OSError as error:
        raise TryAgainError(
            f"{state / HOLD}: cannot be removed ({error.strerror}); are you root?"
        ) from None


def boot_id() -> str:
    """Names this boot; empty where nothing tells."""
    try:
        found = BOOT_ID.read_text(encoding="utf-8")
    except OSError:
        found = os.environ.get(BOOT_VARIABLE, "")
    return found.strip().replace("-", "")
