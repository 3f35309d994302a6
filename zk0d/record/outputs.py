"""zk0's output files, for people and scripts that read them, written from the journal's lines.

The journal is the truth; these are made from it and can be made again. A value that was not
measured is null. Fields: docs/outputs.md, schemas: docs/schemas/.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from pydantic import BaseModel, ConfigDict

from zk0d.config.run import RunSettings
from zk0d.files import write_file
from zk0d.learning.spec import PolicySpec
from zk0d.record.events import NodeRound, RoundCommitted
from zk0d.record.journal import disk
from zk0d.record.state import RunState

SCHEMA_VERSION = 1


class Output(BaseModel):
    """What every file's content has in common: zk0's snake_case, nothing unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientMetrics(Output):
    """One node's part in one round. Losses are means over its steps."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    round: int
    client_id: str  #: the node's alias
    dataset_name: str | None = None  #: never leaves the node
    loss: float
    policy_loss: float
    fedprox_loss: float
    grad_norm: float
    param_hash: str  #: SHA-256 of the update's manifest
    num_steps: int
    num_samples: int
    dataset_frames: int | None
    param_update_norm: float
    holdout_loss: float | None
    applied_lr: float
    bad_batches: int
    bytes_up: int
    bytes_down: int
    seconds_load: float | None
    seconds_train: float | None
    seconds_encode: float | None
    seconds_evaluate: float | None
    seconds_transfer: float | None


class AggregatedMetrics(Output):
    """The nodes' numbers together: zk0's unweighted means, and means weighted by samples."""

    avg_client_loss: float | None
    std_client_loss: float | None
    avg_client_proximal_loss: float | None
    avg_client_grad_norm: float | None
    num_clients: int
    param_update_norm: float | None
    weighted_client_loss: float | None
    weighted_client_policy_loss: float | None
    weighted_client_proximal_loss: float | None
    weighted_holdout_loss: float | None


class DatasetMetrics(Output):
    """What was measured on one evaluation dataset."""

    policy_loss: float | None
    action_dim: int | None
    total_samples: int
    success: float | None
    rollouts: int
    error: str | None


class DatasetEvaluation(Output):
    """One of the server's evaluation datasets."""

    dataset_name: str
    evaldata_id: int
    loss: float | None
    num_examples: int
    metrics: DatasetMetrics


class RoundEvaluation(Output):
    """``server/round_N_server_eval.json``."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    round: int
    server_composite_eval_loss: float | None
    client_aggregated_training_metrics: AggregatedMetrics
    individual_client_training_metrics: list[ClientMetrics]
    server_per_dataset_eval_results: list[DatasetEvaluation]
    num_server_eval_datasets: int
    seed: int
    applied_lr: float | None
    applied_mu: float | None
    scheduler_reason: list[str]
    client_lr_boosts: dict[str, float]
    rolled_back_to: int | None
    aggregation: str | None
    codec: dict[str, str] | None
    refusals: dict[str, str]
    lost_clients: dict[str, str]
    bytes_up: int
    bytes_down: int
    seconds_send: float | None
    seconds_collect: float | None
    seconds_aggregate: float | None
    seconds_eval: float | None
    seconds_commit: float | None


class RoundMetrics(Output):
    """One entry of ``server/federated_metrics.json``."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    round: int
    num_clients: int
    avg_policy_loss: float | None
    avg_client_loss: float | None
    param_update_norm: float | None
    server_policy_loss: float | None
    applied_lr: float | None
    applied_mu: float | None
    bytes_up: int
    bytes_down: int


class PolicyLoss(Output):
    """One entry of ``server/policy_loss_history.json``, by round."""

    server_policy_loss: float | None
    action_dim: int | None


class OutputStructure(Output):
    """Where what lies, relative to the run's folder."""

    base_dir: str
    journal: str = "journal.jsonl"
    config_file: str = "config.json"
    clients_dir: str = "clients"
    server_dir: str = "server"
    models_dir: str = "rounds"


