"""get-zk0bot.sh with stand-in releases, in a home of its own; root's part is tests/guests'."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from tests import processes
from tests.setup.releases import (
    INSTALLER,
    REPOSITORY,
    Mirror,
    find_uv,
    make_key,
    make_release,
    served,
    sign,
    write_sums,
)

#: A stand-in for zk0bot: it writes down how it was called, and makes the settings that join makes.
BOT = """\
import os, pathlib, sys

def main():
    home = pathlib.Path(os.environ["HOME"])
    with open(home / "calls", "a") as calls:
        print(" ".join(sys.argv[1:]), file=calls)
    if sys.argv[1:3] == ["client", "join"]:
        (home / "invite").write_text(sys.stdin.read())
        folder = pathlib.Path(sys.argv[sys.argv.index("--folder") + 1])
        folder.mkdir(parents=True)
        (folder / "client.toml").write_text('dataset-uri = "local:/data"')
        print("a request")
"""


def tree(folder: Path) -> dict[str, str]:
    """All that is in a folder: modes, links, contents."""
    return {
        str(path.relative_to(folder)): f"{path.lstat().st_mode:o} "
        + (
            os.readlink(path)
            if path.is_symlink()
            else sha256(path.read_bytes()).hexdigest()
            if path.is_file()
            else ""
        )
        for path in folder.rglob("*")
    }


@dataclass
class Installer:
    """A machine: a home, a PATH that begins with fakes, and the script."""

    root: Path
    script: Path = INSTALLER
    env: dict[str, str] = field(default_factory=dict)
    path: str = ""

    def __post_init__(self) -> None:
        self.home = self.root / "home"
        self.fakes = self.root / "fakes"
        self.prefix = self.home / ".local/share/zk0d"
        self.home.mkdir()
        self.fakes.mkdir()
        # Not root, whoever runs this: then all of it is in the home.
        self.fake("id", 'if [ "$1" = -u ]; then echo 1000; else echo ann; fi')

    def fake(self, name: str, text: str) -> None:
        """A program of that name, first on PATH."""
        path = self.fakes / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        path = self.path or f"{Path(sys.executable).parent}:{find_uv().parent}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if k in ("LANG", "LC_ALL", "TMPDIR")}
        # Where this Python comes from has no place in the home of ann.
        return {
            **kept,
            "HOME": str(self.home),
            "PATH": f"{self.fakes}:{path}",
            "UV_OFFLINE": "1",
            **self.env,
        }

    def __call__(
        self, *arguments: str | Path, user: bool = True, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return processes.run(
            ["bash", self.script, *(["--user"] if user else []), *map(str, arguments)],
            env={**self.environment, **env},
            text=True,
            timeout=120,
        )

    def version(self) -> str:
        """What the linked zk0bot says."""
        program = self.home / ".local/bin/zk0bot"
        return subprocess.run([program], capture_output=True, text=True).stdout.strip()

    def log(self) -> str:
        return (self.home / ".local/state/zk0d-install.log").read_text()


@pytest.fixture
def installer(tmp_path: Path) -> Installer:
    return Installer(tmp_path)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"))


@pytest.fixture
def release(tmp_path: Path, key: Path) -> Path:
    """A signed release 0.1.0."""
    return make_release(tmp_path / "zk0d-0.1.0", "0.1.0", key=key)


@pytest.fixture
def mirror(tmp_path: Path, release: Path) -> Iterator[tuple[str, type[Mirror]]]:
    with served(tmp_path) as (url, handler):
        yield f"{url}/{release.name}", handler


# --- what it is -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_cut_short_it_does_nothing(tmp_path: Path, release: Path) -> None:
    text = INSTALLER.read_bytes()
    last = text.rstrip(b"\n").rfind(b"\n") + 1
    assert text[last:] == b'{ main "$@"; }\n'
    lines = [at + 1 for at, byte in enumerate(text) if byte == ord("\n") and at < last]
    # Within a function bash runs what stands before it, wherever that is cut: some lines will do.
    places = [at for n, at in enumerate(lines) if text[at : at + 1] not in b" \t" or n % 10 == 0]
    places += range(last, len(text) - 2)
    home = tmp_path / "home"
    home.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "ZK0D_FROM": str(release)}
    assert len(places) > 250
    for place in places:
        done = processes.run(["bash", "-s"], input=text[:place], env=env)
        assert done.stdout == b"", place
        assert b"machine:" not in done.stderr, place
    assert list(home.iterdir()) == []


def header() -> str:
    text = INSTALLER.read_text()
    return text[: text.index("set -euo pipefail")]


def test_every_documented_variable_is_read_and_every_read_one_documented() -> None:
    text = INSTALLER.read_text()
    code = text[len(header()) :]
    documented = set(re.findall(r"^#   (--[a-z-]+)|\[(--purge)\]", header(), re.MULTILINE))
    known = {flag for pair in documented for flag in pair if flag}
    reader = code[code.index("read_command_line() {") : code.index("check_command_line() {")]
    parsed = set(re.findall(r"^ +(--[a-z-]+)(?=\)| \|)| \| (--[a-z-]+)", reader, re.MULTILINE))
    assert known == {flag for pair in parsed for flag in pair if flag} - {"--help"}
    variables = set(re.findall(r"\$\{(ZK0D_[A-Z_]+)", code))
    assert set(re.findall(r"ZK0D_[A-Z_]+", header())) == variables | {"ZK0D_PREFIX", "ZK0D_BIN"}


def test_each_end_has_its_own_code() -> None:
    codes = re.findall(r"\bdie (\d+) ", INSTALLER.read_text())
    assert len(codes) == len(set(codes))
    assert all(9 < int(code) < 100 for code in codes)
    page = (REPOSITORY / "docs/cli.md").read_text()
    table = page[page.index("| code | `get-zk0bot.sh` |") :].partition("\n\n")[0]
    ranges = re.findall(r"^\| (\d+)(?:–(\d+))? \|", table, re.MULTILINE)
    documented = {
        code for first, last in ranges for code in range(int(first), int(last or first) + 1)
    }
    assert documented == {int(code) for code in codes}
    assert len(ranges) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["shellcheck", "shfmt"])
def test_shell_scripts_pass_the_linters(tool: str) -> None:
    """And so is every other shell script of the project."""
    search = ["git", "grep", "-lIE", "^#!/(usr/bin/env |bin/)(ba)?sh", "--", ":!bin"]
    found = subprocess.run(search, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    scripts = found.stdout.split()
    assert {INSTALLER.name, "systemd/zk0d-release", ".ci/make-release"} <= set(scripts)
    program = Path(sys.executable).with_name(tool)
    options = ["-i", "2", "-ci", "-d"] if tool == "shfmt" else []
    done = subprocess.run(
        [program, *options, *scripts], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_help_prints_the_scripts_first_lines(installer: Installer) -> None:
    done = installer("--help")
    assert done.returncode == 0
    assert "--role client|server|demo  ZK0D_ROLE" in done.stdout


# --- from where -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["folder", "wheel", "its own folder"])
def test_from_a_folder(installer: Installer, release: Path, key: Path, what: str) -> None:
    wheel = release / "zk0d-0.1.0-py3-none-any.whl"
    source: dict[str, list[Path]] = {"folder": [release], "wheel": [wheel], "its own folder": []}
    if what == "its own folder":
        installer.script = release / INSTALLER.name
    given = [word for path in source[what] for word in ("--from", str(path))]
    done = installer(*given, "--key", f"{key}.pub")
    assert done.returncode == 0, done.stderr
    assert installer.version() == "0.1.0"
    assert "zk0d 0.1.0 is in" in done.stderr
    assert "Next: zk0bot --help" in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_from_a_checkout(installer: Installer) -> None:
    """Zk0d itself, without a network: packages come from the cache that ``make venv`` filled."""
    cache = subprocess.run([find_uv(), "cache", "dir"], capture_output=True, text=True, check=True)
    done = processes.run(
        ["bash", INSTALLER, "--user", "--from", REPOSITORY, "--torch", "pypi"],
        env={
            **installer.environment,
            "UV_CACHE_DIR": cache.stdout.strip(),
            "PYTHON": sys.executable,
        },
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "building a version of" in done.stderr
    assert "zk0d " in installer.version()
    assert not (installer.home / ".cache/zk0d-install").exists()


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A PATH with all programs of this host but one."""

    def make(name: str) -> str:
        folder = tmp_path_factory.mktemp(f"no-{name}")
        places = [Path(sys.executable).parent, find_uv().parent, Path("/usr/bin"), Path("/bin")]
        for place in places:
            for program in place.iterdir():
                if program.name != name and not (folder / program.name).is_symlink():
                    (folder / program.name).symlink_to(program)
        return str(folder)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["wget", "curl"])
