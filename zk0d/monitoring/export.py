"""What an operator with a Prometheus and a Grafana of their own needs, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from zk0d.config.names import check_apart
from zk0d.errors import TryAgainError
from zk0d.machine.roles import Role, scraped
from zk0d.monitoring.dashboards import PAGES, built, text_of

RULES = Path(__file__).parent / "rules"
RUNBOOKS = "docs/runbooks"
_HEADER = "# Written by zk0bot dashboards export; changes are lost.\n"


def files(runbooks: str = RUNBOOKS, grafana: str = "") -> dict[str, str]:
    """Every file by its name: dashboards, rules, and an example of a scrape.

    Parameters
    ----------
    runbooks
        Folder or address under which the alerts' pages lie.
    grafana
        Grafana's address, before the links from alerts to panels.
    """
    made = {f"dashboards/{page.uid}.json": text_of(page) for page in PAGES}
    for path in sorted(RULES.glob("*.yml")):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        made[f"rules/zk0d-{path.name}"] = _dump(_linked(content, runbooks, grafana))
    made["prometheus.yml"] = _HEADER + _SCRAPE.format(
        **{
            role: ", ".join(f'"127.0.0.1:{each.metrics}"' for each in scraped(role))
            for role in Role
        }
    )
    return made


def export(folder: Path, runbooks: str = RUNBOOKS, grafana: str = "") -> list[Path]:
    """Write them; the paths.

    Raises
    ------
    UsageError
        If the folder lies in recordings.
    TryAgainError
        If it cannot be written.
    """
    check_apart(folder, "FOLDER")
    paths = []
    try:
        for name, text in files(runbooks, grafana).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            paths.append(path)
    except OSError as error:
        raise TryAgainError(
            f"{folder}: cannot be written ({error.strerror}); name another folder."
        ) from None
    return paths


def panel_link(name: str) -> str:
    """The path in Grafana of a panel that an alert names as ``DASHBOARD/TITLE``.

    Raises
    ------
    KeyError
        If there is none of that name.
    """
    page_name, _, title = name.partition("/")
    for page in PAGES:
        if page.name == page_name:
            for panel in built(page)["panels"]:
                if panel["title"] == title and panel["type"] != "row":
                    return f"/d/{page.uid}?viewPanel={panel['id']}"
    raise KeyError(name)


def _linked(content: dict[str, Any], runbooks: str, grafana: str) -> dict[str, Any]:
    for group in content["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                notes = rule["annotations"]
                notes["runbook_url"] = f"{runbooks.rstrip('/')}/{rule['alert']}.md"
                notes["dashboard_url"] = grafana.rstrip("/") + panel_link(notes["panel"])
    return content


def _dump(content: dict[str, Any]) -> str:
    return _HEADER + str(yaml.safe_dump(content, sort_keys=False, width=100, allow_unicode=True))


_SCRAPE = """\
# An example of Prometheus' settings. Every service listens on 127.0.0.1 of its own machine
# ([metrics] in server.toml and client.toml), so this is for a Prometheus on the same machine, or
# one that reaches it through a tunnel.
global:
  scrape_interval: 15s
  evaluation_interval: 15s
rule_files:
  - rules/*.yml
alerting:
  alertmanagers:
    - static_configs:
        - targets: ["127.0.0.1:9093"]
scrape_configs:
  # The coordinator. Its metrics name the nodes themselves, so it gets no node label.
  - job_name: zk0d-server
    static_configs:
      - targets: [{server}]
  # A contributor: one block for each, with the name that the coordinator knows it by. One of
  # several on a machine has its ports in client.toml (metrics-port of supernode and superexec).
  - job_name: zk0d-client
    static_configs:
      - targets: [{client}]
        labels: {{node: NAME}}
"""
