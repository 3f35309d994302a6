"""Every test that boots guests belongs to one make target, and make test-fleet calls them all."""

from __future__ import annotations

import re

from tests.setup.releases import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()


def suites() -> dict[str, list[str]]:
    """The files of each target that runs tests with guests."""
    rules = re.findall(
        r"^(test-[a-z-]+): venv .*\n\t.* -m (?:guest|packages) (.*)\n", MAKEFILE, re.M
    )
    return {name: files.replace("$(ARGS)", "").split() for name, files in rules}


def test_each_file_with_guests_is_in_one_suite() -> None:
    listed = sorted(name for files in suites().values() for name in files)
    with_guests = sorted(
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if "pytest.mark.guest" in path.read_text() and path.name != "test_suites.py"
    )
    assert listed == with_guests


def test_all_guest_suites_but_the_longest_run_together() -> None:
    (together,) = re.findall(r"^GUEST_SUITES := (.*)$", MAKEFILE, re.M)
    assert sorted(together.split()) == sorted(set(suites()) - {"test-air-gap", "test-soak"})


def test_the_docs_name_each_file_with_long_tests() -> None:
    tests = REPOSITORY / "tests"
    long = {
        str(path.relative_to(tests))
        for path in tests.rglob("test_*.py")
        if "pytest.mark.long" in path.read_text() and path.name != "test_suites.py"
    }
    text = (REPOSITORY / "docs/contributing.md").read_text()
    table = text.partition("`make test-long` has these tests")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z0-9_/]+\.py)`", table)) == long