def test_from_a_mirror(
    installer: Installer,
    mirror: tuple[str, type[Mirror]],
    release: Path,
    without: Callable[[str], str],
    missing: str,
) -> None:
    """By curl and by wget, piped into bash, with the address and the key that are in the script."""
    url, handler = mirror
    installer.path = without(missing)
    handler.breaks = {"constraints.txt": 5}  # the connection ends after 5 bytes
    done = processes.run(
        ["bash", "-s", "--", "--user", "--from", url],
        input=(release / INSTALLER.name).read_text(),
        env=installer.environment,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert installer.version() == "0.1.0"
    asked = [(Path(path).name, first) for path, first in handler.requests]
    assert ("constraints.txt", 5) in asked, "it resumes"
    assert ("zk0d-0.1.0.tar.gz", 0) not in asked
    assert not (installer.home / ".cache/zk0d-install").exists()


@pytest.mark.slow
def test_the_same_installation_again_changes_nothing(
    installer: Installer, mirror: tuple[str, type[Mirror]], key: Path
) -> None:
    url, handler = mirror
    source = ["--from", url, "--key", f"{key}.pub"]
    assert installer(*source).returncode == 0
    before = tree(installer.prefix)
    handler.requests.clear()
    again = installer(*source)
    assert again.returncode == 0
    assert "0.1.0 is installed: nothing to do" in again.stderr
    assert tree(installer.prefix) == before
    asked = {Path(path).name for path, _ in handler.requests}
    assert asked == {"SHA256SUMS", "SHA256SUMS.sig"}


@pytest.mark.slow
def test_another_version_by_its_place_in_the_url(installer: Installer, tmp_path: Path) -> None:
    make_release(tmp_path / "zk0d-0.2.0", "0.2.0")
    make_release(tmp_path / "zk0d-0.3.0", "0.3.0")
    with served(tmp_path) as (url, _):
        source = ["--from", f"{url}/zk0d-{{version}}", "--unsigned"]
        assert installer(*source).returncode == 45
        for version in ("0.2.0", "0.3.0"):
            assert installer(*source, "--version", version).returncode == 0
            assert installer.version() == version
        older = installer(*source, "--version", "0.2.0")
        assert older.returncode == 81
        assert "0.2.0 is older than 0.3.0" in older.stderr
        assert installer.version() == "0.3.0"
        assert installer("--rollback").returncode == 0
        assert installer.version() == "0.2.0"


def test_a_killed_installers_files_are_not_fetched_again(
    installer: Installer, mirror: tuple[str, type[Mirror]], release: Path, key: Path
) -> None:
    url, handler = mirror
    stage = installer.home / ".cache/zk0d-install" / sha256(url.encode()).hexdigest()[:12]
    stage.mkdir(parents=True)
    whole = next(release.glob("*.whl"))
    (stage / f"{whole.name}.part").write_bytes(whole.read_bytes()[:1000])
    done = installer("--from", url, "--key", f"{key}.pub")
    assert done.returncode == 0, done.stderr
    asked = [first for path, first in handler.requests if path.endswith(".whl")]
    assert asked == [1000]
    assert installer.version() == "0.1.0"


def test_a_part_of_another_file_is_fetched_again(
    installer: Installer, mirror: tuple[str, type[Mirror]], key: Path
) -> None:
    url, handler = mirror
    stage = installer.home / ".cache/zk0d-install" / sha256(url.encode()).hexdigest()[:12]
    stage.mkdir(parents=True)
    (stage / "constraints.txt.part").write_text("another==1")
    done = installer("--from", url, "--key", f"{key}.pub")
    assert done.returncode == 0, done.stderr
    asked = [first for path, first in handler.requests if path.endswith("constraints.txt")]
    assert 0 in asked


def _change(folder: Path, name: str) -> None:
    path = next(folder.glob(name))
    path.write_bytes(path.read_bytes() + b" ")


def _sign_with_another(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    sign(folder, make_key(other))


def _leave_out(folder: Path, key: Path, name: str) -> None:
    sums = folder / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    sums.write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))
    sign(folder, key)


