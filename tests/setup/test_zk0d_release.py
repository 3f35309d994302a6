from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import processes
from tests.setup.releases import PROGRAM, make_release, served, write_sums

pytestmark = pytest.mark.slow

type Release = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "opt"


@pytest.fixture
def release(tmp_path: Path, prefix: Path) -> Release:
    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "ZK0D_PREFIX": str(prefix),
            "ZK0D_BIN": str(tmp_path / "bin"),
            "UV_OFFLINE": "1",
        }
        return processes.run([PROGRAM, *map(str, arguments)], env=env, text=True, timeout=120)

    return call


@pytest.fixture
def installed(tmp_path: Path, release: Release) -> Release:
    for version in ("0.1.0", "0.2.0"):
        folder = make_release(tmp_path / f"release-{version}", version)
        assert release("install", folder, "--python", sys.executable).returncode == 0
    return release


def test_install_switch_and_back(installed: Release, tmp_path: Path, prefix: Path) -> None:
    assert installed("switch", "0.1.0").returncode == 0
    program = tmp_path / "bin/zk0bot"
    assert subprocess.run([program], capture_output=True, text=True).stdout == "0.1.0\n"
    assert installed("switch", "0.2.0").returncode == 0
    assert subprocess.run([program], capture_output=True, text=True).stdout == "0.2.0\n"
    assert installed("list").stdout == "  0.1.0\n* 0.2.0\n"
    assert installed("rollback").returncode == 0
    assert installed("list").stdout == "* 0.1.0\n  0.2.0\n"


def test_the_same_version_again_changes_nothing(
    installed: Release, tmp_path: Path, prefix: Path
) -> None:
    installed("switch", "0.2.0")
    before = {path: path.lstat().st_mtime_ns for path in prefix.rglob("*")}
    again = installed("install", tmp_path / "release-0.2.0", "--python", sys.executable)
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    again = installed("switch", "0.2.0")
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)
    assert before == {path: path.lstat().st_mtime_ns for path in prefix.rglob("*")}


def test_an_older_version_needs_downgrade(installed: Release) -> None:
    installed("switch", "0.2.0")
    refused = installed("switch", "0.1.0")
    assert refused.returncode == 64
    assert "0.1.0 is older than 0.2.0" in refused.stderr
    assert installed("switch", "0.1.0", "--downgrade").returncode == 0


def test_the_version_in_use_is_not_removed(installed: Release, prefix: Path) -> None:
    installed("switch", "0.2.0")
    assert installed("remove", "0.2.0").returncode == 64
    assert installed("remove", "0.1.0").returncode == 0
    assert not (prefix / "0.1.0").exists()


def test_uninstall_leaves_nothing(installed: Release, tmp_path: Path, prefix: Path) -> None:
    installed("switch", "0.2.0")
    assert installed("uninstall").returncode == 0
    assert not prefix.exists()
    assert list((tmp_path / "bin").iterdir()) == []


def test_uninstall_removes_decoded_frames(tmp_path: Path) -> None:
    """Without its prefix no uninstallation of a test is the usual one, so only this part runs."""
    text = PROGRAM.read_text()
    function = text[text.index("remove_frames() {") : text.index("do_uninstall() {")]
    frames, other = tmp_path / "cache/zk0d/frames", tmp_path / "cache/zk0d/other"
    for folder in (frames, other):
        folder.mkdir(parents=True)
    script = f"is_root() {{ false; }}\n{function}\nremove_frames"
    env = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache")}
    processes.run(["bash", "-euc", script], env=env, check=True)
    assert not frames.exists()
    assert other.exists()


