""".ci/setup-venv picks an interpreter that really runs, and says so when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes

SCRIPT = Path(__file__).parents[2] / ".ci" / "setup-venv"
INTERPRETER = Path(sys.executable).resolve()


def setup(*arguments: str, path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script with ``path`` first and little else on PATH."""
    return processes.run(
        [str(SCRIPT), *arguments],
        env={"PATH": f"{path}:{path / 'tools'}", "HOME": str(path), **env},
        text=True,
        timeout=60,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A machine without any Python: only the tools that the script itself needs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "cat", "sha256sum", "cut", "id"):
        found = next(p for p in os.defpath.split(":") if (Path(p) / tool).exists())
        (tools / tool).symlink_to(Path(found) / tool)
    return tmp_path


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_no_interpreter_is_one_sentence_and_69(bare: Path) -> None:
    said = setup("--python", path=bare)
    assert said.returncode == 69
    assert said.stderr.count("\n") == 1
    assert "no Python >= 3.12 runs here: install one" in said.stderr


def test_a_shim_that_fails_is_passed_over(bare: Path) -> None:
    program(bare / "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    program(bare / "python3", f'exec {INTERPRETER} "$@"')
    said = setup("--python", path=bare)
    assert (said.returncode, said.stdout.strip()) == (0, str(bare / "python3"))


def test_an_old_interpreter_is_passed_over(bare: Path) -> None:
    program(bare / "python3", "exit 1")
    assert setup("--python", path=bare).returncode == 69


def test_pyenvs_versions_are_found(bare: Path) -> None:
    python = bare / "versions" / "3.12.9" / "bin" / "python"
    program(python, f'exec {INTERPRETER} "$@"')
    said = setup("--python", path=bare, PYENV_ROOT=str(bare))
    assert (said.returncode, said.stdout.strip()) == (0, str(python))


def test_a_named_interpreter_that_does_not_run(bare: Path) -> None:
    said = setup("--python", path=bare, PYTHON="/nothing/python")
    assert said.returncode == 69
    assert "PYTHON=/nothing/python does not run" in said.stderr


def test_an_unknown_argument_is_64(bare: Path) -> None:
    said = setup("--pyton", path=bare)
    assert said.returncode == 64
    assert "unknown argument '--pyton'" in said.stderr
