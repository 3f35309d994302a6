"""The coordinator's learner: builds the run's policy and evaluates it on held-out recordings."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from zk0d.config.cameras import MappedAt, camera_name
from zk0d.config.machine import EvaluationDataset, ServerSettings
from zk0d.config.names import VLM_FOLDER, WEIGHTS_FILE, DatasetUri, split_revision
from zk0d.errors import ConfigError, Zk0dError
from zk0d.federation.body import require_payload
from zk0d.federation.messages import (
    Evaluate,
    EvaluateReply,
    Message,
    Release,
    ReleaseReply,
    Start,
    StartReply,
)
from zk0d.federation.update import Payload, UpdateError
from zk0d.learner.tasks import Learner, TaskControl
from zk0d.learning import adapters
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.evaluate import roll_out, seeded_loss, stratified_rows
from zk0d.learning.license import license_of
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, pick_device, release_gpu_memory, spec_for
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.recordings import Recordings, open_recordings
from zk0d.learning.robot import check_robot, group_of, merge_robots
from zk0d.learning.spec import Adapter, PolicySpec, RobotDescription, check_fit
from zk0d.record.events import DatasetResult
from zk0d.release.card import model_card
from zk0d.release.checkpoint import Releases, base_of, describe, name_of
from zk0d.release.gate import judge
from zk0d.simulators.calibration import calibrated
from zk0d.simulators.task import Sector
from zk0d.simulators.tasks import TASKS

log = logging.getLogger("zk0d")

#: Closed-loop episodes begin from here, far from any seed that recordings are made with.
ROLLOUT_SEED = 10_000_000


@dataclass
class _Dataset:
    settings: EvaluationDataset
    recordings: Recordings
    prepared: PreparedRecordings | None = None


class CoordinatorEvaluator(Learner):
    """Evaluates, never trains; its recordings enter no statistics."""

    kinds: ClassVar[dict[str, type[Message]]] = {
        "start": Start,
        "evaluate": Evaluate,
        "release": Release,
    }

    def __init__(self, settings: ServerSettings, mapped_at: MappedAt = MappedAt.EVALUATION) -> None:
        self.settings = settings
        self._mapped_at = mapped_at
        if settings.evaluator.cpu_threads:
            torch.set_num_threads(settings.evaluator.cpu_threads)
        pick_device(settings.evaluator.device)
        self._datasets: list[_Dataset] = []
        self._robot: RobotDescription | None = None
        self._policy: LoadedPolicy | None = None
        self._revisions = dict(map(split_revision, settings.fetch_models))

    def open(self) -> None:
        """Open and check the evaluation datasets."""
        self._datasets = [
            _Dataset(
                entry,
                open_recordings(
                    entry.dataset_uri, cameras=entry.cameras, mapped_at=self._mapped_at
                ),
            )
            for entry in self.settings.evaluation
        ]
        for data in self._datasets:
            for notice in data.recordings.notices:
                log.warning("evaluation.%s: %s", data.settings.name, notice)
        self._robot = self._one_robot()

    def _one_robot(self) -> RobotDescription | None:
        """The robot of all held-out recordings, which are refused if it is not one."""
        allowed = self.settings.run_settings({}).admission.allow_mixed_units
        robots: list[RobotDescription] = []
        for data in self._datasets:
            robot = data.recordings.robot(data.recordings.finite_statistics())
            for notice in check_robot(
                robot,
                merge_robots(robots),
                where=f"evaluation.{data.settings.name}",
                whose="the other held-out recordings",
                mixed_units=allowed,
            ):
                log.warning("%s", notice)
            robots.append(robot)
        return merge_robots(robots)

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
        if isinstance(task, Release):
            return self._release(task, require_payload(payload)), None
        assert isinstance(task, Evaluate)
        return self._evaluate(task, require_payload(payload), control), None

    def release_gpu_memory(self) -> None:
        release_gpu_memory()

    def _start(self, task: Start) -> tuple[StartReply, Payload]:
        like = self._datasets[0].recordings.summary if self._datasets else None
        spec = spec_for(
            task.policy,
            task.model_name,
            task.seed,
            like,
            self.settings.models,
            self._revisions,
            task.adapter,
            self.settings.evaluator.policy_packages,
        )
        policy = self._load(spec)
        folder = Releases.of(self.settings).find(task.start_from) if task.start_from else None
        if folder is not None:
            _begin_from(folder, policy)
        self._use(policy)
        reply = StartReply(
            spec=policy.spec, robot=self._robot, start_from=name_of(folder) if folder else ""
        )
        return reply, Payload.of(policy.weights(), "weights")

    def _release(self, task: Release, payload: Payload) -> ReleaseReply:
        began = time.perf_counter()
        policy = self._policy_for(task.spec)
        if payload.manifest.sha256 != task.base:
            raise UpdateError("the weights are not those that the task names.")
        policy.load_weights(payload.arrays())
        releases = Releases.of(self.settings)
        folder = releases.checkpoint(task.run, task.round)
        verdict = judge(task.summary, releases.rival(task.run))
        licenses = {
            data.settings.name: license_of(layout.root, layout.info) or "not said"
            for data in self._datasets
            for layout in [data.recordings.layout]
        }
        # No node with another robot is let into the cohort.
        own = {data.recordings.summary.robot_type for data in self._datasets}
        robots = sorted(own or task.summary.robot_types)
        simulation = any(data.settings.simulator for data in self._datasets)
        uris = [DatasetUri.parse(data.settings.dataset_uri) for data in self._datasets]
        parent = {
            "model": task.spec.model_name,
            "sha256": task.spec.sha256 or "",
            "start_from": task.summary.start_from,
        }

        def add_summary(draft: Path) -> None:
            card = model_card(
                task.summary,
                task.statistics,
                verdict,
                licenses,
                simulation=simulation,
                datasets=[uri.location for uri in uris if uri.scheme == "hf"],
                carries_vlm=(draft / VLM_FOLDER).exists(),
            )
            describe(
                draft,
                task.summary,
                verdict,
                str(card),
                parent=parent,
                licenses=licenses,
                robot_types=robots,
                robot=self._robot,
                fps=task.spec.fps,
            )

        write_checkpoint(
            policy, task.statistics, folder, add_summary, groups=task.statistics.groups
        )
        releases.settle(folder, verdict)
        releases.prune(task.run, task.keep)
        return ReleaseReply(
            folder=folder.name,
            passed=verdict.passed,
            reasons=verdict.reasons,
            seconds=time.perf_counter() - began,
        )

    def _load(self, spec: PolicySpec) -> LoadedPolicy:
        own = self.settings.evaluator
        return load_policy(
            spec,
            models=self.settings.models,
            revisions=self._revisions,
            device=own.device,
            precision=own.precision,
            packages=own.policy_packages,
        )

    def _use(self, policy: LoadedPolicy) -> None:
        self._policy = policy
        for data in self._datasets:
            where, cameras = data.settings.dataset_uri, data.recordings.camera_map
            check_fit(data.recordings.summary, policy.spec, where, cameras)
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
            raise UpdateError("the weights are not those that the task names.")
        policy.load_weights(payload.arrays())
        results = []
        for data in self._datasets:
            control.check()
            try:
                results.append(self._evaluate_one(task, data, policy, control))
            except Zk0dError as error:
                # A failure is a missing value with its reason; the others are still measured.
                results.append(DatasetResult(name=data.settings.name, error=error.message))
        return EvaluateReply(datasets=tuple(results), seconds=time.perf_counter() - began)

    def _evaluate_one(
        self, task: Evaluate, data: _Dataset, policy: LoadedPolicy, control: TaskControl
    ) -> DatasetResult:
        if data.prepared is None:
            learner = self.settings.evaluator
            data.prepared = PreparedRecordings(
                data.recordings,
                policy,
                learner.cache,
                learner.max_bad_frames,
                episodes=data.settings.episodes,
                tell=control.tell,
            )
            if data.settings.episodes:
                data.prepared = data.prepared.share(data.settings.episodes)
        group = group_of(task.statistics.by, data.settings.name, data.recordings.summary.robot_type)
        statistics = task.statistics.of(group)
        batches = data.prepared.batches(statistics)
        rows, episode = data.prepared.usable, data.recordings.columns["episode_index"]
        asked = task.evaluation
        rows = stratified_rows(rows, episode, asked.eval_frames)
        loss = seeded_loss(policy, batches, rows, task.seed)
        rollouts = None
        if asked.eval_rollouts and data.settings.simulator:
            simulated, sector = TASKS[data.settings.simulator], Sector(*data.settings.sector)
            cameras = data.recordings.summary.cameras
            size = next(iter(cameras.values()), (3, 96, 96))[-1]
            own = {camera_name(key): to for key, to in data.recordings.cameras.items()}
            knows_goal = simulated.knows_goal(policy.spec.state_width)
            calibration = data.settings.calibration
            rollouts = roll_out(
                policy,
                statistics,
                lambda: calibrated(
                    simulated.make(sector, tuple(own), size, knows_goal), calibration
                ),
                list(range(ROLLOUT_SEED, ROLLOUT_SEED + asked.eval_rollouts)),
                own,
            )
        return DatasetResult(
            name=data.settings.name,
            loss=loss.mean,
            spread=loss.spread,
            frames=len(rows),
            success=rollouts.success if rollouts else None,
            rollouts=rollouts.episodes if rollouts else 0,
            statistics=group if group in task.statistics.groups else "",
        )


def _begin_from(folder: Path, policy: LoadedPolicy) -> None:
    """Take the trainable weights of a release, whose shapes and adapter must be the policy's."""
    trainable, spec = policy.trainable(), policy.spec
    theirs = adapters.kept_in(folder)
    if spec.adapter is None:
        # Merged into its layers, an adapter is nothing but their weights, if these train.
        if theirs and not all(f"{name}.weight" in trainable for name in theirs.targets):
            raise _another_adapter(folder, theirs, None)
        found = load_file(folder / WEIGHTS_FILE)
    else:
        if theirs is None or not theirs.is_like(spec.adapter):
            raise _another_adapter(folder, theirs, spec.adapter)
        if base_of(folder) != spec.sha256:
            raise ConfigError(
                f"start-from: the adapter of {folder} was trained on another base than model"
                f" '{spec.model_name}' of this run (seed {spec.seed}); take a release of the same"
                " model.",
                reason="model_mismatch",
            )
        found = adapters.weights_in(folder)
    for key, parameter in trainable.items():
        if key not in found or found[key].shape != parameter.shape:
            raise ConfigError(
                f"start-from: {folder} does not fit model '{spec.model_name}'"
                f" ({key} is missing or of another shape); take a release of the same model.",
                reason="model_mismatch",
            )
    with torch.no_grad():
        for key, parameter in trainable.items():
            parameter.copy_(found[key])


def _another_adapter(folder: Path, theirs: Adapter | None, asked: Adapter | None) -> ConfigError:
    return ConfigError(
        f"start-from: {folder} was trained {_with(theirs)}, and this run trains {_with(asked)}; set"
        " adapter and adapter-rank as they were, or name the release's folder under [models] and as"
        " model-name.",
        reason="model_mismatch",
    )


def _with(adapter: Adapter | None) -> str:
    return f"with {adapter.kind} of rank {adapter.rank}" if adapter else "without an adapter"