@pytest.mark.slow
@pytest.mark.parametrize("served_over", ["folder", "http"])
@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (lambda f, k: _change(f, "*.whl"), 54, "is not what SHA256SUMS says"),
        (lambda f, k: _change(f, "constraints.txt"), 54, "is not what SHA256SUMS says"),
        (lambda f, k: _change(f, "zk0d-release"), 54, "is not what SHA256SUMS says"),
        (lambda f, k: _change(f, "SHA256SUMS"), 51, "its signature is not by the version's key"),
        (lambda f, k: (f / "SHA256SUMS.sig").write_text("x"), 51, "its signature is not by"),
        (lambda f, k: _sign_with_another(f), 51, "its signature is not by"),
        (lambda f, k: (f / "SHA256SUMS.sig").unlink(), 49, "is missing; a version is signed"),
        (lambda f, k: (f / "SHA256SUMS").unlink(), (47, 56), "SHA256SUMS: "),
        (lambda f, k: _leave_out(f, k, "constraints.txt"), 57, "no line for constraints.txt"),
        (lambda f, k: _leave_out(f, k, "zk0d-0.1.0-py3-none-any.whl"), 52, "names no wheel"),
    ],
)
def test_a_wrong_release_is_not_installed(
    installer: Installer,
    release: Path,
    key: Path,
    served_over: str,
    spoil: Callable[[Path, Path], object],
    code: int | tuple[int, int],
    said: str,
) -> None:
    spoil(release, key)
    installer.fake("sleep", "exit 0")  # between two tries
    with served(release) as (url, _):
        source = url if served_over == "http" else str(release)
        done = installer("--from", source, "--key", f"{key}.pub")
    codes = code if isinstance(code, tuple) else (code,)
    assert done.returncode in codes, done.stderr
    assert said in done.stderr
    assert not installer.prefix.exists()
    assert not (installer.home / ".local/bin").exists()


