"""``docs/metrics.md`` and the Ansible role's files, from the code.

``python -m zk0d.monitoring.reference`` writes them; tests hold them equal.
"""

from __future__ import annotations

from pathlib import Path

from zk0d.config.machine import CacheSettings, ClientSettings, ServerSettings
from zk0d.config.ports import METRICS_PORTS
from zk0d.daemon.line import LineWatch
from zk0d.daemon.metrics import Definition, Metrics, definitions_of
from zk0d.daemon.supervised import child_counters
from zk0d.flower.commands import Command
from zk0d.learner.metrics import LearnerMetrics
from zk0d.services.learner import LearnerService
from zk0d.services.superexec import LineCollector, SuperexecService
from zk0d.services.superlink import SuperlinkService
from zk0d.services.supernode import SupernodeService

PAGE = Path("docs/metrics.md")
ROLE_FILES = Path("ansible/roles/monitoring/files")
LEARNER = "learner"

_INTRODUCTION = """# Metrics

Each service serves Prometheus on its own port of 127.0.0.1 (`[metrics]` of the settings, and
`metrics-port` of the service's table). By default these are:
{ports}.
The format is Prometheus' text or OpenMetrics, as the client prefers. A learner and an evaluator
have no network: the SuperExec beside them asks over their socket at each scrape (for a second at
most) and shows their figures.

Figures of a run are made from its journal, so a restart loses nothing. Counters of a run begin at 0
with each run. A text from a node becomes a label only after a check, so the number of series is
bounded: fewer than thirty for each node of the run, and a hundred besides.

Seconds per optimizer step are the rate of `zk0d_train_seconds_total` divided by the rate of
`zk0d_train_steps_total` (`zk0d:train_step_seconds:mean5m`). They are not a histogram, because a
learner reports several steps at once.

[Monitoring](monitoring.md) has dashboards and alerts. `make monitoring-files` writes this page from
the code; a test keeps it equal.

| metric | type | of | |
|---|---|---|---|
"""

_END = """
Lines in systemd's journal have fields beside the text: `journalctl ZK0D_RUN=…`,
`ZK0D_ROUND=…`, `ZK0D_NODE=…`.
"""


def definitions() -> dict[str, list[Definition]]:
    """Every service's metrics, without starting one."""
    server, client = ServerSettings(), ClientSettings(name="node")
    superlink = SuperlinkService(server)
    supernode = SupernodeService(client)
    for service in (superlink, supernode):
        child_counters(service.metrics)
    command = Command([], {})
    superexec = SuperexecService(
        "server",
        server.superexec,
        Metrics("server-superexec"),
        command,
        server.superlink.port,
        server.evaluator.socket,
    )

    def never() -> object:
        raise NotImplementedError

    learner = LearnerService(LEARNER, never, CacheSettings())  # type: ignore[arg-type]
    LearnerMetrics(learner.metrics, ())
    services = {
        "superlink": superlink,
        "supernode": supernode,
        "superexecs": superexec,
        LEARNER: learner,
    }
    found = {name: list(service.metrics.definitions()) for name, service in services.items()}
    line = LineCollector(LineWatch.of(client))
    return {**found, "client-superexec": list(definitions_of(line))}


def metric_names() -> set[str]:
    """Every name that a query may use."""
    return {each.name for found in definitions().values() for each in found}


def metrics_page() -> str:
    """The page as Markdown."""
    found: dict[str, tuple[Definition, list[str]]] = {}
    for service, listed in definitions().items():
        for each in listed:
            found.setdefault(each.name, (each, []))[1].append(service)
    rows = []
    for name, (each, of) in sorted(found.items()):
        labels = f"{{{','.join(each.labels)}}}" if each.labels else ""
        who = ", ".join(of)
        rows.append(f"| `{name}{labels}` | {each.kind} | {who} | {each.text} |\n")
    ports = ", ".join(f"{service} {port}" for service, port in METRICS_PORTS.items())
    return _INTRODUCTION.format(ports=ports) + "".join(rows) + _END


def role_files() -> dict[Path, str]:
    """What the Ansible role installs, by path in the repository."""
    from zk0d.monitoring.export import files

    made = files()
    return {
        ROLE_FILES / name: text for name, text in made.items() if name.startswith(("dash", "rules"))
    }


if __name__ == "__main__":
    PAGE.write_text(metrics_page(), encoding="utf-8")
    for path, text in role_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
