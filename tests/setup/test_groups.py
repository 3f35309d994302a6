"""Tests that share what they need run in one process: make, conftest and pytest-xdist agree."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
MANY = '@pytest.mark.parametrize("number", range(8))\ndef test_it(number): pass\n'
GROUPED = 'pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("federation")]'
FILES = {
    "conftest.py": "from tests.conftest import pytest_collection_modifyitems\n",
    "test_quick.py": f"import pytest\n{MANY}",
    "test_looks.py": f"import pytest\n{GROUPED}\n{MANY}",
    "test_runs.py": f"import pytest\n{GROUPED}\n{MANY}",
}


def test_tests_of_a_file_and_of_a_group_run_in_one_process(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    line = re.search(r"^PARALLEL := (.*)$", (REPOSITORY / "Makefile").read_text(), re.M)
    assert line is not None
    options = [*line[1].split(), "-v", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    said = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    processes = defaultdict(set)
    for process, name in re.findall(r"\[(gw\d+)\].* PASSED \S*?(\w+)\.py::", said.stdout):
        processes[name].add(process)
    assert {name: len(where) for name, where in processes.items()} == {
        "test_quick": 1,
        "test_looks": 1,
        "test_runs": 1,
    }, said.stdout + said.stderr
    assert processes["test_looks"] == processes["test_runs"]