def test_a_signature_needs_a_known_key_or_unsigned(installer: Installer, tmp_path: Path) -> None:
    make_release(tmp_path / "plain", "0.1.0")
    with served(tmp_path / "plain") as (url, _):
        assert installer("--from", url).returncode == 48
        assert not installer.prefix.exists()
        done = installer("--from", url, ZK0D_UNSIGNED="1")
    assert done.returncode == 0
    assert "the version is not signed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--from", "http://example.org/zk0d"], 41),
        (["--from", "/nothing/zk0d-1-py3-none-any.whl"], 42),
        (["--from", "/nothing"], 43),
        (["--from", "/usr"], 44),
        (["--role"], 20),
        (["--frm", "x"], 21),
        (["--role", "king"], 22),
        (["--torch", "rocm"], 23),
        (["--version", "newest"], 24),
        (["--role", "server", "--invite", "x"], 25),
        (["--purge"], 26),
        (["--role", "server"], 29),
        (["--key", "/nothing"], 30),
        (["--invite", "-"], 31),
    ],
)
def test_wrong_usage(installer: Installer, arguments: list[str], code: int) -> None:
    done = installer(*arguments)
    assert done.returncode == code, done.stderr
    assert f"(code {code})" in done.stderr
    assert "bug" not in done.stderr
    assert not installer.prefix.exists()


def test_without_root_the_installer_asks_for_user_mode(installer: Installer, release: Path) -> None:
    assert installer("--from", release, user=False).returncode == 27
    installer.fake("id", 'if [ "$1" = -u ]; then echo 0; else echo root; fi')
    assert installer("--from", release).returncode == 28


def test_another_version_than_the_requested_one_is_refused(
    installer: Installer, release: Path
) -> None:
    done = installer("--from", release, "--version", "0.9.0")
    assert done.returncode == 53
    assert "is version 0.1.0, not 0.9.0" in done.stderr


