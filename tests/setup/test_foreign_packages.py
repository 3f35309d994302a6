"""A shell of ROS sets PYTHONPATH: nothing that it names is loaded by a program of ours."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from tests import hostile, processes
from tests.setup.releases import REPOSITORY
from tests.systemd.test_units import FOLDER, directives

BIN = Path(sys.executable).parent
SCRIPTS = (
    *("get-zk0bot.sh", "systemd/zk0d-release", ".ci/setup-venv", ".ci/make-release"),
    *(".ci/make-docs", ".ci/release-check"),
)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    return hostile.packages(tmp_path / "packages")


@pytest.fixture
def shell(packages: Path) -> dict[str, str]:
    """Its environment: with PYTHONHOME as it is here, no Python starts."""
    return {**os.environ, "PYTHONPATH": str(packages), "PYTHONHOME": "/nothing"}


@pytest.mark.parametrize(
    ("program", "argument", "words"),
    [
        ("zk0bot", "version", "lerobot 0.6.1"),
        ("zk0bot", "--help", "Train robots together"),
        ("zk0d", "--help", "superexec"),
    ],
)
def test_no_program_loads_foreign_packages(
    packages: Path, shell: dict[str, str], program: str, argument: str, words: str
) -> None:
    """Not from PYTHONPATH, nor from the folder in which it is typed."""
    said = processes.run([BIN / program, argument], cwd=packages, env=shell, text=True)
    assert (said.returncode, said.stderr) == (0, "")
    assert words in said.stdout


def test_doctor_names_foreign_packages(
    packages: Path, shell: dict[str, str], tmp_path: Path
) -> None:
    command = [BIN / "zk0bot", "doctor", "client", "--json", "--folder", tmp_path]
    said = processes.run(command, env=shell, text=True)
    found = {each["rule"]: each for each in json.loads(said.stdout)["findings"]}["python-path"]
    assert found["ok"]
    assert f"ignored: PYTHONPATH={packages}; PYTHONHOME=/nothing" in found["evidence"]


@pytest.mark.parametrize("program", ["zk0bot", "zk0d"])
def test_children_ignore_foreign_packages_too(
    tmp_path: Path, shell: dict[str, str], program: str
) -> None:
    """By whichever link it is called; a user's own packages do not count either."""
    there = tmp_path / "environment"
    there.mkdir()
    shutil.copy(BIN / program, there)
    (there / "python").write_text('#!/bin/sh\nenv\necho "run: $*"\n')
    (there / "python").chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(there / program)
    said = processes.run([link, "a b"], env=shell, text=True).stdout.splitlines()
    assert f"run: {link} a b" in said
    told = dict(line.split("=", 1) for line in said if "=" in line)
    assert not {"PYTHONPATH", "PYTHONHOME"} & set(told)
    assert (told["PYTHONNOUSERSITE"], told["PYTHONSAFEPATH"]) == ("1", "1")


@pytest.mark.parametrize("program", ["zk0bot", "zk0d"])
def test_a_worker_process_does_not_start_the_program_again(program: str) -> None:
    """multiprocessing runs the main program's file in each worker, by another name."""
    assert "main" in runpy.run_path(str(BIN / program), run_name="__mp_main__")


@pytest.mark.parametrize(
    "unit", sorted(str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.service"))
)
def test_a_unit_starts_no_python_of_its_own(unit: str) -> None:
    """A user's systemd has the environment of that user's session."""
    lines = [line for key, told in directives(unit).items() for line in told if "Exec" in key[:4]]
    started = {Path(line.split()[0]).name for line in lines}
    assert started & {"zk0bot", "zk0d", "nginx"}
    assert started <= {"zk0bot", "zk0d", "nginx", "kill"}


def test_make_drops_foreign_packages(shell: dict[str, str]) -> None:
    """``make test`` and ``make demo``; every target's recipe sees what this one does."""
    command = ["make", "--silent", "-f", "Makefile", "-f", "-", "probe"]
    said = processes.run(
        command, input="probe:\n\t@env\n", cwd=REPOSITORY, env=shell, text=True, check=True
    )
    told = dict(line.split("=", 1) for line in said.stdout.splitlines() if "=" in line)
    assert not {"PYTHONPATH", "PYTHONHOME"} & set(told)
    assert told["PYTHONNOUSERSITE"] == "1"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_drops_foreign_packages_first(shell: dict[str, str], name: str) -> None:
    text = (REPOSITORY / name).read_text()
    head = text[: text.index("PYTHONNOUSERSITE=1\n")]
    said = processes.run(["bash", "-c", f"{head}PYTHONNOUSERSITE=1\nenv"], env=shell, text=True)
    assert "PYTHONPATH=" not in said.stdout
    assert "PYTHONHOME=" not in said.stdout
    assert "PYTHONNOUSERSITE=1" in said.stdout
    assert "python" not in "".join(line for line in head.splitlines() if not line.startswith("#"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [["pytest"], ["python", "-m", "pytest"]], ids=" ".join)
@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_pytest_loads_no_foreign_plugin(packages: Path, how: list[str], workers: list[str]) -> None:
    env = {**os.environ, "PYTHONPATH": str(packages)}
    command = [BIN / how[0], *how[1:], *workers, "-p", "no:cacheprovider"]
    test = "tests/daemon/test_child.py::test_an_end_has_a_reason"
    done = processes.run([*command, test], cwd=REPOSITORY, env=env, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
