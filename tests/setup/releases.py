"""Release folders whose zk0d is a stand-in: a wheel without dependencies."""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import io
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PROGRAM = REPOSITORY / "systemd/zk0d-release"
INSTALLER = REPOSITORY / "get-zk0bot.sh"


def find_uv() -> Path:
    """The uv that made this environment."""
    beside = Path(sys.executable).parent / "uv"
    found = shutil.which("uv") or (beside if beside.exists() else None)
    return Path(found or REPOSITORY / ".venv.tools/bin/uv")


def make_release(
    folder: Path,
    version: str,
    *,
    program: str = "",
    files: Mapping[str, str] | None = None,
    key: Path | None = None,
    url: str = "",
    constraints: str = "nothing==1.0\n",
) -> Path:
    """A release's folder whose ``zk0bot`` runs ``program`` (by default it prints its version).

    Parameters
    ----------
    program
        What the stand-in's ``zk0bot`` and ``zk0d`` run: the body of ``def main():``, or a whole
        module that has one.
    files
        More of the environment's files, such as ``share/zk0d/systemd/zk0d-client.service``.
    key
        A private key that signs it, and that the installer in it then asks for.
    url
        Where the installer in it takes releases from.
    constraints
        What ``constraints.txt`` holds.
    """
    folder.mkdir(parents=True)
    wheel = folder / f"zk0d-{version}-py3-none-any.whl"
    about = f"zk0d-{version}.dist-info"
    body = f"def main():\n    {program or f'print({version!r})'}\n"
    content = {
        "zk0d/__init__.py": "",
        "zk0d/program.py": program if "def main" in program else body,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: zk0d\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\n"
        "zk0bot = zk0d.program:main\nzk0d = zk0d.program:main\n",
        f"zk0d-{version}.data/scripts/zk0d-release": PROGRAM.read_text(),
    }
    for name, text in (files or {}).items():
        content[f"zk0d-{version}.data/data/{name}"] = text
    write_wheel(wheel, content, f"{about}/RECORD")
    (folder / "constraints.txt").write_text(constraints)
    shutil.copy(PROGRAM, folder / "zk0d-release")
    stamp(folder, version, key, url)
    write_sums(folder, key)
    (folder / "uv").symlink_to(find_uv())
    return folder


def write_wheel(wheel: Path, content: Mapping[str, str], record: str) -> None:
    rows = [f"{record},,"]
    for name, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{name},sha256={digest.decode()},{len(text.encode())}")
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**content, record: "\n".join(rows) + "\n"}.items():
            archive.writestr(name, text)


def stamp(folder: Path, version: str, key: Path | None, url: str) -> None:
    """The installer, stamped as ``.ci/make-release`` does it."""
    public = " ".join(key.with_suffix(".key.pub").read_text().split()[:2]) if key else ""
    text = INSTALLER.read_text()
    for name, value in (("VERSION", version), ("URL", url), ("KEY", public)):
        line = f'readonly STAMPED_{name}="'
        assert f'{line}"\n' in text
        text = text.replace(f'{line}"\n', f'{line}{value}"\n')
    (folder / INSTALLER.name).write_text(text)


def write_sums(folder: Path, key: Path | None = None) -> None:
    """SHA256SUMS of a release's files, as they are now, signed if there is a key."""
    names = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and not path.name.startswith("SHA256SUMS")
    )
    sums = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))
    if key:
        sign(folder, key)


def sign(folder: Path, key: Path) -> None:
    (folder / "SHA256SUMS.sig").unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "zk0d-release"]
    subprocess.run([*command, folder / "SHA256SUMS"], check=True, capture_output=True)


def make_key(folder: Path) -> Path:
    """A private ssh key to sign releases with; its public half lies beside it."""
    key = folder / "release.key"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "release", "-f", str(key)]
    subprocess.run(make, check=True)
    return key


class Mirror(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; ranges as real servers do, and it can break off in the middle of a file."""

    requests: list[tuple[str, int]]  #: path and first byte of each
    breaks: dict[str, int]  #: by name: after so many bytes the connection ends, once

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() else path
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0])
        self.requests.append((self.path, first))
        if first and first >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        limit = self.breaks.pop(path.name, None)
        source = io.BytesIO(content[first : None if limit is None else first + limit])
        self.copyfile(source, self.wfile)
        if limit is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path, address: str = "127.0.0.1") -> Iterator[tuple[str, type[Mirror]]]:
    """A folder over HTTP: its URL, and what was asked of it."""
    handler = type("Served", (Mirror,), {"requests": [], "breaks": {}})
    make = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer((address, 0), make) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{server.server_address[1]}", handler
        finally:
            server.shutdown()
            thread.join()