# --- what is done ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("installed", [False, True])
def test_a_dry_run_changes_nothing(
    installer: Installer, release: Path, tmp_path: Path, installed: bool
) -> None:
    newer = make_release(tmp_path / "zk0d-0.2.0", "0.2.0")
    if installed:
        assert installer("--from", release).returncode == 0
        assert installer("--from", newer).returncode == 0
    before = tree(tmp_path)
    with served(tmp_path) as (url, handler):
        for arguments in (
            ("--from", release, "--role", "client", "--invite", "secret", "--dataset", "/data"),
            ("--from", f"{url}/zk0d-0.1.0", "--unsigned"),
            ("--from", REPOSITORY, "--role", "demo"),
            ("--from", newer),
            ("--uninstall", "--purge"),
            *([("--rollback",)] if installed else []),
        ):
            done = installer(*arguments, "--dry-run")
            assert done.returncode == 0, done.stderr
            assert "would run: " in done.stderr
            assert "secret" not in done.stderr
        assert handler.requests == []
    assert tree(tmp_path) == before


def test_a_contributor_is_set_up(installer: Installer, tmp_path: Path, key: Path) -> None:
    release = make_release(tmp_path / "release", "0.1.0", program=BOT)
    (tmp_path / "arm").mkdir()
    join = ["--invite", "zk0d-invite-1:abc", "--name", "left", "--contact", "ann@example.org"]
    done = installer("--from", release, *join, "--dataset", tmp_path / "arm")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "a request"
    assert (installer.home / "invite").read_text() == "zk0d-invite-1:abc\n"
    calls = (installer.home / "calls").read_text()
    assert f"client join - --folder {installer.home}/.config/zk0d --dataset {tmp_path}/arm" in calls
    assert "--name left --contact ann@example.org" in calls
    assert "send the lines above to the coordinator's operator" in done.stderr
    assert "zk0bot client start, which runs in the foreground" in done.stderr
    for text in (calls, done.stderr, installer.log()):
        assert "zk0d-invite-1" not in text
    again = installer("--from", release, *join)
    assert again.returncode == 0
    assert "settings exist and are kept" in again.stderr
    assert (installer.home / "calls").read_text().count("client join") == 1


def test_steps_without_an_option_are_left_to_do(installer: Installer, tmp_path: Path) -> None:
    release = make_release(tmp_path / "release", "0.1.0", program=BOT)
    done = installer("--from", release, "--role", "client")
    assert done.returncode == 0
    assert "Next: zk0bot client join INVITE" in done.stderr


@pytest.mark.slow
def test_uninstall_leaves_the_home_as_it_was(
    installer: Installer, release: Path, tmp_path: Path
) -> None:
    (installer.home / "thesis.txt").write_text("text")
    before = tree(installer.home)
    assert installer("--from", release).returncode == 0
    settings = installer.home / ".config/zk0d"
    settings.mkdir(parents=True)
    (settings / "node.key").write_text("key")
    assert installer("--uninstall").returncode == 0
    assert (settings / "node.key").exists()
    refused = installer("--uninstall", "--purge")
    assert refused.returncode == 91
    assert (settings / "node.key").exists()
    assert installer("--from", release).returncode == 0
    assert installer("--uninstall", "--purge", "--yes").returncode == 0
    assert not settings.exists()
    settings.parent.rmdir()
    assert tree(installer.home) == before
    again = installer("--uninstall")
    assert (again.returncode, "nothing to do" in again.stderr) == (0, True)


def test_nothing_to_go_back_to(installer: Installer, release: Path) -> None:
    assert installer("--rollback").returncode == 88
    assert installer("--from", release).returncode == 0
    done = installer("--rollback")
    assert done.returncode == 89
    assert "there is no version before this one" in done.stderr


@pytest.mark.slow
def test_a_version_that_does_not_run_leaves_the_old_one(
    installer: Installer, release: Path, tmp_path: Path
) -> None:
    assert installer("--from", release).returncode == 0
    broken = make_release(tmp_path / "broken", "0.2.0", program="raise SystemExit(1)")
    done = installer("--from", broken)
    assert done.returncode == 80
    assert "zk0bot does not run" in done.stderr
    assert installer.version() == "0.1.0"
    assert "zk0bot does not run" in installer.log(), "where no terminal shows it, it is kept"


def test_a_password_in_an_address_is_not_printed(installer: Installer) -> None:
    done = installer("--from", "https://ann:secret@127.0.0.1:9/zk0d", "--unsigned")
    assert done.returncode == 56
    assert "127.0.0.1:9/zk0d" in done.stderr
    assert "secret" not in installer.log()