def test_a_unit_that_the_other_version_lacks_is_stopped_by_its_own_version(tmp_path: Path) -> None:
    """The GPU's limit would stay, if its unit lost its file before it ended."""
    text = PROGRAM.read_text()
    functions = text[text.index("left_out() {") : text.index("install_units() {")]
    stubs = """
        with_systemd() { true; }
        ctl() { printf '%s\\n' "$*"; }
        each_file() {
          printf '/x\\t/usr/lib/systemd/system/zk0d-learner.service\\n'
          [ "$1" = 1 ] || printf '/x\\t/usr/lib/systemd/system/zk0d-gpu-power.service\\n'
          [ "$1" = 1 ] || printf '/x\\t/usr/lib/systemd/system/zk0d-gpu-power.service.d/20.conf\\n'
        }
    """

    def stops(version: str, before: str) -> list[str]:
        asked = f"{stubs}\n{functions}\nstop_left_out '{version}' '{before}'"
        said = processes.run(["bash", "-euc", asked], text=True, check=True)
        return said.stdout.splitlines()

    assert stops("1", "2") == ["stop zk0d-gpu-power.service"]
    assert stops("2", "1") == stops("2", "2") == stops("1", "") == []
    put = text[text.index("put_in_place() {") :]
    assert put.index("stop_left_out") < put.index("use ") < put.index("install_units")


@pytest.mark.parametrize("allowed", [True, False])
def test_a_users_units_get_their_drop_ins_where_the_kernel_allows_it(
    tmp_path: Path, allowed: bool
) -> None:
    """That of contributors with names, too; it is tried and told once."""
    text = PROGRAM.read_text()
    start = text.index("# Units that a version brings")
    functions = text[start : text.index("# Whether the drop-in $1 works")]
    functions += text[text.index("left_out() {") : text.index("# Enabling writes a link")]
    share = tmp_path / "prefix/1/share/zk0d"
    shutil.copytree(PROGRAM.parent, share / "systemd")
    stubs = f"""
        PREFIX={tmp_path}/prefix CONFIG={tmp_path}/config
        is_root() {{ false; }}
        with_units() {{ true; }}
        with_systemd() {{ true; }}
        ctl() {{ true; }}
        say() {{ printf '%s\\n' "$*"; }}
        shields_home() {{ printf 'tried\\n'; {"true" if allowed else "false"}; }}
    """
    said = processes.run(
        ["bash", "-euc", f"{stubs}\n{functions}\ninstall_units 1 ''"], text=True, check=True
    )
    units = tmp_path / "config/systemd/user"
    there = {str(path.relative_to(units)) for path in units.rglob("*") if path.is_file()}
    plain = {"zk0d-client.service", "zk0d-client@.service"}
    assert there == plain | ({f"{name}.d/10-home.conf" for name in plain} if allowed else set())
    lines = said.stdout.splitlines()
    assert lines[0] == "tried"
    assert [line for line in lines[1:] if "namespaces" not in line] == []
    assert len(lines) == (1 if allowed else 2)


def test_a_torn_installation_is_made_again(
    installed: Release, tmp_path: Path, prefix: Path
) -> None:
    (prefix / "0.2.0/.zk0d-complete").unlink()
    (prefix / "0.2.0/bin/zk0bot").unlink()
    assert installed("switch", "0.2.0").returncode == 69
    assert (
        installed("install", tmp_path / "release-0.2.0", "--python", sys.executable).returncode == 0
    )
    assert installed("switch", "0.2.0").returncode == 0


def test_a_version_that_does_not_run_leaves_nothing(
    tmp_path: Path, release: Release, prefix: Path
) -> None:
    folder = make_release(tmp_path / "broken", "0.3.0", program="raise SystemExit(1)")
    done = release("install", folder, "--python", sys.executable)
    assert done.returncode == 75
    assert "zk0bot does not run" in done.stderr
    assert not (prefix / "0.3.0").exists()


def _change(folder: Path, name: str) -> None:
    path = next(folder.glob(name))
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: _change(folder, "*.whl"), "is not what SHA256SUMS says"),
        (lambda folder: _change(folder, "constraints.txt"), "is not what SHA256SUMS says"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS: is missing"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "has no line for zk0d-0.1.0"),
        (lambda folder: next(folder.glob("*.whl")).unlink(), "this is not a version's folder"),
    ],
)
def test_a_wrong_release_is_not_installed(
    tmp_path: Path, release: Release, prefix: Path, spoil: Callable[[Path], object], said: str
) -> None:
    folder = make_release(tmp_path / "release", "0.1.0")
    spoil(folder)
    done = release("install", folder, "--python", sys.executable)
    assert done.returncode == 78
    assert said in done.stderr
    assert not prefix.exists()


