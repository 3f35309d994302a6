"""A real Prometheus for a test, on loopback, that scrapes every second."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.monitoring.tools import program
from tests.processes import wait_until
from zk0d.daemon.child import Child, stop_all
from zk0d.demo.federation import _free_ports
from zk0d.monitoring.export import export


@dataclass
class Prometheus:
    """Its address, and how it is asked."""

    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=20).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an expression now."""
        data = self.ask("query", query=expr)
        found = data["result"]
        return [{"metric": {}, "value": found}] if data["resultType"] == "scalar" else found

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {
            alert["labels"]["alertname"]
            for alert in self.ask("alerts")["alerts"]
            if alert["state"] == "firing"
        }


#: What Grafana puts in the place of its variables; the longer name first.
_VARIABLES = {
    "$__rate_interval": "1m",
    "$__range_s": "600",
    "$__range": "10m",
    "$node": ".*",
}


def filled(expr: str) -> str:
    """A dashboard's query as Prometheus can take it."""
    for variable, value in _VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr


@contextmanager
def prometheus(
    folder: Path, targets: Mapping[str, Sequence[tuple[str, dict[str, str]]]]
) -> Iterator[Prometheus]:
    """Run one over targets by job: an address, and labels of its own."""
    binary = program("prometheus")
    export(folder)
    (port,) = _free_ports(1)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules/*.yml"],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [address], "labels": labels} for address, labels in found
                ],
            }
            for job, found in targets.items()
        ],
    }
    (folder / "scrape.yml").write_text(yaml.safe_dump(config))
    child = Child(
        "prometheus",
        [
            binary,
            f"--config.file={folder}/scrape.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        dict(os.environ),
        folder / "prometheus.log",
        folder,
    )
    made = Prometheus(f"http://127.0.0.1:{port}")

    def ready() -> bool:
        try:
            return httpx.get(f"{made.url}/-/ready", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, "Prometheus", 60, [child])
        yield made
    finally:
        stop_all([child])
