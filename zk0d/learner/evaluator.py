"""The coordinator's learner: builds the run's policy and evaluates it on held-out recordings."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from zk0d.config.machine import EvaluationDataset, ServerSettings
from zk0d.config.names import split_revision
from zk0d.errors import Zk0dError
from zk0d.federation.body import require_payload
from zk0d.federation.messages import (
    DatasetResult,
    Evaluate,
    EvaluateReply,
    Message,
    Start,
    StartReply,
)
from zk0d.federation.update import Payload, UpdateError
from zk0d.learner.tasks import Learner, TaskControl
from zk0d.learning.evaluate import roll_out, seeded_loss, stratified_rows
from zk0d.learning.policy import LoadedPolicy, load_policy, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.spec import PolicySpec, check_fit
from zk0d.simulators.soreach import JOINTS, Sector, SoReach

#: Closed-loop episodes begin from here, far from any seed that recordings are made with.
ROLLOUT_SEED = 10_000_000


@dataclass
class _Dataset:
    settings: EvaluationDataset
    recordings: Recordings
    prepared: PreparedRecordings | None = None


class CoordinatorEvaluator(Learner):
    """Evaluates, never trains; its recordings enter no statistics."""

    kinds: ClassVar[dict[str, type[Message]]] = {"start": Start, "evaluate": Evaluate}

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        if settings.evaluator.cpu_threads:
            torch.set_num_threads(settings.evaluator.cpu_threads)
        self._datasets: list[_Dataset] = []
        self._policy: LoadedPolicy | None = None
        self._revisions = dict(map(split_revision, settings.fetch_models))

    def open(self) -> None:
        """Open and check the evaluation datasets."""
        self._datasets = [
            _Dataset(entry, open_recordings(entry.dataset_uri, cameras=entry.cameras))
            for entry in self.settings.evaluation
        ]

    def facts(self) -> dict[str, Any]:
        return {
            "datasets": {
                data.settings.name: data.recordings.summary.model_dump() for data in self._datasets
            },
            "policy": self._policy.spec.model_name if self._policy else None,
        }

    def run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        if isinstance(task, Start):
            return self._start(task)
        assert isinstance(task, Evaluate)
        return self._evaluate(task, require_payload(payload), control), None

    def _start(self, task: Start) -> tuple[StartReply, Payload]:
        like = self._datasets[0].recordings.summary if self._datasets else None
        spec = spec_for(
            task.policy, task.model_name, task.seed, like, self.settings.models, self._revisions
        )
        policy = self._load(spec)
        self._use(policy)
        return StartReply(spec=policy.spec), Payload.of(policy.weights(), "weights")

    def _load(self, spec: PolicySpec) -> LoadedPolicy:
        own = self.settings.evaluator
        return load_policy(
            spec,
            models=self.settings.models,
            revisions=self._revisions,
            device=own.device,
            precision=own.precision,
        )

    def _use(self, policy: LoadedPolicy) -> None:
        self._policy = policy
        for data in self._datasets:
            check_fit(data.recordings.summary, policy.spec, where=data.settings.dataset_uri)
            data.prepared = None

    def _policy_for(self, spec: PolicySpec) -> LoadedPolicy:
        if self._policy is None or self._policy.spec != spec:
            self._use(self._load(spec))
        assert self._policy is not None
        return self._policy

    def _evaluate(self, task: Evaluate, payload: Payload, control: TaskControl) -> EvaluateReply:
        began = time.perf_counter()
        policy = self._policy_for(task.spec)
        if payload.manifest.sha256 != task.base:
            raise UpdateError("the weights are not those that are named.")
        policy.load_weights(payload.arrays())
        results = []
        for data in self._datasets:
            control.check()
            try:
                results.append(self._evaluate_one(task, data, policy))
            except Zk0dError as error:
                # A failure is a missing value with its reason; the others are still measured.
                results.append(DatasetResult(name=data.settings.name, error=error.message))
        return EvaluateReply(datasets=tuple(results), seconds=time.perf_counter() - began)

    def _evaluate_one(self, task: Evaluate, data: _Dataset, policy: LoadedPolicy) -> DatasetResult:
        if data.prepared is None:
            learner = self.settings.evaluator
            data.prepared = PreparedRecordings(
                data.recordings, policy, learner.cache, learner.max_bad_frames
            )
            if data.settings.episodes:
                data.prepared = data.prepared.share(data.settings.episodes)
        batches = data.prepared.batches(task.statistics)
        rows, episode = data.prepared.usable, data.recordings.columns["episode_index"]
        if task.episodes:
            listed = data.settings.episodes or data.recordings.episodes
            allowed = torch.tensor(sorted(listed)[: task.episodes])
            rows = rows[torch.isin(episode[rows], allowed)]
        if task.mode == "quick":
            rows = stratified_rows(rows, episode, task.frames)
        loss = seeded_loss(policy, batches, rows, task.seed)
        rollouts = None
        if task.rollouts and data.settings.simulator:
            sector, cameras = Sector(*data.settings.sector), data.recordings.summary.cameras
            size = next(iter(cameras.values()), (3, 96, 96))[-1]
            knows_goal = policy.spec.state_width > len(JOINTS)
            rollouts = roll_out(
                policy,
                task.statistics,
                lambda: SoReach(sector, tuple(policy.spec.cameras), size, knows_goal),
                list(range(ROLLOUT_SEED, ROLLOUT_SEED + task.rollouts)),
            )
        return DatasetResult(
            name=data.settings.name,
            loss=loss,
            frames=len(rows),
            success=rollouts.success if rollouts else None,
            rollouts=rollouts.episodes if rollouts else 0,
        )
