"""Release folders whose zk0d is a stand-in: a wheel without dependencies."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "systemd/zk0d-release"


def find_uv() -> Path:
    """The uv that made this environment."""
    found = shutil.which("uv")
    return Path(found) if found else REPOSITORY / ".venv.tools/bin/uv"


def make_release(folder: Path, version: str, *, program: str = "") -> Path:
    """A release's folder whose ``zk0bot`` runs ``program`` (by default it prints its version)."""
    folder.mkdir(parents=True)
    wheel = folder / f"zk0d-{version}-py3-none-any.whl"
    about = f"zk0d-{version}.dist-info"
    files = {
        "zk0d/__init__.py": "",
        "zk0d/program.py": f"def main():\n    {program or f'print({version!r})'}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: zk0d\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\nzk0bot = zk0d.program:main\n",
    }
    record = f"{about}/RECORD"
    rows = [f"{record},,"]
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{name},sha256={digest.decode()},{len(text)}")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, record: "\n".join(rows) + "\n"}.items():
            archive.writestr(name, text)
    (folder / "constraints.txt").write_text("nothing==1.0\n")
    write_sums(folder)
    (folder / "uv").symlink_to(find_uv())
    return folder


def write_sums(folder: Path) -> None:
    """SHA256SUMS of a release's files, as they are now."""
    names = [*sorted(path.name for path in folder.glob("*.whl")), "constraints.txt"]
    sums = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))


def make_key(folder: Path) -> Path:
    """A private ssh key to sign releases with; its public half lies beside it."""
    key = folder / "release.key"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "release", "-f", key]
    subprocess.run(make, check=True)
    return key
