"""``make release-check --quick`` in copies of this checkout, and the workflows that call it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import processes
from tests.setup.releases import REPOSITORY

WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
VERSION = "3.4.5"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What is committed here and in the working tree, with a changelog that is ready."""
    folder = tmp_path / "checkout"
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(folder)]
    subprocess.run(clone, check=True, capture_output=True)
    subprocess.run(["cp", "-r", REPOSITORY / ".ci", folder], check=True)
    change(folder, "pyproject.toml", r'(?m)^version = ".*"$', f'version = "{VERSION}"')
    change(folder, "ansible/galaxy.yml", r"(?m)^version: .*$", f"version: {VERSION}")
    change(
        folder, "CHANGELOG.md", "## Unreleased\n", f"## Unreleased\n\n## {VERSION} (2026-01-01)\n"
    )
    change(folder, "README.md", r"Version \d+\.\d+", "Version 3.4")
    commit(folder)
    return folder


def change(folder: Path, name: str, pattern: str, by: str) -> None:
    text = (folder / name).read_text()
    changed = re.sub(pattern, by, text, count=1)
    assert changed != text, f"{name}: nothing matches {pattern}"
    (folder / name).write_text(changed)


def commit(folder: Path) -> None:
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", *who, "commit", "--quiet", "--allow-empty", "-m", "test"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def check(folder: Path, *arguments: str) -> tuple[int, str]:
    done = processes.run([folder / ".ci/release-check", *arguments], text=True, timeout=60)
    return done.returncode, done.stderr


def test_a_checkout_that_is_ready(checkout: Path) -> None:
    assert check(checkout, "--quick") == (0, f"release-check: {VERSION} can be released.\n")


@pytest.mark.parametrize(
    ("name", "pattern", "by", "sentence"),
    [
        ("pyproject.toml", VERSION, "3.4", "version '3.4' is not X.Y.Z"),
        ("ansible/galaxy.yml", VERSION, "3.4.4", "ansible/galaxy.yml: version is 3.4.4"),
        ("CHANGELOG.md", f"## {VERSION}", "## 3.4.4", f"has no section '## {VERSION}'"),
        ("CHANGELOG.md", "## Unreleased\n", "## Unreleased\n\n- one more\n", "under Unreleased"),
        ("README.md", "Version 3.4", "Version 3.3", "does not speak of version 3.4"),
        ("zk0d/errors.py", "class", "__version__ = '3.4.5'\nclass", "in pyproject.toml alone"),
        ("docs/contributor.md", "# For", "# For TODO", "is not done"),
    ],
)
def test_every_fault_is_named(
    checkout: Path, name: str, pattern: str, by: str, sentence: str
) -> None:
    change(checkout, name, pattern, by)
    commit(checkout)
    code, said = check(checkout, "--quick")
    assert code == 1
    assert sentence in said


def test_a_change_that_is_not_committed(checkout: Path) -> None:
    change(checkout, "README.md", "zk0d", "zk0d!")
    code, said = check(checkout, "--quick")
    assert (code, "has changes" in said) == (1, True)


def test_a_tag_of_another_commit(checkout: Path) -> None:
    subprocess.run(["git", "tag", f"v{VERSION}"], cwd=checkout, check=True)
    assert check(checkout, "--quick")[0] == 0
    commit(checkout)
    code, said = check(checkout, "--quick")
    assert (code, "tag of another commit" in said) == (1, True)


def test_an_unknown_argument(checkout: Path) -> None:
    assert check(checkout, "--fast") == (
        64,
        "release-check: unknown argument '--fast'; --quick is the only one.\n",
    )


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_is_one(workflow: Path) -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    command = [str(program), "--builtin-schema", "vendor.github-workflows", str(workflow)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_workflows_call_targets_that_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text()))
    called = set()
    for workflow in WORKFLOWS:
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            for step in job["steps"]:
                called |= set(re.findall(r"\bmake ([a-z-]+)", step.get("run", "")))
    assert called == {
        *("test", "test-long", "test-federation", "coverage", "test-processors"),
        *("test-newest-flower", "test-newest-lerobot"),
        *("docs", "release", "release-check"),
    }
    assert called <= targets