def test_other_files_under_the_version_in_use(installed: Release, tmp_path: Path) -> None:
    installed("switch", "0.2.0")
    folder = tmp_path / "release-0.2.0"
    _change(folder, "constraints.txt")
    write_sums(folder)
    done = installed("install", folder, "--python", sys.executable)
    assert done.returncode == 78
    assert "changed files need a new version" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["install"],
        ["nonsense"],
        ["list", "x"],
        ["install", "x", "--torch", "rocm"],
        ["switch", "--x"],
    ],
)
def test_wrong_usage(release: Release, arguments: list[str]) -> None:
    assert release(*arguments).returncode == 64


def test_cut_short_it_does_nothing(tmp_path: Path) -> None:
    lines = PROGRAM.read_text().splitlines(keepends=True)
    assert lines[-1].startswith('main "$@"')
    program = tmp_path / "cut"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home")}
    for count in range(0, len(lines), 7):
        program.write_text("".join(lines[:count]))
        done = processes.run(["bash", program, "uninstall"], env=env, text=True)
        assert done.stdout == ""
        assert not (tmp_path / "home").exists()


def test_hashes_of_another_index_are_not_asked_for(tmp_path: Path) -> None:
    """PyTorch's own index has other files of the same version: only the version is held there."""
    text = PROGRAM.read_text()
    function = text[text.index("write_constraints() {") : text.index("build() {")]
    script = (
        f"FOLDER={PROGRAM.parents[1]} TORCH=cu126\n{function}\nwrite_constraints {tmp_path}/out"
    )
    processes.run(["bash", "-c", script], check=True)
    kept = (tmp_path / "out").read_text()
    assert "\ntorch==2.11.0\n" in kept
    assert "nvidia-cublas" not in kept
    assert "nvidia-ml-py==" in kept
    assert "numpy==" in kept
    assert "--hash=sha256" in kept


@pytest.mark.parametrize("place", ["wheelhouse", "index"])
@pytest.mark.parametrize("right", [True, False])
def test_uv_is_taken_by_any_python(tmp_path: Path, place: str, right: bool) -> None:
    """Where there is no uv: from the wheelhouse or an index, if it is the pinned one."""
    machine = os.uname().machine
    wheel = tmp_path / f"simple/uv/uv-1.2.3-py3-none-manylinux_2_17_{machine}.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("uv-1.2.3.data/scripts/uv", "#!/bin/sh\necho uv 1.2.3\n")
    (wheel.parent / "index.html").write_text(f'<a href="{wheel.name}#sha256=0">{wheel.name}</a>')
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest() if right else "0" * 64
    (tmp_path / "constraints.txt").write_text(
        f"typer==1.0 \\\n    --hash=sha256:1\nuv==1.2.3 \\\n    --hash=sha256:{digest}\n    # via\n"
    )
    text = PROGRAM.read_text()
    function = text[text.index("take_uv() {") : text.index("check_folder() {")]
    with served(tmp_path) as (url, _):
        settings = f"FOLDER={tmp_path} WHEELHOUSE={wheel.parent if place == 'wheelhouse' else ''}"
        done = processes.run(
            ["bash", "-c", f"{settings}\n{function}\ntake_uv {sys.executable} {tmp_path}/tools"],
            env={**os.environ, "UV_DEFAULT_INDEX": f"{url}/simple"},
            text=True,
        )
    if right:
        assert done.returncode == 0, done.stderr
        took = subprocess.run([tmp_path / "tools/uv"], capture_output=True, text=True)
        assert took.stdout == "uv 1.2.3\n"
    else:
        assert done.returncode == 1
        assert "is not what constraints.txt says" in done.stderr
        assert not (tmp_path / "tools/uv").exists()
