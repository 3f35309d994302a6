"""A guest's time of day, which the host does not share: ``fake_clock.c`` says how.

with_clock = FakeClock(folder)
guest = lab.guest("home", mounts=with_clock.mounts)
with_clock.begin(guest)
with_clock.step(guest, 3600)
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.guests.guest import Guest

SOURCE = Path(__file__).with_name("fake_clock.c")
INSIDE = "/usr/lib/fake_clock.so"
OFFSET = "/etc/fake-clock"


class FakeClock:
    """The library, made by the host's compiler, and each guest's offset."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "fake_clock.so"
        make = ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared"]
        subprocess.run([*make, f"-o{self._library}", str(SOURCE), "-ldl"], check=True)
        folder.chmod(0o755)

    @property
    def mounts(self) -> Mapping[Path, str]:
        return {self._library: INSIDE}

    @staticmethod
    def begin(guest: Guest) -> None:
        """Each process that the guest starts from now on has the fake clock; it is right at first.

        Services that run must be restarted.
        """
        guest.run(f"head -c8 /dev/zero >{OFFSET}")
        guest.write("/etc/ld.so.preload", f"{INSIDE}\n")

    @staticmethod
    def step(guest: Guest, seconds: int) -> None:
        """Set how far the guest's time of day is ahead, in seconds; below 0, how far behind.

        Running processes see it at once. A reboot does not change it.
        """
        value = seconds.to_bytes(8, "little", signed=True)
        escaped = "".join(f"\\{byte:03o}" for byte in value)
        # In place: processes have this file mapped.
        guest.run(f"printf '{escaped}' | dd of={OFFSET} conv=notrunc status=none")

    @staticmethod
    def without(guest: Guest) -> list[str]:
        """Command lines of zk0d's and nginx's processes that do not have the fake clock."""
        said = guest.run(
            "for each in /proc/[0-9]*; do"
            " line=$(tr '\\0' ' ' <$each/cmdline 2>/dev/null);"
            ' case "$line" in *zk0d*|nginx*)'
            f' grep -qs " {OFFSET}$" $each/maps || echo "$line";; esac; done'
        )
        return said.stdout.splitlines()
