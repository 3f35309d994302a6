"""Stands for ``zk0d``: a service with a child of its own, which says that it is ready and no more.

It must not say so while a file ``never-ready`` lies beside it. ``install`` writes it to a folder,
and lets the service be real that a test is about.
"""

import fnmatch
import os
import pathlib
import socket
import sys
import time


def install(folder: pathlib.Path, real: str = "") -> pathlib.Path:
    """Write it as a program; the path of a Python that lies beside it, as in an environment.

    Parameters
    ----------
    real
        A pattern of the shell: the service with such arguments is the real one.
    """
    folder.mkdir()
    if real:
        program = pathlib.Path(sys.executable).with_name("zk0d")
        (folder / "real").write_text(f"{program}\n{real}")
    program = folder / "zk0d"
    program.write_text(f"#!{sys.executable} -IS\n{pathlib.Path(__file__).read_text()}")
    program.chmod(0o755)
    return folder / "python"


def serve() -> None:
    real = pathlib.Path(__file__).with_name("real")
    if real.exists():
        program, pattern = real.read_text().splitlines()
        if fnmatch.fnmatch(" ".join(sys.argv[1:]), pattern):
            os.execv(program, [program, *sys.argv[1:]])  # noqa: S606
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "600")  # noqa: S606
    if not pathlib.Path(__file__).with_name("never-ready").exists():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
            told.connect(os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
            told.send(b"READY=1")
    time.sleep(600)


if __name__ == "__main__":
    serve()
