"""Prometheus metrics of one service: one registry, one port, scraped without touching the work."""

from __future__ import annotations

import threading
from importlib.metadata import version
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    disable_created_metrics,
    start_http_server,
)

from zk0d.errors import UnavailableError

PREFIX = "zk0d"
# Times of creation beside each counter say nothing that its own restart does not.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The registry of a service and the port it is read at.

    Parameters
    ----------
    service
        Its name, in ``zk0d_build_info``.
    host, port
        Where it is served; port 0 serves nothing.
    """

    def __init__(self, service: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.registry = CollectorRegistry()
        self._where = (host, port)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        build = self.gauge("build_info", "Version of zk0d.", ("service", "version"))
        build.labels(service, version("zk0d")).set(1)
        self._withheld = self.counter(
            "watchdog_pings_withheld", "Looks that saw no progress.", ("reason",)
        )
        self.restarts = self.counter(
            "child_restarts", "Supervised processes started again.", ("child", "reason")
        )

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, text, labels, namespace=PREFIX, registry=self.registry)

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, text, labels, namespace=PREFIX, registry=self.registry)

    def pings_withheld(self, reason: str) -> None:
        """Count a look after which systemd's watchdog was not fed."""
        self._withheld.labels(reason).inc()

    def collect(self, collector: Any) -> None:
        """Also serve what ``collector.collect()`` makes at each scrape."""
        self.registry.register(collector)

    def serve(self) -> None:
        """Open the port.

        Raises
        ------
        UnavailableError
            If it is taken.
        """
        host, port = self._where
        if not port:
            return
        try:
            self._server, self._thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise UnavailableError(
                f"metrics.port: {host}:{port} cannot be opened ({error.strerror}); end what listens"
                " there or set another port."
            ) from None

    def close(self) -> None:
        """Close the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
