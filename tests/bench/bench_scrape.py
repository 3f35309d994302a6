"""What a scrape costs: milliseconds for each service, and of a coordinator with a thousand nodes.

The goal is 20 ms. Ours beside the floor: a page with nothing but Prometheus' own process figures.
Services are timed from outside, over HTTP; cohorts by the processor time of making the page.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from prometheus_client import CollectorRegistry, generate_latest

from tests.bench.table import show
from tests.services.lab import lab
from zk0d.config.ports import METRICS_PORTS
from zk0d.daemon.child import wait_until
from zk0d.daemon.metrics import Metrics
from zk0d.federation.nodes import Node
from zk0d.learner.metrics import LearnerMetrics
from zk0d.record.events import NodeRound
from zk0d.record.state import Member, NewestRun, RunState
from zk0d.services.figures import NodeCollector, RunCollector

SCRAPES = 50
REPORTS = 2000
PHASES = ("load", "evaluate", "train", "encode", "transfer")


def cohort(count: int) -> CollectorRegistry:
    """The coordinator's figures of a run with so many nodes."""
    facts = RunState(run="7")
    for number in range(count):
        name = f"node-{number:04}"
        facts.names[f"{number:064x}"] = name
        facts.members[name] = Member(
            version="1.0",
            last=NodeRound(
                node=name,
                loss=0.5,
                policy_loss=0.5,
                grad_norm=1.0,
                update_norm=1.0,
                answer_seconds=9.0,
                seconds=dict.fromkeys(PHASES, 1.0),
            ),
        )
    run = NewestRun(Path("/nonexistent"))
    run.state = facts
    nodes = NodeCollector()
    nodes.update([Node(i, key, "", True, 1.0) for i, key in enumerate(facts.names)], facts)
    registry = CollectorRegistry()
    registry.register(RunCollector(run))
    registry.register(nodes)
    return registry


def main() -> None:
    rows = [*_services(), *_cohorts()]
    show("a scrape", ("service", "median", "worst", "series", "page"), rows)
    show("a step's report, on the training thread", ("", "median", "of a 10 ms step"), _reports())


def _services() -> list[tuple[str, ...]]:
    host = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
    with (
        tempfile.TemporaryDirectory(prefix="zk0d-") as root,
        lab(Path(root), Path("/nothing")) as made,
    ):
        server, node = made.server_toml, made.add_node("left")
        for path, last in ((server, 1), (node, 2)):
            text = path.read_text().replace("enabled = false", f'host = "{host}.{last}"')
            path.write_text(text)
        made.start_gateway()
        starts = {
            "superlink": (1, ("superlink", "--config", str(server))),
            "server-superexec": (1, ("superexec", "server", "--config", str(server))),
            "supernode": (2, ("supernode", "--config", str(node))),
            "client-superexec": (2, ("superexec", "client", "--config", str(node))),
        }
        for name, (_, arguments) in starts.items():
            running = made.start(name, *arguments)
            wait_until(lambda told=running.told: told.ready, f"{name}'s READY", 60)  # type: ignore[misc]
        made.wait_for_status("supernode", "online", 90)
        floor = Metrics("floor", f"{host}.3", 9470)
        floor.serve()
        addresses = {
            name: f"{host}.{last}:{METRICS_PORTS[name]}" for name, (last, _) in starts.items()
        }
        rows = []
        with httpx.Client() as client:
            for name, address in {"(floor)": f"{host}.3:9470", **addresses}.items():

                def scrape(at: str = address) -> str:
                    return client.get(f"http://{at}/metrics").text

                rows.append(_row(name, scrape))
        floor.close()
        return rows


def _cohorts() -> list[tuple[str, ...]]:
    rows = []
    for count in (3, 100, 1000):
        registry = cohort(count)
        rows.append(
            _row(
                f"page of {count} nodes",
                lambda r=registry: generate_latest(r).decode(),  # type: ignore[misc]
                time.thread_time,
            )
        )
    return rows


def _reports() -> list[tuple[str, ...]]:
    """What training waits for: alone, and while another thread scrapes without a pause."""
    figures = LearnerMetrics(Metrics("learner", part="learner"), ("train",))
    figures.began()
    over = threading.Event()

    def scrape() -> None:
        while not over.is_set():
            figures.page()

    rows: list[tuple[str, ...]] = []
    for title, scraped in (("alone", False), ("while it is scraped without a pause", True)):
        thread = threading.Thread(target=scrape, daemon=True)
        if scraped:
            thread.start()
        seconds = []
        for step in range(REPORTS):
            began = time.perf_counter()
            figures.progress({"event": "progress", "step": step, "seconds": float(step)})
            seconds.append(time.perf_counter() - began)
            time.sleep(1e-4)  # a step's work outside Python, in which others may run
        median = statistics.median(seconds)
        rows.append((title, f"{median * 1e6:.0f} us", f"{median / 10e-3:.2%}"))
        if scraped:
            over.set()
            thread.join()
    return rows


def _row(
    name: str, scrape: Callable[[], str], clock: Callable[[], float] = time.perf_counter
) -> tuple[str, ...]:
    seconds = []
    for _ in range(SCRAPES):
        began = clock()
        text = scrape()
        seconds.append(clock() - began)
    series = sum(not line.startswith("#") for line in text.splitlines())
    return (
        name,
        f"{statistics.median(seconds) * 1e3:.1f} ms",
        f"{max(seconds) * 1e3:.1f} ms",
        str(series),
        f"{len(text) / 1e3:.0f} kB",
    )
