"""``zk0bot logs``."""

from __future__ import annotations

from zk0d.cli import verbs
from zk0d.machine.roles import Role


def logs(
    follow: verbs.Follow = False, lines: verbs.Lines = 50, contributor: verbs.Contributor = ""
) -> None:
    """Show the lines of this host's services in systemd's journal."""
    verbs.logs([Role.CLIENT] if contributor else list(Role), follow, lines, contributor)