# --- this machine ---------------------------------------------------------------------------------


#: What nvidia-smi says, at its end with 18, where the driver was upgraded and nobody rebooted.
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {}"


@pytest.mark.parametrize(
    ("smi", "pci", "backend", "said"),
    [
        ("NVIDIA H200, 580.82.07", "", "pypi", "GPU: NVIDIA H200, driver 580.82.07"),
        ("NVIDIA RTX A4000, 570.86.15", "", "cu128", "driver 570"),
        ("Tesla T4, 535.183.01", "", "cu126", "driver 535"),
        ("Tesla K80, 470.256.02", "", "cpu", "too old for PyTorch"),
        (MISMATCH.format("580.95"), "", "pypi", "GPU: NVIDIA, to be used after a reboot"),
        (MISMATCH.format("570.86"), "", "cu128", "still runs the old one: reboot it"),
        (MISMATCH.partition("\n")[0], "", "pypi", "still runs the old one: reboot it"),
        ("", "01:00.0 VGA compatible controller: NVIDIA AD102", "cpu", "no driver that works"),
        ("", "01:00.1 Audio device: NVIDIA AD102", "cpu", "There is no NVIDIA GPU"),
        ("", "", "cpu", "There is no NVIDIA GPU: training works on the processor"),
    ],
)
def test_pytorch_is_the_one_for_the_driver(
    installer: Installer, release: Path, smi: str, pci: str, backend: str, said: str
) -> None:
    """By fakes of nvidia-smi, lspci and the kernel: this machine has no such GPU."""
    failing = "echo 'NVIDIA-SMI has failed because it could not talk to the driver, see' ; exit 9"
    status = 18 if smi.startswith("Failed") else 0
    installer.fake("nvidia-smi", f"echo '{smi}' ; exit {status}" if smi else failing)
    installer.fake("lspci", f'[ "$1 $2" = "-d 10de:" ] && echo "{pci}"')
    fake_kernel(installer, "x86_64")
    done = installer("--from", release, "--dry-run", UV_OFFLINE="")
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert f"--torch {backend}" in done.stderr
    if "driver that works" in said or "too old" in said:
        assert "ansible-playbook" in done.stderr
        assert done.stderr.count('device = "cpu" under [learner]') == 2, "again at the end"
    if "reboot" in said:
        assert done.stderr.count("reboot it. Until then nothing is trained") == 2, (
            "again at the end"
        )
        assert "no NVIDIA GPU" not in done.stderr


def fake_kernel(installer: Installer, machine: str, version: str = "Linux version 6.1") -> None:
    """Fakes: ``uname``, and ``cat`` where it is asked for ``/proc/version``."""
    installer.fake("uname", f'if [ "$1" = -s ]; then echo Linux; else echo {machine}; fi')
    installer.fake(
        "cat",
        f'[ "$*" = /proc/version ] && echo "{version}" && exit\n'
        '[ "$*" = /proc/driver/nvidia/version ] && exit 1\n'
        'exec /bin/cat "$@"',
    )


@pytest.mark.parametrize(
    ("machine", "smi", "backend"),
    [
        ("aarch64", "NVIDIA GH200 480GB, 580.95.05", "cu130"),
        ("arm64", "NVIDIA GH200 480GB, 580.95.05", "cu130"),
        ("aarch64", "NVIDIA GH200 480GB, 570.86.15", "cpu"),
        ("aarch64", "", "cpu"),
    ],
)
def test_on_arm(installer: Installer, release: Path, machine: str, smi: str, backend: str) -> None:
    """A fake: this is no such processor. PyTorch has no CUDA 12 for it on its index."""
    fake_kernel(installer, machine)
    installer.fake("nvidia-smi", f"echo '{smi}'" if smi else "exit 9")
    installer.fake("lspci", "exit 0")
    done = installer("--from", release, "--dry-run", UV_OFFLINE="")
    assert done.returncode == 0, done.stderr
    assert re.search(r"machine: .*, aarch64, ", done.stderr)
    assert f"--torch {backend}" in done.stderr


WSL = "Linux version 5.15.153.1-microsoft-standard-WSL2 (root@builder)"


