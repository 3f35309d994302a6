"""Ports on loopback."""

from __future__ import annotations

import socket

from zk0d.errors import UnavailableError


def require_free_port(port: int, key: str) -> None:
    """Raise :class:`UnavailableError` if something listens on loopback's ``port``."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UnavailableError(
                f"{key}: 127.0.0.1:{port} cannot be opened ({error.strerror}); end what listens"
                " there or set another port."
            ) from None
