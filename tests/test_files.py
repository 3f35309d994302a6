"""What is named is durable: what it holds is synced first, and then the name."""

from __future__ import annotations

import ast
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tests.record.lines import write as note
from zk0d import files

ROOT = Path(__file__).parents[1]


@dataclass
class Watched:
    """What a process asked of its disk, in order: ``sync PATH``, ``name PATH``."""

    events: list[tuple[str, Path]] = field(default_factory=list)

    def at(self, what: str, path: Path) -> int:
        found = [n for n, event in enumerate(self.events) if event == (what, path)]
        assert found, f"no {what} of {path} in {self.events}"
        return found[-1]

    def assert_durable(self, path: Path, *contents: str) -> int:
        """That ``path`` got its name as it should, by a draft that held ``contents``; when."""
        named = self.at("name", path)
        draft = self.drafts[named]
        synced = [p for what, p in self.events[:named] if what == "sync"]
        for name in contents or ("",):
            assert draft / name in synced, f"{path} was named before {name or 'it'} was synced"
        if contents:
            last = max(synced.index(draft / name) for name in contents)
            assert draft in synced[last:], "the folder's own names come last"
        after = self.events[named:].index(("sync", path.parent))
        return named + after

    drafts: dict[int, Path] = field(default_factory=dict)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    fsync, replace, link = os.fsync, os.replace, os.link

    def synced(handle: int) -> None:
        fsync(handle)
        seen.events.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}"))))

    def named(by: Callable[..., None]) -> Callable[..., None]:
        def name(draft: Path, path: Path, **more: object) -> None:
            by(draft, path, **more)
            seen.drafts[len(seen.events)] = Path(draft)
            seen.events.append(("name", Path(path)))

        return name

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", named(replace))
    monkeypatch.setattr("os.link", named(link))
    return seen


# --- the two of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True])
def test_a_file(watched: Watched, tmp_path: Path, there: bool) -> None:
    path = tmp_path / "a"
    if there:
        path.write_text("old")
        path.chmod(0o640)
    files.write_file(path, "new", mode=0o600)
    watched.assert_durable(path)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == (
        "new",
        0o640 if there else 0o600,
    )
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_folder(watched: Watched, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "7" / "a"
    for content in ("old", "new"):
        with files.whole_folder(path) as draft:
            (draft / "in").mkdir()
            (draft / "in" / "x").write_text(content)
            assert not path.exists() or (path / "in" / "x").read_text() == "old"
        watched.assert_durable(path, "in", "in/x")
        assert (path / "in" / "x").read_text() == content
    assert [each.name for each in path.parent.iterdir()] == ["a"]
    for made in (tmp_path / "runs", path.parent):
        assert ("sync", made.parent) in watched.events, f"the name of {made} is durable"


def test_a_groups_folder_in_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints lie in a folder whose group is its own, and the evaluator's unit has
    RestrictSUIDSGID=yes, under which a chmod that says the group's bit fails."""
    from zk0d.learning.checkpoint import _share

    releases = tmp_path / "releases"
    releases.mkdir()
    releases.chmod(0o2750)
    chmod = os.chmod

    def restricted(path: str, mode: int, **how: bool) -> None:
        if mode & (stat.S_ISUID | stat.S_ISGID):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        chmod(path, mode, **how)

    monkeypatch.setattr(os, "chmod", restricted)
    before = os.umask(0o027)
    try:
        for _ in range(2):
            with files.whole_folder(releases / "a") as draft:
                (draft / "in").mkdir()
                (draft / "private").mkdir(0o700)
                (draft / "in" / "x").touch(0o600)
                _share(draft)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in releases.rglob("*")}
    assert modes == {"a": 0o2750, "in": 0o2750, "private": 0o750, "x": 0o640}


