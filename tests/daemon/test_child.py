"""Children end with their parent, in order, and with a reason."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests import processes
from zk0d.daemon.child import Child, stop_all, wait_until
from zk0d.daemon.program import guarded
from zk0d.errors import ChildError, ConfigError, ExitCode, UnavailableError

SLEEP = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(15, signal.SIG_IGN);"
    "print('up', flush=True); time.sleep(600)"
)


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    made: list[Child] = []

    def make(code: str, name: str = "child") -> Child:
        child = Child(
            name,
            [sys.executable, "-u", "-c", code],
            {"PATH": os.environ["PATH"]},
            tmp_path / f"{name}.log",
            tmp_path,
        )
        made.append(child)
        return child

    yield make
    stop_all(made, 0.1)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_output_goes_to_the_log(spawn: Callable[..., Child]) -> None:
    child = spawn("print('first'); print('last words')")
    child.wait(20)
    assert child.log is not None
    assert child.log.read_text() == "first\nlast words\n"
    assert child.last_words() == "last words"


def test_the_last_error_line_is_the_reason(spawn: Callable[..., Child]) -> None:
    child = spawn("print('\\x1b[91mERROR\\x1b[0m: port taken'); print('shutdown complete')")
    child.wait(20)
    assert child.last_words() == "ERROR: port taken"


def test_an_end_has_a_reason(spawn: Callable[..., Child]) -> None:
    child = spawn("import sys; print('no such port'); sys.exit(3)")
    child.wait(20)
    with pytest.raises(ChildError, match="child ended with status 3: no such port") as error:
        child.check()
    assert error.value.exit_code is ExitCode.CHILD
    killed = spawn(SLEEP, "killed")
    killed.check()
    killed.signal(signal.SIGKILL)
    killed.wait(20)
    with pytest.raises(ChildError, match="killed was killed by signal 9"):
        killed.check()


def test_stopping_is_kind_first(spawn: Callable[..., Child]) -> None:
    child = spawn(SLEEP)
    child.stop(20)
    assert child.exit_status == -signal.SIGTERM


def test_stopping_kills_a_child_that_ignores_sigterm(spawn: Callable[..., Child]) -> None:
    child = spawn(STUBBORN)
    wait_until(lambda: child.last_words() == "up", "the start", 20, [child])
    child.stop(0.2)
    assert child.exit_status == -signal.SIGKILL


def test_stopping_ends_grandchildren_too(spawn: Callable[..., Child]) -> None:
    child = spawn(
        "import subprocess, sys, time;"
        f"p = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]);"
        "print(p.pid); time.sleep(600)"
    )
    wait_until(lambda: child.last_words() == "up", "the start", 20, [child])
    assert child.log is not None
    grandchild = next(int(line) for line in child.log.read_text().split() if line.isdigit())
    stop_all([child], grace=5)
    wait_until(lambda: gone(grandchild), "the grandchild's end", 10)


def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from zk0d.daemon.child import Child;"
        f"c = Child('c', [sys.executable, '-c', {STUBBORN!r}], os.environ, Path('log'), Path('.'));"
        "print(c.pid, flush=True); time.sleep(600)"
    )
    with processes.started(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
    wait_until(lambda: gone(child), "the child's end", 10)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot be started"):
        Child("nobody", ["/no/such/program"], {}, tmp_path / "log", tmp_path)


def test_waiting_ends_with_a_child_or_the_time(spawn: Callable[..., Child]) -> None:
    dead = spawn("")
    dead.wait(20)
    with pytest.raises(ChildError):
        wait_until(lambda: False, "nothing", 20, [dead])
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="nothing did not happen within 0 s"):
        wait_until(lambda: False, "nothing", 0.2)
    assert time.monotonic() - began < 10


def test_programs_end_with_a_sentence_or_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> None:
        raise ConfigError("client.toml: 'x' is wrong.")

    assert guarded("zk0d", wrong) == 78
    said = capsys.readouterr().err
    assert said == "zk0d: client.toml: 'x' is wrong.\n"

    def buggy() -> None:
        raise ZeroDivisionError("oops")

    assert guarded("zk0d", buggy) == 70
    assert "please report" in capsys.readouterr().err

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert guarded("zk0d", interrupted) == 130
    assert guarded("zk0d", lambda: None) == 0


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "x", "/t/file"), "(No space left on device: /t/file)"),
        (OSError(errno.EDQUOT, "x"), "(Disk quota exceeded)"),
        (OSError(errno.EROFS, "x"), "(Read-only file system)"),
        (Exception("No space left on device (os error 28)"), "(No space left on device)"),
    ],
)
def test_a_program_that_meets_a_full_disk_ends_with_a_sentence(
    capsys: pytest.CaptureFixture[str], error: Exception, says: str
) -> None:
    def full() -> None:
        try:
            raise error
        except Exception as cause:
            raise RuntimeError("could not save") from cause

    assert guarded("zk0d", full) == ExitCode.TRY_AGAIN
    said = capsys.readouterr().err
    assert says in said
    assert "free space there" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_that_a_program_has_no_right_to_is_named(
    capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refused() -> None:
        raise OSError(number, os.strerror(number), "/t/file")

    assert guarded("zk0d", refused) == ExitCode.UNAVAILABLE
    said = capsys.readouterr().err
    assert said.startswith(f"zk0d: /t/file: this process may not use it ({os.strerror(number)}")
    assert said.count("\n") == 1


def test_a_file_that_is_not_there_stays_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    def buggy() -> None:
        raise OSError(errno.ENOENT, "x", "/t/file")

    assert guarded("zk0d", buggy) == ExitCode.BUG
    assert "please report" in capsys.readouterr().err
