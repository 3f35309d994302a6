"""A contributor's learner: its recordings, the run's policy, and Adam's moments."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zk0d.config.families import BUILT, packaged
from zk0d.config.machine import ClientSettings
from zk0d.config.names import split_revision
from zk0d.config.run import CodecName
from zk0d.errors import ConfigError, DataError, Zk0dError
from zk0d.federation.body import require_payload
from zk0d.federation.codec import NotFinite
from zk0d.federation.learner_client import HOLDS
from zk0d.federation.messages import (
    Measure,
    MeasureReply,
    Message,
    Query,
    QueryReply,
    Train,
    TrainReply,
)
from zk0d.federation.update import Payload, PayloadEncoder, UpdateError
from zk0d.learner.cooling import HeatLimit
from zk0d.learner.duty_cycle import DutyCycle
from zk0d.learner.energy import EnergyMeter
from zk0d.learner.held import HeldWeights
from zk0d.learner.held_out import evaluated
from zk0d.learner.lent import LentRecordings
from zk0d.learner.pace import StepTime
from zk0d.learner.parked import ParkedState, task_key
from zk0d.learner.residual import Residual
from zk0d.learner.tasks import Learner, TaskControl
from zk0d.learner.variates import OwnVariates, share_of
from zk0d.learning.instructions import cut_instructions
from zk0d.learning.pace import Pace
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import (
    limit_gpu_memory,
    load_policy,
    pick_device,
    release_gpu_memory,
)
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.progress import Energy, Training
from zk0d.learning.reached import Counts
from zk0d.learning.recordings import Recordings
from zk0d.learning.spec import PolicySpec, check_fit
from zk0d.learning.step import Correction
from zk0d.learning.train import Moments, StepPlan, train
from zk0d.record.events import HeldOut, NodeFigures

log = logging.getLogger("zk0d")


@dataclass
class Prepared:
    """Everything that stays between the rounds of one policy on one dataset."""

    key: tuple[str, str, bool]
    policy: LoadedPolicy
    data: PreparedRecordings
    moments: Moments
    residual: Residual
    variates: OwnVariates
    held: HeldWeights
    #: Of the data: figures on held-out episodes can be compared as long as it stays.
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    step_time: StepTime = field(default_factory=StepTime)


class Contributor(Learner):
    """Trains on one machine's recordings and lets nothing of them out but updates and counts.

    Parameters
    ----------
    parked
        Where it keeps what it resumes from after a restart; by default nowhere.
    """

    kinds: ClassVar[dict[str, type[Message]]] = {
        "query": Query,
        "train": Train,
        "measure": Measure,
    }

    def __init__(self, settings: ClientSettings, parked: ParkedState | None = None) -> None:
        self.settings = settings
        self._parked = parked or ParkedState(None)
        if settings.learner.cpu_threads:
            torch.set_num_threads(settings.learner.cpu_threads)
        for device in settings.learner.all_devices:
            pick_device(device)  # a GPU that cannot be used is said at the start
        self._lent = LentRecordings(settings)
        self._prepared: Prepared | None = None

    def open(self) -> None:
        """Open and check the node's own recordings, so that a mistake shows at the start."""
        self.settings.require_dataset()
        if self._lent.own:
            recordings = self._lent.at(self._lent.own)
            for notice in (*recordings.notices, *cut_instructions(recordings.tasks)):
                log.warning("%s: %s", self._lent.own, notice)

    @property
    def is_loaded(self) -> bool:
        return self._prepared is not None

    def facts(self) -> dict[str, Any]:
        prepared = self._prepared  # the task's thread changes it meanwhile
        return {
            "name": self.settings.name,
            "datasets": {name: each.model_dump() for name, each in self._lent.summaries().items()},
            "policy": prepared.policy.spec.model_name if prepared else None,
            HOLDS: (prepared.held.sha256 if prepared else "") or self._parked.held,
        }

    def run(
        self, task: Message, payload: Payload | None, control: TaskControl
    ) -> tuple[Message, Payload | None]:
        if isinstance(task, Query):
            return self._query(task, control), None
        if isinstance(task, Measure):
            return self._measure(task, require_payload(payload), control), None
        assert isinstance(task, Train)
        return self._train(task, require_payload(payload), control)

    def release_gpu_memory(self) -> None:
        release_gpu_memory()

    def settle(self) -> None:
        self._parked.settle()

    def _query(self, task: Query, control: TaskControl) -> QueryReply:
        uri = self._lent.named(task.dataset_uri)
        self._lent.look_for_more(uri)
        data = self._prepare(task.spec, uri, task.image_augmentation, control).data
        statistics = data.statistics() if self.settings.share_statistics else None
        robot = data.recordings.robot(statistics) if self.settings.share_robot else None
        if statistics is not None and not self.settings.share_histograms:
            statistics = statistics.without_histograms()
        notices = data.notices()
        for notice in notices:
            log.warning("%s: %s", uri, notice)
        return QueryReply(
            name=self.settings.name,
            recordings=data.summary.model_copy(update={} if robot else {"robot_type": "unknown"}),
            usable_frames=len(data.usable),
            held_out=len(data.held_out_episodes) if len(data.held_out) else 0,
            statistics=statistics,
            version=version("zk0d"),
            robot=robot,
            notices=tuple(notices),
        )

    def _train(
        self, task: Train, payload: Payload, control: TaskControl
    ) -> tuple[TrainReply, Payload]:
        control.set_deadline(task.deadline_seconds)
        self._check_limits(task)
        began = time.perf_counter()
        _check_statistics(task)
        uri = self._lent.named(task.dataset_uri)
        self._lent.look_for_more(uri)
        prepared = self._prepare(task.spec, uri, task.training.image_augmentation, control)
        policy, data = prepared.policy, prepared.data
        parked = self._parked.begin(task, prepared, self._key(task, payload, prepared, uri))
        came, weights = prepared.held.take(task, payload)
        if parked.answer is not None:
            return parked.answer
        _check_model(policy, weights)
        base = weights.arrays()
        del weights
        policy.load_weights(base)
        optimizer = prepared.moments.begin(
            task.run,
            task.round,
            task.training.weight_decay,
            backbone_lr_factor=task.training.backbone_lr_factor,
            fresh=task.fresh,
        )
        prepared.residual.begin(task.run, task.round, fresh=task.fresh)
        drift = _Drift.begin(task, payload, prepared)
        batches = data.batches(task.statistics)
        control.check()
        ready = time.perf_counter()
        meters = [EnergyMeter(each) for each in policy.devices]
        if parked.evaluated is None:
            parked.evaluated = _first_weights(task, prepared)
        control.check()
        evaluated = time.perf_counter()
        pace = self._pace(task, prepared.step_time)
        before = parked.counts
        result = train(
            policy,
            batches,
            data.usable,
            optimizer,
            StepPlan(
                training=task.training,
                first_step=task.first_step,
                schedule=task.schedule,
                boost=task.boost,
                seed=round_seed(task.seed, task.round, self.settings.name),
                proximal_mu=task.proximal_mu,
                pace=pace,
            ),
            correction=drift.correction if drift else None,
            on_step=_reporter(control, pace, before),
            check=self._rests(control, policy.devices),
            reached=parked.take_reached(),
            keeper=parked,
            draws=data.draws(),
        )
        prepared.step_time.keep(task, pace)
        trained = time.perf_counter()
        if joules := [each for meter in meters if (each := meter.joules()) is not None]:
            control.tell(Energy(sum(joules)))
        update = _encode(policy, base, task.training.uplink_codec, prepared.residual)
        if drift:
            update = update.with_beside(drift.variate(task, result.steps))
        figures = NodeFigures(
            steps=result.steps,
            samples=result.samples,
            dataset_frames=len(data.usable),
            loss=result.loss,
            policy_loss=result.policy_loss,
            proximal_loss=result.proximal_loss,
            grad_norm=result.grad_norm,
            learning_rate=result.learning_rate,
            bad_batches=result.bad_batches,
            holdout_loss=parked.evaluated.loss,
            holdout_frames=parked.evaluated.frames,
            holdout_losses=parked.evaluated.losses,
            holdout_mark=parked.evaluated.mark,
            variate=drift.began_with if drift else "",
            weights=came,
            seconds={
                "load": ready - began,
                "evaluate": evaluated - ready,
                "train": before.seconds + trained - evaluated,
                "encode": time.perf_counter() - trained,
            },
        )
        name = self.settings.name
        reply = TrainReply(name=name, round=task.round, base=task.base, figures=figures)
        parked.over(reply, update)
        return reply, update

    def _measure(self, task: Measure, payload: Payload, control: TaskControl) -> MeasureReply:
        """Evaluate weights; what a run has left here for its next round stays as it is."""
        control.set_deadline(task.deadline_seconds)
        _check_statistics(task)
        uri = self._lent.named(task.dataset_uri)
        prepared = self._prepare(task.spec, uri, task.image_augmentation, control)
        if not len(prepared.data.held_out):
            raise ConfigError(
                "this node holds out no episodes (learner.holdout-episodes), so it evaluates"
                " nothing.",
                reason="nothing_held_out",
            )
        if payload.manifest.sha256 != task.base:
            raise UpdateError("the weights are not those that the task names.")
        _check_model(prepared.policy, payload)
        prepared.policy.load_weights(payload.arrays())
        control.check()
        began = time.perf_counter()
        found = evaluated(prepared, task)
        log.info("round %d, loss on held-out episodes: %.4f", task.of, found.loss)
        return MeasureReply(
            name=self.settings.name,
            of=task.of,
            base=task.base,
            held_out=found,
            seconds=time.perf_counter() - began,
        )

    def _key(self, task: Train, payload: Payload, prepared: Prepared, uri: str) -> str:
        """Names a task by what its update depends on, here."""
        data, policy, limits = prepared.data, prepared.policy, self.settings.limits
        return task_key(
            task,
            payload,
            self.settings.name,
            self._lent.hash_of(uri),
            (len(data.usable), len(data.held_out)),
            (policy.device.type, policy.precision),
            limits.max_steps,
        )

    def _rests(self, control: TaskControl, devices: Sequence[torch.device]) -> Callable[[], None]:
        """What the owner's limits ask of the time between two steps."""
        limits = self.settings.limits
        # The first waits for the others in each step.
        duty = DutyCycle(control, limits.power_share, devices[0])
        heats = [HeatLimit(control, limits.gpu_max_celsius, each) for each in devices]

        def check() -> None:
            duty()
            for heat in heats:
                heat()

        return check

    def _pace(self, task: Train, step_time: StepTime) -> Pace:
        return step_time.pace(task, self.settings.limits.max_steps)

    def _check_allowed(self, spec: PolicySpec) -> None:
        """Refuse what this site does not train."""
        limits, settings = self.settings.limits, self.settings
        if spec.policy not in limits.policies and not packaged(spec.policy):
            raise ConfigError(
                f"the run trains '{spec.policy}', this node trains {' and '.join(limits.policies)}"
                " only (limits.policies).",
                reason="policy_not_allowed",
            )
        listed = {split_revision(name)[0] for name in settings.fetch_models}
        allowed = set(limits.models) or {*BUILT, *settings.models, *listed}
        if spec.model_name not in allowed:
            raise ConfigError(
                f"the run begins with model '{spec.model_name}', which is not in this node's list"
                " (models, fetch-models or limits.models).",
                reason="model_not_allowed",
            )

    def _check_limits(self, task: Train) -> None:
        """Refuse more than this machine's owner lends."""
        limits, training = self.settings.limits, task.training
        for what, asked, most, key in (
            ("optimizer steps", training.step_bounds.fewest, limits.max_steps, "max-steps"),
            ("frames per step", training.batch_size, limits.max_batch_size, "max-batch-size"),
        ):
            if asked > most:
                raise ConfigError(
                    f"the round asks for {asked} {what}, this node does at most {most}"
                    f" (limits.{key}).",
                    reason="limit_exceeded",
                )

    def _prepare(
        self, spec: PolicySpec, uri: str, augments: bool, control: TaskControl
    ) -> Prepared:
        key = (spec.model_dump_json(), uri, augments)
        self._check_allowed(spec)
        recordings = self._lent.at(uri)
        if self._prepared is None or self._prepared.key != key:
            check_fit(recordings.summary, spec, uri, recordings.camera_map)
            # One policy at a time: a run has one, and two do not fit on a GPU.
            self._prepared = None
            learner = self.settings.learner
            # Not before: it takes some of the GPU's memory for as long as this process lives.
            for device in learner.all_devices:
                limit_gpu_memory(device, self.settings.limits.gpu_memory_share)
            first, *others = learner.all_devices
            policy = load_policy(
                spec,
                models=self.settings.models,
                revisions=dict(map(split_revision, self.settings.fetch_models)),
                device=first,
                others=others,
                precision=learner.precision,
                packages=learner.policy_packages,
            )
            usual = recordings.newest(learner.holdout_episodes)
            held_out = self._parked.held_out(uri, len(usual), recordings.episodes)
            data = self._read(recordings, policy, augments, control, held_out)
            self._prepared = Prepared(
                key, policy, data, Moments(policy), Residual(), OwnVariates(), HeldWeights()
            )
        elif self._prepared.data.recordings is not recordings:
            self._read_changed(self._prepared, recordings, control)
        return self._prepared

    def _read_changed(
        self, prepared: Prepared, recordings: Recordings, control: TaskControl
    ) -> None:
        """Take recordings that changed since; what the run left here stays.

        If they cannot be used, those of before are, until they change again.
        """
        before, kept = prepared.data.recordings, (prepared.policy, prepared.key[2])
        uri = prepared.key[1]
        # A run's losses by round are of the same episodes.
        held_out = prepared.data.held_out_episodes
        self._prepared = None
        prepared.mark = secrets.token_hex(8)  # they may be other frames of the same numbers
        del prepared.data  # frames of both do not fit in memory
        try:
            prepared.data = self._read(recordings, *kept, control, held_out)
        except DataError as error:
            log.warning(
                "%s: the recordings changed, and those of before are used: %s", uri, error.message
            )
            self._lent.keep(uri, before)
            prepared.data = self._read(before, *kept, control, held_out)
        self._prepared = prepared

    def _read(
        self,
        recordings: Recordings,
        policy: LoadedPolicy,
        augments: bool,
        control: TaskControl,
        held_out: Collection[int] = (),
    ) -> PreparedRecordings:
        """Decode them; ``held_out`` names the episodes that are kept out, if not the last."""
        learner = self.settings.learner
        return PreparedRecordings(
            recordings,
            policy,
            learner.cache,
            learner.max_bad_frames,
            held_out or learner.holdout_episodes,
            augments=augments,
            tell=control.tell,
        )


