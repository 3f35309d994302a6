"""A stand-in for zk0d in the releases of tests/guests/test_installer.py: real units, no learning.

As ``zk0d`` it is a service that says READY, or a oneshot that has nothing to do; as ``zk0bot`` it
knows the verbs that the installer and zk0d-release call. ``VERSION`` and ``HEALTHY`` are written
above this text.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

SYSTEM = pathlib.Path("/etc/zk0d")
VERSION: str
HEALTHY: bool


def serve() -> None:
    if not HEALTHY:  # noqa: F821
        sys.exit(78)
    address = os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.connect(address)
        told.send(f"READY=1\nSTATUS=stand-in {VERSION}".encode())  # noqa: F821
        while True:
            told.send(b"WATCHDOG=1")
            time.sleep(1)


def main() -> None:
    words = sys.argv[1:]
    folder = pathlib.Path(words[words.index("--folder") + 1]) if "--folder" in words else SYSTEM
    if sys.argv[0].endswith("/zk0d"):
        if words[:1] != ["gpu-power"]:  # which ends at once
            serve()
        return
    elif words[:2] == ["client", "join"]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "client.toml").write_text('name = "stand-in"\ndataset-uri = "local:/srv"\n')
        print(f"a request, from the invite {sys.stdin.read().strip()}")
    elif words[:2] == ["client", "start"] and folder == SYSTEM:
        subprocess.run(["systemctl", "enable", "--now", "zk0d-client.target"], check=True)
    elif words[:2] == ["client", "start"]:
        serve()
    print(VERSION)  # noqa: F821