@pytest.mark.parametrize("whole", [files.whole_file, files.whole_folder])
def test_a_failed_write_leaves_the_old_file(whole: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / "a"
    is_file = whole is files.whole_file
    if is_file:
        path.write_text("old")
    else:
        path.mkdir()
        (path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), whole(path) as draft:  # type: ignore[attr-defined]
        (draft if is_file else draft / "x").write_text("ne")
        raise ZeroDivisionError
    assert (path if is_file else path / "x").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_killed_writers_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".key.partial").write_text("half of another")
    (tmp_path / ".key.partial").chmod(0o644)
    with files.whole_file(tmp_path / "key", mode=0o600) as draft:
        assert stat.S_IMODE(draft.stat().st_mode) == 0o600, "nobody reads it while it is written"
        draft.write_text("x")
    (tmp_path / ".f.partial").mkdir()
    (tmp_path / ".f.partial" / "stale").write_text("x")
    with files.whole_folder(tmp_path / "f") as draft:
        (draft / "fresh").write_text("x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["f", "fresh", "key"]


def test_a_folder_comes_back_after_a_power_cut_between_two_renames(tmp_path: Path) -> None:
    old = tmp_path / ".f.old"
    old.mkdir()
    (old / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), files.whole_folder(tmp_path / "f"):
        raise ZeroDivisionError
    assert (tmp_path / "f" / "x").read_text() == "old"


def test_a_secret_is_never_replaced(tmp_path: Path) -> None:
    files.write_file(tmp_path / "a", "first", new=True)
    with pytest.raises(FileExistsError):
        files.write_file(tmp_path / "a", "second", new=True)
    assert (tmp_path / "a").read_text() == "first"
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path, texts = tmp_path / "a", ["x" * 100_000, "y" * 50_000]

    def write(text: str) -> None:
        for _ in range(30):
            files.write_file(path, text, durable=False)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert path.read_text() in texts
    for thread in threads:
        thread.join()
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_link(watched: Watched, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.point(tmp_path / "latest", tmp_path / name)
        assert os.readlink(tmp_path / "latest") == name
        named = watched.at("name", tmp_path / "latest")
        assert ("sync", tmp_path) in watched.events[named:]


@pytest.mark.parametrize("error", [0, errno.EPERM, errno.EXDEV, errno.ENOSPC])
def test_a_second_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int) -> None:
    """A copy where the disk has no links; an error that is another's is not hidden."""
    real = os.link

    def link(source: Path, target: Path) -> None:
        if error:
            raise OSError(error, os.strerror(error))
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("content")
    if error == errno.ENOSPC:
        with pytest.raises(OSError, match="No space"):
            files.link_file(first, second)
        return
    files.link_file(first, second)
    assert second.read_text() == "content"
    assert second.samefile(first) == (not error)


# --- who names what -------------------------------------------------------------------------------


def test_a_commit(watched: Watched, tmp_path: Path) -> None:
    from zk0d.record.journal import JOURNAL, Journal

    journal = Journal(tmp_path / "runs" / "7", "7")
    journal.write_json("statistics.json", {})
    note(journal, "run.started")
    watched.assert_durable(journal.folder / "statistics.json")
    new = watched.at("sync", journal.folder / JOURNAL)
    assert ("sync", journal.folder) in watched.events[new:], "the journal's own name"
    folder = journal.commit(3, {"weights": lambda path: _write(path, "w")})
    done = watched.assert_durable(folder, "weights", "checksums.json")
    note(journal, "round.committed", round=3)
    assert watched.at("sync", journal.folder / JOURNAL) > done
    journal.commit(3, {"weights": lambda path: _write(path, "v")})
    assert (folder / "weights").read_text() == "v"


def test_a_spooled_update(watched: Watched, tmp_path: Path) -> None:
    from zk0d.federation.spool import Spool
    from zk0d.federation.update import Payload

    payload = Payload.of({"w": np.ones(8, np.float32)}, "delta")
    update = Spool(tmp_path / "run" / "spool").take("node", payload)
    watched.assert_durable(update.path)


@pytest.mark.slow
def test_a_checkpoint_and_its_release(
    watched: Watched, tmp_path: Path, recordings_folder: Path
) -> None:
    from tests.release.test_portable import evaluator_at, released

    checkpoint = released(evaluator_at(tmp_path, recordings_folder), "smolvla", "tiny")
    assert {path.name for path in checkpoint.iterdir()} >= {"README.md", "metrics.json", "zk0d"}
    contents = [str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*")]
    done = watched.assert_durable(checkpoint, *contents)
    for link in (checkpoint.parents[1] / "latest", checkpoint.parent / "best"):
        named = watched.at("name", link)
        assert named > done, "what is not whole is no release"
        assert ("sync", link.parent) in watched.events[named:]


def test_the_roster(watched: Watched, tmp_path: Path) -> None:
    from zk0d.machine import roster
    from zk0d.machine.enrolment import Request
    from zk0d.machine.keys import make_node_key

    for name in ("old", "new"):
        make_node_key(tmp_path / f"{name}.key")
        asked = Request.of("left", tmp_path / f"{name}.pub", "")
        entry = roster.approve(tmp_path / "roster.d", asked, rotate=name == "new")
        watched.assert_durable(entry.path)
    watched.assert_durable(roster.rotate(tmp_path / "roster.d", "left").path)


def test_keys_and_certificates(watched: Watched, tmp_path: Path) -> None:
    from zk0d.machine.certificates import make_certificates, renew
    from zk0d.machine.keys import make_node_key, make_secret

    make_node_key(tmp_path / "node.key")
    make_secret(tmp_path / "superexec.secret")
    make_certificates(tmp_path / "tls", ["localhost"])
    made = ["node.key", "node.pub", "superexec.secret"]
    made += [f"tls/{name}" for name in ("ca.key", "ca.crt", "server.key", "server.crt", "link.key")]
    for name in made:
        watched.assert_durable(tmp_path / name)
    watched.events.clear()
    assert renew(tmp_path / "tls", force=True)
    for name in ("server.key", "server.crt"):
        watched.assert_durable(tmp_path / "tls" / name)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()}
    assert {modes[name] for name in modes if name.endswith(".key")} == {0o600}


def test_settings(watched: Watched, tmp_path: Path) -> None:
    from zk0d.machine.setup import change_client, set_up_client, set_up_server

    set_up_server(tmp_path, ["hub"])
    set_up_client(tmp_path, "left", "hub:9443", b"ca")
    for name in ("server.toml", "client.toml", "tls/ca.crt"):
        watched.assert_durable(tmp_path / name)
    settings = tmp_path / "client.toml"
    settings.chmod(0o640)
    settings.write_text(f"# mine\n{settings.read_text()}")
    change_client(settings, {"dataset-uri": "ann/cubes"})
    watched.assert_durable(settings)
    text = settings.read_text()
    assert text.startswith("# mine")
    assert 'dataset-uri = "ann/cubes"' in text
    assert stat.S_IMODE(settings.stat().st_mode) == 0o640


def test_sent_notes_the_audits_head_and_a_pause_are_written_whole(
    watched: Watched, tmp_path: Path
) -> None:
    from zk0d.machine.audit import AUDIT, HEAD, AuditLog
    from zk0d.machine.hold import HOLD, Hold
    from zk0d.services.publish import Sent

    Sent(tmp_path / "publish" / "7.json").keep(pushed="there")
    watched.assert_durable(tmp_path / "publish" / "7.json")
    AuditLog(tmp_path).append("node.joined", "test")
    assert watched.at("sync", tmp_path / AUDIT) < watched.at("name", tmp_path / HEAD)
    watched.assert_durable(tmp_path / HEAD)
    Hold.drain().write(tmp_path)
    watched.assert_durable(tmp_path / HOLD)


def test_only_the_files_module_renames_and_syncs() -> None:
    """One home for it: a rename elsewhere would be one that is not durable."""
    appends = {"zk0d/record/journal.py", "zk0d/machine/audit.py"}  # to a file that stays
    for path in sorted((ROOT / "zk0d").rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name == "zk0d/files.py":
            continue
        found = {_renames(node) for node in ast.walk(ast.parse(path.read_text()))} - {""}
        if name == "zk0d/learning/checkpoint.py":
            found -= {"rename"}  # within a draft
        if name in appends:
            found -= {"fsync"}
        assert not found, f"{name}: {found} belongs into zk0d/files.py"


def _renames(node: ast.AST) -> str:
    """The call by which a file gets another name, or by which it is synced."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return ""
    called, owner = node.func.attr, node.func.value
    by_os = isinstance(owner, ast.Name) and owner.id in ("os", "shutil")
    # With one argument alone it is neither a text's, nor a date's, nor a dataclass's.
    by_path = called == "replace" and len(node.args) == 1 and not node.keywords
    if called in ("fsync", "rename", "move", "hardlink_to") or by_path:
        return called
    return called if by_os and called in ("replace", "link") else ""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of 64 KiB")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"mount -t tmpfs -o size=64k none {disk} && exec {sys.executable} -c '{FULL}' {disk}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["old", ["a"]]


FULL = """
import json, sys
from pathlib import Path
from zk0d.files import write_file
disk = Path(sys.argv[1])
write_file(disk / "a", "old")
try:
    write_file(disk / "a", "x" * 200_000)
except OSError:
    print(json.dumps([(disk / "a").read_text(), [each.name for each in disk.iterdir()]]))
"""


def _write(path: Path, text: str) -> None:
    path.write_text(text)