@dataclass
class _Drift:
    """The correction of one round, and what it began with."""

    weights: Mapping[str, torch.nn.Parameter]
    correction: Correction
    own: Payload | None
    sent: OwnVariates
    began_with: Literal["kept", "new", "lost"]

    @classmethod
    def begin(cls, task: Train, payload: Payload, prepared: Prepared) -> _Drift | None:
        """The correction that the run asks for; ``None`` if it asks for none."""
        if task.training.drift_correction == "none":
            return None
        policy, mean = prepared.policy, payload.companion("variates")
        own = prepared.variates.begin(task.run, task.variate_round)
        offset = None
        if mean is not None and own is not None:
            _check_model(policy, mean)
            offset = {
                name: torch.from_numpy(value - held).to(policy.device)
                for (name, value), (_, held) in zip(mean.decode(), own.decode(), strict=True)
            }
        began_with: Literal["kept", "new", "lost"] = "kept"
        if own is None:
            began_with = "lost" if task.variate_round else "new"
        weights = policy.trainable()
        return cls(weights, Correction(weights, offset), own, prepared.variates, began_with)

    def variate(self, task: Train, steps: int) -> Payload:
        """The next variate; the one of before, or zeros, if a step's gradients were not finite."""
        encoder = PayloadEncoder("variates", task.training.variate_codec)
        before = self.own.arrays() if self.own is not None else None
        share = np.float32(share_of(steps))
        try:
            for name, mean in sorted(self.correction.mean(steps).items()):
                values = mean.cpu().float().numpy()
                if before is not None:
                    values = before[name] + share * (values - before[name])
                encoder.add(name, values)
            variate = encoder.finish()
        except NotFinite:
            zeros = {name: torch.zeros_like(p).cpu().numpy() for name, p in self.weights.items()}
            variate = self.own or Payload.of(zeros, "variates", task.training.variate_codec)
        self.sent.add(task.round, variate)
        return variate


