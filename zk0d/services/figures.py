"""The coordinator's figures of runs and nodes, made at each scrape."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zk0d.federation.facts import RESULTS, NewestRun, RunFacts
from zk0d.federation.nodes import Node

NOT_FINITE = "not_finite"
STATES = ("starting", "running", "finished", "failed", "stopped")


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = GaugeMetricFamily(f"zk0d_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> Metric:
    family = CounterMetricFamily(f"zk0d_{name}", text, labels=labels)
    for key, value in values.items():
        family.add_metric((key,) if isinstance(key, str) else key, value)
    return family


class RunCollector:
    """The newest run's metrics, from its journal: a restart loses nothing.

    Counters begin at 0 with each run. Labels are bounded: nodes of the run, datasets of
    ``server.toml``, and reasons that the code knows.
    """

    def __init__(self, run: NewestRun) -> None:
        self._run = run

    def collect(self) -> Iterator[Metric]:
        """Every family, also before the first run."""
        facts = self._run.facts or RunFacts()
        yield from _of_the_run(facts)
        yield from _of_evaluation(facts)
        yield from _of_nodes(facts)


def _of_the_run(facts: RunFacts) -> Iterator[Metric]:
    there = bool(facts.run)
    for name, text, value in (
        ("round", "Last committed round.", facts.round),
        ("run_rounds", "Rounds that the run is to have.", facts.rounds),
        ("run_start_timestamp_seconds", "When the run began; 0 if there is none.", facts.began),
        ("quorum_nodes", "Nodes whose updates a round needs.", facts.min_nodes),
        ("learning_rate", "Learning rate at the round's start.", facts.learning_rate),
        ("proximal_mu", "FedProx's mu.", facts.proximal_mu),
        (
            "round_deadline_timestamp_seconds",
            "Until when the round under way waits for updates; 0 between rounds.",
            facts.deadline,
        ),
        (
            "last_round_committed_timestamp_seconds",
            "When the last round was committed; 0 before the first.",
            facts.last_commit,
        ),
    ):
        yield GaugeMetricFamily(f"zk0d_{name}", text, value=value)
    yield _gauge(
        "run_info",
        "1; its labels name the newest run.",
        ("run", "policy", "model"),
        {(facts.run, facts.policy, facts.model): 1} if there else {},
    )
    yield _gauge(
        "run_state",
        "1 for the state that the newest run is in, 0 for the others.",
        ("state",),
        {state: float(there and facts.state == state) for state in STATES},
    )
    yield _counter(
        "rounds",
        "Rounds by result.",
        ("result",),
        {"committed": facts.committed, "failed": facts.failed},
    )
    yield _gauge(
        "round_phase_seconds", "Seconds of the last round by phase.", ("phase",), facts.phases
    )
    yield _counter(
        "update_bytes",
        "Payload bytes: down to the nodes, up from them.",
        ("direction",),
        {"up": facts.bytes_up, "down": facts.bytes_down},
    )


def _of_evaluation(facts: RunFacts) -> Iterator[Metric]:
    yield _gauge("policy_loss", "Held-out loss.", ("dataset",), facts.losses)
    yield _gauge(
        "policy_loss_baseline",
        "Held-out loss before any training.",
        ("dataset",),
        facts.baseline,
    )
    yield _gauge("success_ratio", "Success in closed loop.", ("task",), facts.success)
    yield _counter("evaluations", "Evaluations by result.", ("result",), facts.evaluations)
    for name, text, value in (
        ("policy_loss_mean", "Held-out loss, mean of the datasets.", facts.policy_loss),
        ("policy_loss_best", "The lowest such mean of the run.", facts.best_loss),
    ):
        family = GaugeMetricFamily(f"zk0d_{name}", text)
        if value is not None:
            family.add_metric((), value)
        yield family
    yield GaugeMetricFamily(
        "zk0d_evaluations_since_best", "Evaluations after the best one.", value=facts.since_best
    )


def _of_nodes(facts: RunFacts) -> Iterator[Metric]:
    members, node = facts.members, ("node",)
    last = {name: member.last for name, member in members.items() if member.last}
    for name, text, key in (
        ("train_loss", "Training loss of the node's last round.", "policy_loss"),
        ("proximal_loss", "FedProx's part of the loss.", "proximal_loss"),
        ("grad_norm", "Mean gradient norm of the node's last round.", "grad_norm"),
        ("update_norm", "Norm of the node's last update.", "update_norm"),
        (
            "node_answer_seconds",
            "From sending the node's last round to its answer.",
            "answer_seconds",
        ),
    ):
        yield _gauge(name, text, node, {n: v[key] for n, v in last.items() if key in v})
    yield _gauge(
        "node_phase_seconds",
        "Seconds of the node's last round by phase.",
        ("node", "phase"),
        {
            (name, phase): seconds
            for name, figures in last.items()
            for phase, seconds in figures.get("seconds", {}).items()
        },
    )
    yield _counter(
        "node_updates",
        "Updates that were asked for, by what became of them.",
        ("node", "result"),
        {(n, result): m.updates[result] for n, m in members.items() for result in RESULTS},
    )
    yield _counter(
        "node_bytes",
        "Payload bytes of accepted rounds: down to the node, up from it.",
        ("node", "direction"),
        {
            (name, direction): count
            for name, member in members.items()
            for direction, count in (("up", member.bytes_up), ("down", member.bytes_down))
        },
    )
    for name, text, attribute in (
        ("node_steps", "Optimizer steps of accepted rounds.", "steps"),
        ("node_samples", "Frames trained on in accepted rounds.", "samples"),
    ):
        yield _counter(name, text, node, {n: getattr(m, attribute) for n, m in members.items()})
    yield _gauge(
        "node_sits_out",
        "1 while the node's updates are not asked for, after too many that were refused.",
        node,
        {n: float(m.sits_out_until > facts.round) for n, m in members.items()},
    )
    yield _gauge(
        "node_info",
        "1; the version of zk0d that the node said when it joined the run.",
        ("node", "version"),
        {(name, member.version): 1 for name, member in members.items()},
    )
    # The one that an alert counts is there before it happens, so that a rate sees the first.
    refused = {(name, NOT_FINITE): 0 for name in members}
    yield _counter(
        "updates_rejected",
        "Updates that were refused, by reason.",
        ("node", "reason"),
        {**refused, **facts.refused},
    )


class NodeCollector:
    """Who is online, by the SuperLink's word."""

    def __init__(self) -> None:
        self._online: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._shared: dict[str, float] = {}

    def update(
        self, nodes: Iterable[Node], run: RunFacts | None, shared: Container[str] = ()
    ) -> None:
        """Take a new look; called by the service, so that no scrape asks Flower.

        ``shared`` has the keys that two machines use.
        """
        names = run.names if run else {}
        online: dict[str, float] = {}
        last: dict[str, float] = {}
        doubled: dict[str, float] = {}
        for node in sorted(nodes, key=lambda node: node.key):
            name = names.get(node.key, node.name)
            if name in online:
                name = f"{name}-{node.key[:6]}"
            online[name] = float(node.online)
            last[name] = time.time() if node.online else node.counted_until
            doubled[name] = float(node.key in shared)
        self._online, self._last, self._shared = online, last, doubled

    def collect(self) -> Iterator[Metric]:
        """As of the last look."""
        yield _gauge(
            "node_online", "1 if the SuperLink counts the node online.", ("node",), self._online
        )
        yield _gauge(
            "node_last_online_timestamp_seconds",
            "When the SuperLink last counted the node online; 0 never.",
            ("node",),
            self._last,
        )
        yield _gauge(
            "node_key_shared", "1 while two machines use the node's key.", ("node",), self._shared
        )
