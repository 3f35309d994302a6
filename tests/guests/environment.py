"""This interpreter's packages and the repository's zk0d, as /opt/zk0d/current of a guest.

Nothing is copied: the guest sees the host's folders read-only, at other paths, because those on the
host may be closed to other users. An environment's programs name its path, so they are made anew.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HOME = Path("/opt/zk0d")
CURRENT = HOME / "current"
PROGRAM = """\
#!{python}
import sys
from {module} import {name}
if __name__ == "__main__":
    sys.exit({attribute}())
"""


def make_environment(folder: Path) -> dict[Path, str]:
    """Write the environment's own few files to ``folder``; what to mount, and where."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "python3", version):
        (programs / name).symlink_to(HOME / "python/bin" / version)
    (folder / "pyvenv.cfg").write_text(
        f"home = {HOME}/python/bin\ninclude-system-site-packages = false\n"
        f"version = {'.'.join(map(str, sys.version_info[:3]))}\n",
        encoding="utf-8",
    )
    for entry in entry_points(group="console_scripts"):
        program = programs / entry.name
        text = PROGRAM.format(
            python=CURRENT / "bin/python",
            module=entry.module,
            name=entry.attr.partition(".")[0],
            attribute=entry.attr,
        )
        program.write_text(text, encoding="utf-8")
        program.chmod(0o755)
    packages = folder / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    # addsitedir, because the packages have .pth files of their own
    (packages / "guest.pth").write_text(
        f"{HOME}/source\nimport site; site.addsitedir('{HOME}/packages')\n", encoding="utf-8"
    )
    folder.chmod(0o755)
    return {
        folder: str(CURRENT),
        Path(sys.base_prefix): f"{HOME}/python",
        Path(sysconfig.get_path("purelib")): f"{HOME}/packages",
        REPOSITORY / "zk0d": f"{HOME}/source/zk0d",
    }
