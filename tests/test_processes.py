"""What a test starts ends with it: when its time is over, and when pytest is killed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import processes
from tests.processes import wait_until

TESTS = Path(__file__).parent
#: A program with a child, which says that both run.
FAMILY = """\
import pathlib, subprocess, sys, time
if len(sys.argv) == 2:
    subprocess.Popen([sys.executable, *sys.orig_argv[1:], "child"])
else:
    pathlib.Path(sys.argv[1], "both").touch()
time.sleep(600)
"""
TOO_LONG = """\
import sys, time
import pytest
from pathlib import Path
from tests import processes

COMMAND = [sys.executable, "-c", {family!r}, {folder!r}]

@pytest.mark.timeout({seconds})
def test_started():
    with processes.started(COMMAND):
        while not Path({folder!r}, "both").exists():
            time.sleep(0.05)
        print("both run", flush=True)
        time.sleep(600)

@pytest.mark.timeout({seconds})
def test_run():
    processes.run(COMMAND)
"""


def family(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A folder that the family names on its command lines."""
    folder = tmp_path / "family"
    folder.mkdir()
    yield folder
    for process in family(folder):
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["started", "run"])
@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_time_out_leaves_no_process(
    tmp_path: Path, marker: Path, which: str, workers: list[str]
) -> None:
    test = tmp_path / "test_too_long.py"
    test.write_text(TOO_LONG.format(family=FAMILY, folder=str(marker), seconds=8))
    command = [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    done = processes.run([*command, *workers, f"{test}::test_{which}"], cwd=TESTS.parent, text=True)
    assert done.returncode == 1, done.stdout
    assert "Timeout (>8.0s) from pytest-timeout" in done.stdout
    assert (marker / "both").exists(), "both ran"
    wait_until(lambda: family(marker) == [], "the family's end", 10)


def test_a_killed_pytest_leaves_no_program(marker: Path) -> None:
    code = (
        "import sys, time; from tests import processes\n"
        f"with processes.started([sys.executable, '-c', {FAMILY!r}, sys.argv[1], 'child']):\n"
        "    time.sleep(600)"
    )
    with processes.started([sys.executable, "-c", code, str(marker)], cwd=TESTS.parent) as pytests:
        wait_until((marker / "both").exists, "the program's start", 30)
        pytests.kill()
        pytests.wait()
        wait_until(lambda: family(marker) == [], "the program's end", 10)


def test_output_and_status_are_passed_on() -> None:
    done = processes.run(["sh", "-c", "cat; echo wrong >&2; exit 3"], input="given", text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "given", "wrong\n")
    with pytest.raises(subprocess.CalledProcessError):
        processes.run(["false"], check=True)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.stem)
def test_a_program_that_runs_beside_a_test_is_started_here_alone(path: Path) -> None:
    calls = [
        ast.unparse(n.func)
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call)
    ]
    own = path.name == "processes.py"
    assert [call for call in calls if call.endswith("Popen")] == ["subprocess.Popen"] * own
