"""When certificates end."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

#: A certificate is looked at again after so long.
LOOK_SECONDS = 300.0


class ExpiryCollector:
    """Seconds since 1970 at which each certificate ends; one that cannot be read is left out.

    Parameters
    ----------
    clock
        Monotonic seconds; replaced in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readers: dict[str, Callable[[], float]] = {}
        self._seen: dict[str, tuple[float, float]] = {}  #: when it was looked at, when it ends

    def watch(self, certificate: str, read: Callable[[], float]) -> None:
        """Show a certificate; ``read`` gives its end, or raises ``OSError`` or ``ValueError``."""
        self._readers[certificate] = read

    def describe(self) -> list[Metric]:
        """The family without values."""
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        """What was read, at most :data:`LOOK_SECONDS` ago."""
        family = self._family()
        for certificate, read in self._readers.items():
            looked, end = self._seen.get(certificate, (float("-inf"), 0.0))
            if self._clock() - looked > LOOK_SECONDS:
                try:
                    end = read()
                except (OSError, ValueError):
                    continue
                self._seen[certificate] = (self._clock(), end)
            family.add_metric((certificate,), end)
        yield family

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "zk0d_certificate_expiry_timestamp_seconds",
            "When a certificate ends.",
            labels=("certificate",),
        )


def expiry_of_ca(path: Path) -> float:
    """When the first of a file's authorities ends; by the standard library, which is small."""
    ends = [str(ca["notAfter"]) for ca in ssl.create_default_context(cafile=path).get_ca_certs()]
    return float(min(ssl.cert_time_to_seconds(end) for end in ends))