@pytest.mark.parametrize("systemd", [True, False])
def test_on_wsl(installer: Installer, release: Path, systemd: bool) -> None:
    """A fake of WSL2: its kernel's name, and a GPU whose driver Windows would bring."""
    fake_kernel(installer, "x86_64", WSL)
    installer.fake("systemctl", "exit 0" if systemd else "exit 1")
    installer.fake("nvidia-smi", "exit 9")
    installer.fake("lspci", 'echo "01:00.0 3D controller: NVIDIA AD102"')
    done = installer("--from", release, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert re.search(r"machine: .*, WSL", done.stderr)
    assert "install the driver on Windows, not in WSL" in done.stderr
    assert "ansible-playbook" not in done.stderr
    assert ("[boot] systemd=true into /etc/wsl.conf" in done.stderr) is not systemd


@pytest.mark.parametrize("inside", [True, False])
def test_in_a_container(installer: Installer, release: Path, inside: bool) -> None:
    """By a fake of systemd-detect-virt, and by the real signs where this is one itself."""
    here = Path("/run/.containerenv").exists() or Path("/.dockerenv").exists()
    fake_kernel(installer, "x86_64")
    installer.fake("systemd-detect-virt", "exit 0" if inside else "exit 1")
    done = installer("--from", release, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert ("a container" in done.stderr) is (inside or here)
    assert "WSL" not in done.stderr


@pytest.mark.parametrize(
    ("fake", "text", "code"),
    [
        ("uname", 'if [ "$1" = -s ]; then echo Darwin; else echo arm64; fi', 11),
        ("uname", 'if [ "$1" = -s ]; then echo Linux; else echo riscv64; fi', 12),
        ("df", "echo Avail; echo 100", 15),
    ],
)
def test_a_machine_that_cannot(
    installer: Installer, release: Path, fake: str, text: str, code: int
) -> None:
    installer.fake(fake, text)
    done = installer("--from", release)
    assert done.returncode == code
    assert not (installer.prefix / "0.1.0").exists()


@pytest.mark.parametrize("full", ["the prefix", "where downloads wait"])
def test_no_space_is_seen_before_anything_is_fetched(
    installer: Installer, tmp_path: Path, key: Path, full: str
) -> None:
    release = make_release(tmp_path / "big", "0.1.0")
    (release / "wheelhouse").mkdir()
    (release / "wheelhouse/torch-1-py3-none-any.whl").write_text("gigabytes")
    write_sums(release, key)
    place = "*share*" if full == "the prefix" else "*cache*"
    installer.prefix.mkdir(parents=True)
    installer.fake(
        "df",
        "echo Avail; for last; do :; done;"
        f' case "$last" in {place}) echo 3400 ;; *) echo 9000 ;; esac',
    )
    with served(tmp_path) as (url, handler):
        done = installer("--from", f"{url}/big", "--key", f"{key}.pub")
    assert done.returncode == 15, done.stderr
    assert (
        f"3400 MiB are free and {7000 if full == 'the prefix' else 3500} are needed" in done.stderr
    )
    assert {Path(path).name for path, _ in handler.requests} == {"SHA256SUMS", "SHA256SUMS.sig"}


def test_neither_curl_nor_wget(
    installer: Installer, without: Callable[[str], str], tmp_path: Path
) -> None:
    installer.path = without("curl")
    (Path(installer.path) / "wget").unlink()
    assert installer("--from", "https://example.org", "--unsigned").returncode == 46


def test_one_at_a_time(installer: Installer, release: Path) -> None:
    stage = installer.home / ".cache/zk0d-install"
    stage.mkdir(parents=True)
    lock = ["flock", stage / ".lock", "sh", "-c", "echo held; exec sleep 60"]
    with processes.started(lock, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert installer("--from", release).returncode == 33


def test_at_a_terminal_a_person_is_asked(installer: Installer, release: Path) -> None:
    for answer, code in (("n", 34), ("", 0)):
        done = processes.run(
            [sys.executable, Path(__file__).with_name("terminal.py"), answer]
            + ["bash", INSTALLER, "--user", "--from", release],
            env=installer.environment,
            text=True,
            timeout=120,
        )
        assert "Go on? [Y/n]" in done.stdout
        assert done.returncode == code, done.stdout
        assert installer.prefix.exists() == (code == 0)
