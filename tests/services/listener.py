"""A notify socket as systemd has one, for services that run outside of it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path


class NotifyListener:
    """Collects what a service sends to its ``NOTIFY_SOCKET``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sent: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.1)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def status(self) -> str:
        """The last sentence."""
        said = [text for text in self.sent if text.startswith("STATUS=")]
        return said[-1].removeprefix("STATUS=") if said else ""

    @property
    def ready(self) -> bool:
        return "READY=1" in self.sent

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                self.sent.append(self._socket.recv(65536).decode())
            except TimeoutError:
                continue
