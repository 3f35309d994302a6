"""The figures of this moment: from the services of this machine, or from a Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families

from zk0d.config.machine import ClientSettings, ServerSettings
from zk0d.errors import ConfigError, UnavailableError
from zk0d.machine.roles import Role

SECONDS = 5.0  #: how long an answer may take
#: All that the view shows; the rules' alerts are a metric of Prometheus' own.
_EVERYTHING = '{__name__=~"zk0d_.+|ALERTS|up|process_.+"}'


@dataclass(frozen=True)
class Sample:
    """One series' value."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass
class Samples:
    """Everything that was read at one moment."""

    by_name: dict[str, list[Sample]] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)  #: services that did not answer

    @classmethod
    def of(cls, samples: Iterable[Sample], silent: Iterable[str] = ()) -> Samples:
        """Sort them by name."""
        made = cls(silent=list(silent))
        for sample in samples:
            made.by_name.setdefault(sample.name, []).append(sample)
        return made

    def all(self, name: str, **labels: str) -> Iterator[Sample]:
        """The series of a metric that have these labels."""
        for sample in self.by_name.get(name, ()):
            if all(sample.labels.get(key) == value for key, value in labels.items()):
                yield sample

    def value(self, name: str, **labels: str) -> float | None:
        """The highest value of such series; ``None`` if there is none."""
        return max((sample.value for sample in self.all(name, **labels)), default=None)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """Sums by a label's value."""
        found: dict[str, float] = {}
        for sample in self.all(name, **labels):
            key = sample.labels.get(label, "")
            found[key] = found.get(key, 0.0) + sample.value
        return found


class Source(Protocol):
    """Where figures come from."""

    def read(self) -> Samples:
        """The figures now; raises :class:`UnavailableError` if there is nobody to ask."""


class LocalServices:
    """The services of this machine, at the addresses of its settings.

    Parameters
    ----------
    folder
        Where ``server.toml`` and ``client.toml`` lie.

    Raises
    ------
    ConfigError
        If there are no settings, or they open no port.
    """

    def __init__(self, folder: Path) -> None:
        self._addresses: dict[str, str] = {}
        found = False
        for role in Role:
            path = folder / f"{role}.toml"
            if not path.exists():
                continue
            found = True
            kind = ServerSettings if role is Role.SERVER else ClientSettings
            settings = kind.load(path)
            for name, port in settings.metrics_ports.items():
                self._addresses[name] = f"{settings.metrics.host}:{port}"
        if not self._addresses:
            raise ConfigError(
                f"{folder}: metrics.enabled is false, so there is nothing to show; set it to true."
                if found
                else f"{folder}: no server.toml and no client.toml, so this machine runs no zk0d;"
                " ask a Prometheus with --prometheus URL."
            )

    def read(self) -> Samples:
        """Ask each service."""
        samples: list[Sample] = []
        silent = []
        with httpx.Client(timeout=SECONDS) as client:
            for service, address in self._addresses.items():
                try:
                    text = client.get(f"http://{address}/metrics").raise_for_status().text
                except httpx.HTTPError:
                    silent.append(f"{service} at {address}")
                    continue
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        labels = {"instance": service, **sample.labels}
                        samples.append(Sample(sample.name, labels, sample.value))
        if len(silent) == len(self._addresses):
            raise UnavailableError(
                f"no service answers ({', '.join(silent)}); zk0bot status says what is wrong."
            )
        return Samples.of(samples, silent)


class Prometheus:
    """A Prometheus, whose newest values are taken."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def read(self) -> Samples:
        """Ask it for every series of ours."""
        try:
            answer = httpx.get(
                f"{self._url}/api/v1/query", params={"query": _EVERYTHING}, timeout=SECONDS
            )
            result = answer.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(
                f"--prometheus: {self._url} does not answer as a Prometheus does"
                f" ({type(error).__name__}); check the address."
            ) from None
        samples = [
            Sample(series["metric"].pop("__name__"), series["metric"], float(series["value"][1]))
            for series in result
        ]
        silent = [
            f"{sample.labels.get('job', '')} at {sample.labels.get('instance', '')}"
            for sample in samples
            if sample.name == "up"
            and not sample.value
            and sample.labels.get("job", "").startswith("zk0d")
        ]
        return Samples.of(samples, silent)
