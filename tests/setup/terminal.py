"""``python terminal.py ANSWER COMMAND…``: runs it at a terminal of its own and answers once."""

from __future__ import annotations

import os
import pty
import sys


def main() -> int:
    answer, *command = sys.argv[1:]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)  # noqa: S606
    os.write(terminal, f"{answer}\n".encode())
    while True:
        try:
            said = os.read(terminal, 4096)
        except OSError:  # the command has ended
            break
        if not said:
            break
        sys.stdout.buffer.write(said)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
