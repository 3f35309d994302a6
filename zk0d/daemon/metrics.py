"""Prometheus metrics of one service: one registry, one port, scraped without touching the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import Metric

from zk0d.daemon.clock import uptime
from zk0d.errors import UnavailableError

PREFIX = "zk0d"
# Times of creation beside each counter say nothing that its own restart does not.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Definition:
    """What is known of a metric before it has a value."""

    name: str  #: as Prometheus stores it, a counter's with ``_total``
    kind: str  #: gauge or counter
    text: str
    labels: tuple[str, ...]


class Collector(Protocol):
    """Makes metrics at each scrape."""

    def collect(self) -> Iterable[Metric]:
        """The families with their present values."""


class _Process(ProcessCollector):
    """CPU time, memory and start of this process."""

    def _boot_time(self) -> float:
        # The parent's reads /proc/stat, which our sandbox hides; it would count from 1970.
        return time.time() - uptime()


class Metrics:
    """The registry of a service and the port it is read at.

    Parameters
    ----------
    service
        Its name, in ``zk0d_build_info``.
    host, port
        Where it is served; port 0 serves nothing.
    part
        Put before the names that every service has, where another service shows these metrics
        beside its own: ``learner`` makes ``zk0d_learner_build_info``.
    """

    def __init__(
        self, service: str, host: str = "127.0.0.1", port: int = 0, *, part: str = ""
    ) -> None:
        self.registry = CollectorRegistry()
        self._where = (host, port)
        self._service = service
        self._part = part
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._made: dict[str, Gauge | Counter] = {}
        self._definitions: list[Definition] = []
        self._collectors: list[Any] = []
        name = self.own("build_info")
        build = self.gauge(
            name, "1; its labels give service and version of zk0d.", ("service", "version")
        )
        build.labels(service, version("zk0d")).set(1)
        # Unregistered here, so that its definitions are known as every collector's are.
        self.collect(_Process(namespace=f"{PREFIX}_{part}" if part else "", registry=None))

    def own(self, name: str) -> str:
        """The name of a metric that every service has, for this one."""
        return f"{self._part}_{name}" if self._part else name

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        """A gauge ``zk0d_NAME``; the same one when asked again."""
        if name not in self._made:
            self._made[name] = Gauge(name, text, labels, namespace=PREFIX, registry=self.registry)
            self._definitions.append(Definition(f"{PREFIX}_{name}", "gauge", text, labels))
        made = self._made[name]
        assert isinstance(made, Gauge)
        return made

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        """A counter ``zk0d_NAME_total``; the same one when asked again."""
        if name not in self._made:
            self._made[name] = Counter(name, text, labels, namespace=PREFIX, registry=self.registry)
            self._definitions.append(Definition(f"{PREFIX}_{name}_total", "counter", text, labels))
        made = self._made[name]
        assert isinstance(made, Counter)
        return made

    def collect(self, collector: Collector) -> None:
        """Also serve what ``collector.collect()`` makes at each scrape.

        Its ``describe()``, if it has one, yields the families without values.
        """
        self.registry.register(collector)
        self._collectors.append(collector)

    def definitions(self) -> Iterator[Definition]:
        """Every metric that this service can show."""
        yield from self._definitions
        for collector in self._collectors:
            yield from definitions_of(collector)

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
                f"metrics-port of {self._service}: {host}:{port} cannot be opened"
                f" ({error.strerror}); end what listens there or set another port."
            ) from None

    def close(self) -> None:
        """Close the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def definitions_of(collector: Collector) -> Iterator[Definition]:
    """Every metric that a collector can show."""
    for family in getattr(collector, "describe", collector.collect)():
        suffix = "_total" if family.type == "counter" else ""
        labels = tuple(getattr(family, "_labelnames", ()))
        yield Definition(f"{family.name}{suffix}", family.type, family.documentation, labels)
