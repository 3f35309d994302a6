"""``zk0bot`` in processes that are forked from one that has torch and LeRobot.

A forked program has its own file descriptors, memory and end, as one that a person starts. It
lacks the seconds of imports, and what those print: one test per verb starts the real program.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

LOADED = (
    "zk0d.cli.main",
    "zk0d.simulation.alone",
    "lerobot.policies.act.modeling_act",
    "lerobot.policies.smolvla.modeling_smolvla",
)


class Forks:
    """Starts the programs, one after another."""

    def __init__(self, parent: subprocess.Popen[str], folder: Path) -> None:
        self._parent = parent
        self._folder = folder
        self._count = 0

    def zk0bot(self, *words: object) -> subprocess.CompletedProcess[str]:
        """As ``subprocess.run`` with its output captured."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._count += 1
        files = [self._folder / f"{self._count}.{name}" for name in ("out", "err")]
        argv = ["zk0bot", *map(str, words)]
        asked = {"argv": argv, "files": [str(file) for file in files]}
        self._parent.stdin.write(json.dumps(asked) + "\n")
        self._parent.stdin.flush()
        ended = self._parent.stdout.readline()
        assert ended, "the process that forks has ended"
        out, err = (file.read_text() for file in files)
        return subprocess.CompletedProcess(argv, int(ended), out, err)


@contextlib.contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """The process that forks, for as long as the block runs."""
    from tests import processes

    code = "from tests.forked import serve; serve()"
    with processes.started(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        yield Forks(parent, folder)


def serve() -> None:
    """Fork a program for each line that is read, and write how it ended."""
    for name in LOADED:
        __import__(name)
    ends = os.dup(1)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            os.close(ends)
            _run(asked["argv"], asked["files"])
        _, status = os.waitpid(child, 0)
        os.write(ends, b"%d\n" % os.waitstatus_to_exitcode(status))


def _run(argv: list[str], files: list[str]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor, file in enumerate(files, 1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = argv
    code = 1
    try:
        from zk0d.cli.main import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