class RunConfig(Output):
    """``config.json``."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    run: str  #: the same, for zk0d's own readers
    timestamp: str  #: when it began, UTC, ISO 8601
    run_config: dict[str, str | int | float | bool]
    settings: dict[str, str | int | float | bool]  #: the same, for zk0d's own readers
    federation: str | None = None  #: zk0 named a Flower federation here; zk0d has one coordinator
    project_version: str
    output_structure: OutputStructure


def run_config(run: str, settings: RunSettings, began: float, folder: str = ".") -> dict[str, Any]:
    """The content of ``config.json``; ``began`` is seconds since 1970."""
    return RunConfig(
        run_id=run,
        run=run,
        timestamp=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        run_config=settings.to_flat(),
        settings=settings.to_flat(),
        project_version=version("zk0d"),
        output_structure=OutputStructure(base_dir=folder),
    ).model_dump()


class Outputs:
    """Writes a run's output files.

    Raises
    ------
    TryAgainError
        From :meth:`committed`, if the disk is full or the folder cannot be written.
    """

    def __init__(self, folder: Path, run: str, settings: RunSettings) -> None:
        self._folder = folder
        self._run = run
        self._seed = settings.seed
        self._action_dim: int | None = None
        self._slugs: dict[str, str] = {}  #: by node
        self._history: dict[int, RoundMetrics] = {}
        self._losses: dict[int, PolicyLoss] = {}

    def model(self, spec: PolicySpec) -> None:
        """The policy's shape."""
        self._action_dim = spec.action_width

    def replay(self, state: RunState) -> None:
        """Take up a resumed run, read whole, and make its files those of the rounds that count."""
        if state.spec is not None:
            self.model(state.spec)
        self._history, self._losses = {}, {}
        expected: set[Path] = set()
        for _, event in sorted(state.rounds.items()):
            self._remember(event)
            for name, content in self._of_round(event).items():
                path = self._folder / name
                expected.add(path)
                if not _readable(path):
                    self._write(name, content)
        for pattern in ("server/round_*_server_eval.json", "clients/*/round_*.json"):
            for path in self._folder.glob(pattern):
                if path not in expected:
                    path.unlink()  # of a round that was given up
        if state.rounds:
            self._write_histories()

    def committed(self, event: RoundCommitted) -> None:
        """Write the files of a committed round."""
        self._remember(event)
        for name, content in self._of_round(event).items():
            self._write(name, content)
        self._write_histories()

    def _of_round(self, event: RoundCommitted) -> dict[str, Any]:
        """A round's own files and their contents."""
        number, clients = event.round, self._clients(event)
        files: dict[str, Any] = {
            f"clients/{self._slug(client.client_id)}/round_{number}.json": client.model_dump()
            for client in clients
        }
        evaluation = self._evaluation(event, clients).model_dump()
        return files | {f"server/round_{number}_server_eval.json": evaluation}

    def _write_histories(self) -> None:
        self._write(
            "server/federated_metrics.json",
            [each.model_dump() for _, each in sorted(self._history.items())],
        )
        self._write(
            "server/policy_loss_history.json",
            {str(number): each.model_dump() for number, each in sorted(self._losses.items())},
        )

    # --- contents ---------------------------------------------------------------------------------

    def _remember(self, event: RoundCommitted) -> None:
        number, evaluation = event.round, event.evaluation
        if evaluation is not None:
            self._losses[number] = PolicyLoss(
                server_policy_loss=evaluation.loss, action_dim=self._action_dim
            )
        if number == 0:
            return
        self._history[number] = RoundMetrics(
            run_id=self._run,
            round=number,
            num_clients=len(event.nodes),
            avg_policy_loss=_mean(node.policy_loss for node in event.nodes),
            avg_client_loss=_mean(node.loss for node in event.nodes),
            param_update_norm=event.mean_update_norm,
            server_policy_loss=evaluation.loss if evaluation else None,
            applied_lr=event.learning_rate,
            applied_mu=event.proximal_mu,
            bytes_up=event.bytes_up,
            bytes_down=event.bytes_down,
        )

    def _clients(self, event: RoundCommitted) -> list[ClientMetrics]:
        return [
            ClientMetrics(
                run_id=self._run,
                round=event.round,
                client_id=node.node,
                loss=node.loss,
                policy_loss=node.policy_loss,
                fedprox_loss=node.proximal_loss,
                grad_norm=node.grad_norm,
                param_hash=node.sha256,
                num_steps=node.steps,
                num_samples=node.samples,
                dataset_frames=node.dataset_frames,
                param_update_norm=node.update_norm,
                holdout_loss=node.holdout_loss,
                applied_lr=node.learning_rate,
                bad_batches=node.bad_batches,
                bytes_up=node.bytes_up,
                bytes_down=node.bytes_down,
                **{
                    f"seconds_{phase}": node.seconds.get(phase)
                    for phase in ("load", "train", "encode", "evaluate", "transfer")
                },
            )
            for node in event.nodes
        ]

    def _evaluation(self, event: RoundCommitted, clients: list[ClientMetrics]) -> RoundEvaluation:
        nodes, seconds, evaluation = event.nodes, event.seconds, event.evaluation
        datasets = [
            DatasetEvaluation(
                dataset_name=each.name,
                evaldata_id=number,
                loss=each.loss,
                num_examples=each.frames,
                metrics=DatasetMetrics(
                    policy_loss=each.loss,
                    action_dim=self._action_dim,
                    total_samples=each.frames,
                    success=each.success,
                    rollouts=each.rollouts,
                    error=each.error,
                ),
            )
            for number, each in enumerate(evaluation.datasets if evaluation else ())
        ]
        return RoundEvaluation(
            run_id=self._run,
            round=event.round,
            server_composite_eval_loss=evaluation.loss if evaluation else None,
            client_aggregated_training_metrics=AggregatedMetrics(
                avg_client_loss=_mean(node.loss for node in nodes),
                std_client_loss=pstdev(node.loss for node in nodes) if nodes else None,
                avg_client_proximal_loss=_mean(node.proximal_loss for node in nodes),
                avg_client_grad_norm=_mean(node.grad_norm for node in nodes),
                num_clients=len(nodes),
                param_update_norm=event.mean_update_norm,
                weighted_client_loss=_weighted(nodes),
                weighted_client_policy_loss=event.train_loss,
                weighted_client_proximal_loss=event.proximal_loss,
                weighted_holdout_loss=event.holdout_loss,
            ),
            individual_client_training_metrics=clients,
            server_per_dataset_eval_results=datasets,
            num_server_eval_datasets=len(datasets),
            seed=self._seed,
            applied_lr=event.learning_rate,
            applied_mu=event.proximal_mu,
            scheduler_reason=list(event.reasons),
            client_lr_boosts=event.boosts,
            rolled_back_to=event.rolled_back_to,
            aggregation=event.aggregation,
            codec=event.codec,
            refusals=event.refused,
            lost_clients=event.lost,
            bytes_up=event.bytes_up,
            bytes_down=event.bytes_down,
            seconds_send=seconds.get("send"),
            seconds_collect=seconds.get("collect"),
            seconds_aggregate=seconds.get("aggregate"),
            seconds_eval=seconds.get("evaluate"),
            seconds_commit=seconds.get("commit"),
        )

    # --- files ------------------------------------------------------------------------------------

    def _slug(self, node: str) -> str:
        """A folder's name for a node, no two the same."""
        if node not in self._slugs:
            plain = slug = re.sub(r"[^a-z0-9]+", "_", node.lower()).strip("_") or "node"
            number = 2
            while slug in self._slugs.values():
                slug, number = f"{plain}_{number}", number + 1
            self._slugs[node] = slug
        return self._slugs[node]

    def _write(self, name: str, content: Any) -> None:
        """Write a file, whole or not at all. Not synced: it can be made again."""
        path = self._folder / name
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        with disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, text, durable=False)


def _readable(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def _weighted(nodes: Sequence[NodeRound]) -> float | None:
    """Mean of the nodes' losses by samples."""
    samples = sum(node.samples for node in nodes)
    return sum(node.loss * node.samples for node in nodes) / samples if samples else None


#: The files' models, by schema file.
SCHEMAS: dict[str, type[Output]] = {
    "config": RunConfig,
    "round_server_eval": RoundEvaluation,
    "client_round": ClientMetrics,
    "federated_metrics_entry": RoundMetrics,
    "policy_loss_history_entry": PolicyLoss,
}


def write_schemas(folder: Path) -> None:
    """Write each model's JSON schema."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in SCHEMAS.items():
        text = json.dumps(model.model_json_schema(mode="serialization"), indent=1, sort_keys=True)
        (folder / f"{name}.schema.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