def round_seed(seed: int, round_: int, name: str) -> int:
    """What a node samples with: its own for each node and round, the same when repeated."""
    text = f"{seed}/{round_}/{name}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def _check_model(policy: LoadedPolicy, payload: Payload) -> None:
    mine = {name: tuple(p.shape) for name, p in policy.trainable().items()}
    sent = {entry.name: entry.shape for entry in payload.manifest.tensors}
    for name in sorted(set(mine) | set(sent)):
        if mine.get(name) != sent.get(name):
            raise UpdateError(
                f"tensor '{name}' is {_shape(sent.get(name))} at the coordinator and"
                f" {_shape(mine.get(name))} here."
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _check_statistics(task: Train | Measure) -> None:
    if task.statistics.sha256 != task.statistics_sha256:
        raise UpdateError(
            "the run's statistics are not those that were announced.",
            reason="statistics_mismatch",
        )


def _first_weights(task: Train, prepared: Prepared) -> HeldOut:
    """The round's first weights on held-out episodes, if the run asks for it.

    No round is lost to an evaluation that fails: it is a value that is missing.
    """
    asked = task.evaluation
    due = asked.evaluate_on_nodes and asked.is_due(task.round - 1)
    if not due or not len(prepared.data.held_out):
        return HeldOut()
    try:
        return evaluated(prepared, task)
    except Zk0dError as error:
        log.warning("round %d, held-out episodes: %s", task.round, error.message)
        return HeldOut()


def _encode(
    policy: LoadedPolicy, base: dict[str, NDArray[np.float32]], codec: CodecName, residual: Residual
) -> Payload:
    """The update; ``base`` is used up."""
    encoder = PayloadEncoder("delta", codec)
    for name, parameter in policy.trainable().items():
        delta = parameter.detach().cpu().float().numpy() - base.pop(name)
        if codec == "fp32":
            encoder.add(name, delta)
            continue
        residual.add_to(name, delta)
        encoder.add(name, delta, residual.after(name, delta.shape))
    return encoder.finish()


def _reporter(control: TaskControl, pace: Pace, before: Counts) -> Callable[[int, float], None]:
    began = time.monotonic() - before.seconds
    control.tell(Training(before.step, max(before.step, pace.steps), before.seconds))

    def report(step: int, loss: float) -> None:
        control.tell(Training(step, max(step, pace.steps), time.monotonic() - began, loss))

    return report
