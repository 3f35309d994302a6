"""This interpreter's packages and the repository's zk0d, as /opt/zk0d/current of a guest.

Nothing is copied: the guest sees the host's folders read-only, at other paths, because those on the
host may be closed to other users. An environment's programs name its path, so they are made anew.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HOME = Path("/opt/zk0d")
CURRENT = HOME / "current"
#: Outside of what zk0d-release owns, and so removes.
SHARED = Path("/srv/zk0d-packages")
#: addsitedir, because the packages have .pth files of their own
_ADD = "import site; site.addsitedir('{}')\n"
_NO_BYTECODE = shutil.ignore_patterns("__pycache__")
PROGRAM = """\
#!{python}
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({attribute}())
"""


def make_environment(folder: Path) -> dict[Path, str]:
    """Write the environment's own few files to ``folder``; what to mount, and where."""
    packages = _write(folder, CURRENT, HOME)
    (packages / "guest.pth").write_text(
        f"{HOME}/source\n{_ADD.format(HOME / 'packages')}", encoding="utf-8"
    )
    folder.chmod(0o755)
    return {
        folder: str(CURRENT),
        Path(sys.base_prefix): f"{HOME}/python",
        Path(sysconfig.get_path("purelib")): f"{HOME}/packages",
        REPOSITORY / "zk0d": f"{HOME}/source/zk0d",
    }


def shared_mounts() -> dict[Path, str]:
    """The host's interpreter and packages, for the versions of :func:`make_version`."""
    return {
        Path(sys.base_prefix): f"{SHARED}/python",
        Path(sysconfig.get_path("purelib")): f"{SHARED}/packages",
    }


def make_version(folder: Path, version: str) -> None:
    """What zk0d-release installs as /opt/zk0d/VERSION: zk0d itself whole, the rest shared."""
    packages = _write(folder, HOME / version, SHARED)
    shutil.copytree(REPOSITORY / "zk0d", packages / "zk0d", ignore=_NO_BYTECODE)
    about = packages / f"zk0d-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zk0d\nVersion: {version}\n")
    (packages / "guest.pth").write_text(_ADD.format(SHARED / "packages"), encoding="utf-8")
    shutil.copytree(REPOSITORY / "systemd", folder / "share/zk0d/systemd")
    shutil.copy(REPOSITORY / "systemd/zk0d-release", folder / "bin/zk0d-release")
    folder.chmod(0o755)


def _write(folder: Path, home: Path, shared: Path) -> Path:
    """An environment that lies at ``home``, without packages; where they belong."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "python3", version):
        (programs / name).symlink_to(shared / "python/bin" / version)
    (folder / "pyvenv.cfg").write_text(
        f"home = {shared}/python/bin\ninclude-system-site-packages = false\n"
        f"version = {'.'.join(map(str, sys.version_info[:3]))}\n",
        encoding="utf-8",
    )
    for entry in entry_points(group="console_scripts"):
        program = programs / entry.name
        text = PROGRAM.format(
            python=home / "bin/python",
            module=entry.module,
            name=entry.attr.partition(".")[0],
            attribute=entry.attr,
        )
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
    for program in (REPOSITORY / "bin").iterdir():
        shutil.copy(program, programs)
    packages = folder / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    return packages
