"""The coordinator's figures of runs and nodes, made at each scrape."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zk0d.federation.nodes import Node
from zk0d.record.events import NodeRound
from zk0d.record.reasons import Reason
from zk0d.record.state import PHASES, RESULTS, NewestRun, RunState


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

    Parameters
    ----------
    wait_alert
        Seconds that a run may wait before an alert; 0: never one.
    """

    def __init__(self, run: NewestRun, wait_alert: float = 0.0) -> None:
        self._run = run
        self._wait_alert = wait_alert

    def collect(self) -> Iterator[Metric]:
        """Every family, also before the first run."""
        state = self._run.state or RunState()
        yield from _of_the_run(state)
        yield from _of_waiting(state, self._wait_alert)
        yield from _of_evaluation(state)
        yield from _of_nodes(state)


def _of_the_run(state: RunState) -> Iterator[Metric]:
    there = bool(state.run)
    for name, text, value in (
        ("round", "Last committed round.", state.round),
        ("run_rounds", "Planned rounds of the run.", state.wanted),
        ("run_start_timestamp_seconds", "When the run began; 0 if there is none.", state.began),
        (
            "quorum_nodes",
            "Nodes whose updates a round needs.",
            _quorum(state),
        ),
        ("learning_rate", "Learning rate at the round's start.", state.learning_rate),
        ("proximal_mu", "FedProx's mu.", state.proximal_mu),
        (
            "round_deadline_timestamp_seconds",
            "Deadline of the round under way; 0 between rounds.",
            state.deadline,
        ),
        (
            "last_round_committed_timestamp_seconds",
            "When the last round was committed; 0 before the first.",
            state.last_commit,
        ),
    ):
        yield GaugeMetricFamily(f"zk0d_{name}", text, value=value)
    yield _gauge(
        "run_info",
        "1; its labels name the newest run.",
        ("run", "policy", "model"),
        {(state.run, state.settings.get("policy", ""), state.settings.get("model-name", "")): 1}
        if there
        else {},
    )
    yield _gauge(
        "run_state",
        "1 for the state of the newest run, 0 for the others.",
        ("state",),
        {phase: float(there and state.phase == phase) for phase in PHASES},
    )
    yield _counter(
        "rounds",
        "Rounds by result.",
        ("result",),
        {"committed": state.committed, "failed": state.failed},
    )
    yield _gauge(
        "round_phase_seconds",
        "Seconds of the last round by phase.",
        ("phase",),
        state.last.seconds if state.last else {},
    )
    yield _counter(
        "update_bytes",
        "Payload bytes: down to the nodes, up from them.",
        ("direction",),
        {"up": state.bytes_up, "down": state.bytes_down},
    )


def _of_waiting(state: RunState, alert: float) -> Iterator[Metric]:
    waiting = state.waiting
    yield _gauge(
        "run_waiting_since_timestamp_seconds",
        "Since when the run waits; 0 if it does not.",
        ("reason",),
        {waiting.reason: waiting.since} if waiting else {"": 0.0},
    )
    yield GaugeMetricFamily(
        "zk0d_run_wait_alert_seconds",
        "How long a run may wait before an alert (superlink.wait-alert-minutes); 0: for ever.",
        value=alert,
    )


def _quorum(state: RunState) -> float:
    return float(state.settings.get("min-fit-clients", 0))


def _of_evaluation(state: RunState) -> Iterator[Metric]:
    best = state.best
    yield _gauge("policy_loss", "Held-out loss.", ("dataset",), state.by_dataset("loss"))
    yield _gauge(
        "policy_loss_baseline",
        "Held-out loss before any training.",
        ("dataset",),
        state.baseline,
    )
    yield _gauge("success_ratio", "Success in closed loop.", ("task",), state.by_dataset("success"))
    yield _counter("evaluations", "Evaluations by result.", ("result",), state.evaluations)
    for name, text, value in (
        ("policy_loss_mean", "Held-out loss, mean of the datasets.", state.policy_loss),
        (
            "policy_loss_best",
            "The lowest such mean of the run.",
            best[1] if best else None,
        ),
        (
            "update_agreement",
            "Norm of the last round's combined update over the mean norm of the nodes' updates: 1"
            " if all pull the same way.",
            state.agreement,
        ),
    ):
        family = GaugeMetricFamily(f"zk0d_{name}", text)
        if value is not None:
            family.add_metric((), value)
        yield family
    yield GaugeMetricFamily(
        "zk0d_evaluations_since_best", "Evaluations after the best one.", value=state.since_best
    )


def _of_nodes(state: RunState) -> Iterator[Metric]:
    members, node = state.members, ("node",)
    last = {name: member.last for name, member in members.items() if member.last}
    for name, field in NodeRound.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "metric" in extra:
            found = {n: getattr(part, name) for n, part in last.items()}
            values = {n: value for n, value in found.items() if value is not None}
            yield _gauge(str(extra["metric"]), field.description or "", node, values)
    yield _gauge(
        "node_phase_seconds",
        "Seconds of the node's last round by phase.",
        ("node", "phase"),
        {
            (name, phase): seconds
            for name, part in last.items()
            for phase, seconds in part.seconds.items()
        },
    )
    yield _counter(
        "node_updates",
        "Requested updates by result.",
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
        "1 while the node sits out after too many refused updates.",
        node,
        {n: float(m.sits_out_until > state.round) for n, m in members.items()},
    )
    yield _gauge(
        "node_info",
        "1; the node's version of zk0d when it joined the run.",
        ("node", "version"),
        {(name, member.version): 1 for name, member in members.items()},
    )
    # The one that an alert counts is there before it happens, so that a rate sees the first.
    refused = {(name, Reason.NOT_FINITE): 0 for name in members}
    yield _counter(
        "updates_rejected",
        "Updates that were refused, by reason.",
        ("node", "reason"),
        {**refused, **state.refused},
    )


class NodeCollector:
    """Who is online, by the SuperLink's word."""

    def __init__(self) -> None:
        self._online: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._shared: dict[str, float] = {}
        self._resting: dict[str, float] = {}

    def update(
        self,
        nodes: Iterable[Node],
        run: RunState | None,
        shared: Container[str] = (),
        resting: Container[str] = (),
    ) -> None:
        """Take a new look; called by the service, so that no scrape asks Flower.

        ``shared`` has the keys that two machines use, ``resting`` those of nodes that rest.
        """
        names = run.names if run else {}
        online: dict[str, float] = {}
        last: dict[str, float] = {}
        doubled: dict[str, float] = {}
        rests: dict[str, float] = {}
        for node in sorted(nodes, key=lambda node: node.key):
            name = names.get(node.key, node.name)
            if name in online:
                name = f"{name}-{node.key[:6]}"
            online[name] = float(node.online)
            last[name] = time.time() if node.online else node.counted_until
            doubled[name] = float(node.key in shared)
            rests[name] = float(node.key in resting)
        self._online, self._last, self._shared, self._resting = online, last, doubled, rests

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
            "node_resting",
            "1 while the node is offline because its owner's limits say so.",
            ("node",),
            self._resting,
        )
        yield _gauge(
            "node_key_shared", "1 while two machines use the node's key.", ("node",), self._shared
        )
