from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import processes
from zk0d.errors import TryAgainError
from zk0d.machine.audit import AUDIT, HEAD, AuditLog, read, verify

LINES = 6


def written(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    log = AuditLog(folder)
    return [log.append("node.online", "zk0d-server", node=f"n{i}", key="k") for i in range(LINES)]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], str]:
    folder = tmp_path_factory.mktemp("audit")
    head = written(folder)[-1]
    return (folder / AUDIT).read_text().splitlines(keepends=True), head


def verified(folder: Path, lines: list[str], head: str) -> str:
    (folder / AUDIT).write_text("".join(lines))
    (folder / HEAD).write_text(head)
    return verify(folder).problem


def test_an_untouched_log_is_right(tmp_path: Path) -> None:
    heads = written(tmp_path)
    found = verify(tmp_path, heads[2])
    assert (found.lines, found.head, found.problem) == (LINES, heads[-1], "")
    assert [line["node"] for line in read(tmp_path)] == [f"n{i}" for i in range(LINES)]
    assert (tmp_path / AUDIT).stat().st_mode & 0o777 == 0o640
    assert verify(tmp_path / "nothing").lines == 0


@settings(max_examples=80)
@given(at=st.integers(0, 10_000), character=st.sampled_from('0a}"x :'))
def test_any_edit_is_found(
    lines: tuple[list[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    at: int,
    character: str,
) -> None:
    text = "".join(lines[0])
    at %= len(text)
    changed = text[:at] + character + text[at + 1 :]
    folder = tmp_path_factory.mktemp("edit")
    problem = verified(folder, [changed], lines[1])
    same = [json.loads(x) for x in lines[0]]
    try:
        unchanged = [json.loads(x) for x in changed.splitlines()] == same
    except ValueError:
        unchanged = False
    # White space between JSON's parts means nothing.
    assert bool(problem) != unchanged


@pytest.mark.parametrize("at", range(LINES))
def test_a_removed_line_is_found(lines: tuple[list[str], str], tmp_path: Path, at: int) -> None:
    """The last one, too: the head beside the log names it."""
    assert verified(tmp_path, lines[0][:at] + lines[0][at + 1 :], lines[1])


@pytest.mark.parametrize("at", range(LINES - 1))
def test_swapped_lines_are_found(lines: tuple[list[str], str], tmp_path: Path, at: int) -> None:
    moved = list(lines[0])
    moved[at], moved[at + 1] = moved[at + 1], moved[at]
    assert f"line {at + 1} " in verified(tmp_path, moved, lines[1])


def test_a_rewritten_log_is_found_by_a_head_noted_elsewhere(tmp_path: Path) -> None:
    heads = written(tmp_path)
    for name in (AUDIT, HEAD):
        (tmp_path / name).unlink()
    written(tmp_path)
    assert not verify(tmp_path).problem
    assert "is missing or was changed" in verify(tmp_path, heads[3]).problem


def test_a_line_that_broke_off_is_cut_off(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / AUDIT
    path.write_bytes(path.read_bytes() + b'{"v": 1, "n"')
    assert "breaks off" in verify(tmp_path).problem
    AuditLog(tmp_path).append("node.offline", "zk0d-server")
    assert verify(tmp_path).lines == LINES + 1


@pytest.mark.slow
def test_writers_do_not_break_each_others_chain(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from zk0d.machine.audit import AuditLog\n"
        "for i in range(30): AuditLog(Path(sys.argv[1])).append('x', 'w', i=i)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(processes.started(command)) for _ in range(4)]
        assert [writer.wait(60) for writer in writers] == [0] * 4
    found = verify(tmp_path)
    assert (found.lines, found.problem) == (120, "")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(TryAgainError, match="the audit log cannot be written"):
        AuditLog(tmp_path / "nothing").append("x", "y")
