"""A release's folder, built from a checkout of what git tracks here."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import processes
from tests.setup.releases import REPOSITORY, find_uv, make_key

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("make-release")]

type Built = tuple[Path, Path]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"))


def build(
    folder: Path, checkout: Path = REPOSITORY, *, umask: int = 0o022, **env: str
) -> subprocess.CompletedProcess[str]:
    tools = f"{find_uv().parent}:{os.environ['PATH']}"
    return processes.run(
        [checkout / ".ci/make-release", folder],
        env={**os.environ, "PATH": tools, "PYTHON": sys.executable, **env},
        umask=umask,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Built:
    """Two builds of the same, one of them under another umask and from a copy with litter."""
    root = tmp_path_factory.mktemp("releases")
    copy = root / "copy"
    clone = ["git", "clone", "--quiet", "--no-hardlinks", str(REPOSITORY), str(copy)]
    subprocess.run(clone, check=True, capture_output=True)
    # What is not committed yet belongs to both.
    changes = subprocess.run(
        ["git", "diff", "HEAD", "--binary"], cwd=REPOSITORY, check=True, capture_output=True
    ).stdout
    if changes:
        subprocess.run(["git", "apply", "--index"], cwd=copy, input=changes, check=True)
    (copy / "zk0d/litter.py").write_text("not tracked")
    (copy / "dist").mkdir()
    (copy / "dist/old.whl").write_text("not tracked")
    settings = {"RELEASE_KEY": str(key), "RELEASE_URL": "https://example.org/{version}"}
    for name, checkout, umask in (("one", REPOSITORY, 0o022), ("two", copy, 0o077)):
        done = build(root / name, checkout, umask=umask, **settings)
        assert done.returncode == 0, done.stderr
    return root / "one", root / "two"


def test_two_builds_give_the_same_bytes(built: Built) -> None:
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in built)
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []


def test_a_release_holds_every_file_of_an_installation(built: Built) -> None:
    folder, _ = built
    (wheel,) = folder.glob("*.whl")
    version = wheel.name.split("-")[1]
    assert {p.name for p in folder.iterdir()} == {
        f"zk0d-{version}-py3-none-any.whl",
        f"zk0d-{version}.tar.gz",
        "constraints.txt",
        "zk0d-release",
        "get-zk0bot.sh",
        "SHA256SUMS",
        "SHA256SUMS.sig",
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert "zk0d/cli/main.py" in names
    assert "zk0d/litter.py" not in names
    assert any(name.endswith("share/zk0d/systemd/zk0d-learner.service") for name in names)
    with tarfile.open(folder / f"zk0d-{version}.tar.gz") as archive:
        source = archive.getnames()
    assert f"zk0d-{version}/systemd/zk0d-release" in source
    assert not [name for name in source if "/dist/" in name or "/.venv" in name]


def test_the_sums_are_those_of_all_files(built: Built) -> None:
    folder, _ = built
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = [p for p in folder.iterdir() if not p.name.startswith("SHA256SUMS")]
    assert sums == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_signature_is_by_the_key_that_the_installer_holds(built: Built, tmp_path: Path) -> None:
    folder, _ = built
    lines = (folder / "get-zk0bot.sh").read_text().splitlines()
    (stamped,) = [line for line in lines if line.startswith("readonly STAMPED_KEY=")]
    signers = tmp_path / "signers"
    signers.write_text(f"release {stamped.split('"')[1]}\n")
    verify = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "release"]
    sums = (folder / "SHA256SUMS").read_bytes()
    signature = ["-n", "zk0d-release", "-s", str(folder / "SHA256SUMS.sig")]
    assert subprocess.run([*verify, *signature], input=sums, capture_output=True).returncode == 0
    assert subprocess.run([*verify, *signature], input=sums + b" ", capture_output=True).returncode


def test_the_installer_changes_only_by_its_stamp(built: Built) -> None:
    folder, _ = built
    stamped = (folder / "get-zk0bot.sh").read_text().splitlines()
    plain = (REPOSITORY / "get-zk0bot.sh").read_text().splitlines()
    changed = [new for old, new in zip(plain, stamped, strict=True) if old != new]
    (wheel,) = folder.glob("*.whl")
    assert changed[:2] == [
        f'readonly STAMPED_VERSION="{wheel.name.split("-")[1]}"',
        'readonly STAMPED_URL="https://example.org/{version}"',
    ]
    assert changed[2].startswith('readonly STAMPED_KEY="ssh-ed25519 ')
    assert len(changed) == 3


def test_without_a_key_a_note_says_that_nothing_is_signed(tmp_path: Path) -> None:
    done = build(tmp_path / "release", VERSION="9.9.9")
    assert done.returncode == 0, done.stderr
    assert "not signed: name a private ssh key" in done.stderr
    assert not (tmp_path / "release/SHA256SUMS.sig").exists()
    assert (tmp_path / "release/zk0d-9.9.9-py3-none-any.whl").exists()


def test_a_failed_build_is_one_sentence(tmp_path: Path) -> None:
    done = build(tmp_path / "release", RELEASE_KEY=str(tmp_path / "no-key"))
    assert (done.returncode, done.stderr.count("\n")) == (69, 1)
    assert "there is no such file" in done.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("text")
    done = build(tmp_path / "mine")
    assert done.returncode == 64
    assert (tmp_path / "mine/thesis.txt").exists()
