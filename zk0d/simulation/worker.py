"""One process that can be any of a simulation's contributors, one message at a time.

Policy and recordings are loaded once and shared by all of them. What a contributor keeps for
itself between rounds (Adam's moments, what its encoding is short of, its variates) lies in a file.
So any worker can resume where another left off, and memory does not grow with their number.
"""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from safetensors import safe_open
from safetensors.torch import save_file

from zk0d.config.machine import ClientSettings
from zk0d.errors import Zk0dError
from zk0d.federation import client_app
from zk0d.federation.cohort import content
from zk0d.federation.envelope import message_in
from zk0d.federation.learner_client import LearnerError, NodeLearner, Progress
from zk0d.federation.messages import Measure, MeasureReply, Query, QueryReply, Train, TrainReply
from zk0d.federation.update import Manifest, Payload
from zk0d.files import whole_file
from zk0d.learner.contributor import Contributor, Prepared
from zk0d.learner.held import HeldWeights
from zk0d.learner.pace import StepTime
from zk0d.learner.residual import Residual
from zk0d.learner.tasks import Stopped, TaskControl
from zk0d.learner.variates import OwnVariates
from zk0d.learning.pace import Pace, SetPace
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy
from zk0d.learning.prepared import PreparedRecordings
from zk0d.learning.progress import Progress as Told
from zk0d.learning.recordings import Recordings
from zk0d.learning.spec import PolicySpec
from zk0d.learning.train import Moments
from zk0d.simulation.plan import Plan, VirtualNode
from zk0d.simulation.progress import ProgressFile
from zk0d.simulation.sources import open_at_command

#: Flower's engine numbers its virtual nodes so.
PARTITION = "partition-id"
#: Among what a contributor keeps: the weights that it holds.
_HELD = "held/weights"
#: What a poisoned update is multiplied by.
POISON = -4.0
#: By a simulation's own clock: an optimizer step of a contributor that is not slow.
STEP_SECONDS = 1.0


class VirtualApp:
    """The contributors' ClientApp, in whatever process it is called.

    Parameters
    ----------
    plan
        As JSON: the app is sent to workers as it is, and each reads it once.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan.model_dump_json(by_alias=True)

    def __call__(self, message: Message, context: Context) -> Message:
        with client_app.reached_by(_worker(self._plan).connect):
            return client_app.app(message, context)


@functools.lru_cache(1)
def _worker(plan: str) -> Worker:
    return Worker(Plan.model_validate_json(plan))


class Worker:
    """What contributors share in one process."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        if plan.cpu_threads:
            torch.set_num_threads(plan.cpu_threads)
        self._policy: LoadedPolicy | None = None
        self._moments: Moments
        self._recordings: dict[tuple[str, ...], Recordings] = {}
        self._prepared: dict[tuple[str, ...], PreparedRecordings] = {}

    @contextmanager
    def connect(self, context: Context) -> Iterator[NodeLearner]:
        """The learner of the contributor that a message is for."""
        yield VirtualLearner(self, self.plan.nodes[int(context.node_config[PARTITION])])

    def prepared(
        self,
        spec: PolicySpec,
        node: VirtualNode,
        settings: ClientSettings,
        augments: bool,
        tell: Callable[[Told], None] = lambda progress: None,
    ) -> Prepared:
        """The shared policy, and this contributor's part of the recordings."""
        policy = self._policy_of(spec)
        where = _address(node)
        if where not in self._prepared:
            if where not in self._recordings:
                self._recordings[where] = open_at_command(node.dataset_uri, node.cameras)
            self._prepared[where] = PreparedRecordings(
                self._recordings[where],
                policy,
                settings.learner.cache,
                settings.learner.max_bad_frames,
                episodes=self._episodes_of(where),
                augments=augments,
                tell=tell,
            )
        data = self._prepared[where]
        if node.episodes:
            data = data.share(node.episodes)
        return Prepared(
            ("", "", augments),
            policy,
            data,
            self._moments,
            Residual(),
            OwnVariates(),
            HeldWeights(),
        )

    def _episodes_of(self, address: tuple[str, ...]) -> set[int]:
        """What any contributor has of these recordings; empty for all of them."""
        shares = [node.episodes for node in self.plan.nodes if _address(node) == address]
        return set().union(*shares) if all(shares) else set()

    def _policy_of(self, spec: PolicySpec) -> LoadedPolicy:
        if self._policy is None or self._policy.spec != spec:
            self._prepared.clear()  # made for the policy of before
            self._policy = load_policy(
                spec,
                models=self.plan.models,
                device=self.plan.device,
                precision=self.plan.precision,
                packages=self.plan.reading.policy_packages,
            )
            self._moments = Moments(self._policy)
        return self._policy


def _address(node: VirtualNode) -> tuple[str, ...]:
    return (node.dataset_uri, *(f"{a}={b}" for a, b in sorted(node.cameras.items())))


class VirtualLearner:
    """A contributor's learner: the real one on shared policy and recordings, and its faults."""

    def __init__(self, worker: Worker, node: VirtualNode) -> None:
        self._plan, self._node = worker.plan, node
        self._path = worker.plan.state / f"{node.name}.safetensors"
        self._contributor = _Contributor(worker, node)
        self._progress = ProgressFile(worker.plan.state)

    def query(self, task: Query, progress: Progress = lambda event: None) -> QueryReply:
        reply, _ = self._contributor.run(task, None, TaskControl(self._told(progress)))
        assert isinstance(reply, QueryReply)
        if self._plan.forced_statistics is not None:
            reply = reply.model_copy(update={"statistics": self._plan.forced_statistics})
        return reply

    def answers(self) -> bool:
        return True

    def held(self) -> str:
        return _held_in(self._path)

    def train(
        self, task: Train, weights: Payload, progress: Progress = lambda event: None
    ) -> tuple[TrainReply, Payload]:
        self._drop(task)
        began = time.monotonic()
        if self._plan.statistics == "own":
            own = self._contributor.statistics(task)
            changed = {"statistics": own, "statistics_sha256": own.sha256}
            task = task.model_copy(update=changed)
        prepared = self._contributor.take(task, self._path)
        reply, update = self._contributor.run(task, weights, TaskControl(self._told(progress)))
        assert isinstance(reply, TrainReply)
        assert update is not None
        _keep(prepared, self._path)
        if self._plan.waits:
            self._lag(task, began)
        if self._node.poisoned:
            update = _poisoned(update).with_beside(*map(_poisoned, update.beside))
        return reply, update

    def measure(
        self, task: Measure, weights: Payload, progress: Progress = lambda event: None
    ) -> MeasureReply:
        reply, _ = self._contributor.run(task, weights, TaskControl(self._told(progress)))
        assert isinstance(reply, MeasureReply)
        return reply

    def _told(self, progress: Progress) -> Progress:
        """The same for whoever looks at the simulation, too."""
        return self._progress.from_(self._node.name, progress)

    def _drop(self, task: Train) -> None:
        """Be away in this round, by chance or because it was so ordered.

        A round that failed is asked again: chance decides again, and an order counts once.
        """
        counter = self._plan.state / f"{self._node.name}.away.json"
        round_, times = 0, 0
        if counter.exists():
            round_, times = json.loads(counter.read_text(encoding="utf-8"))
        times = times if round_ == task.round else 0
        dice = random.Random(f"{self._plan.seed}/{task.round}/{times}/{self._node.name}")
        ordered = self._plan.missing.get(task.round, []).count(self._node.name)
        if times >= ordered and dice.random() >= self._plan.drop:
            return
        counter.parent.mkdir(parents=True, exist_ok=True)
        counter.write_text(json.dumps([task.round, times + 1]), encoding="utf-8")
        raise LearnerError(
            f"{self._node.name} is away in round {task.round}, as the simulation's plan says.",
            reason="dropped",
        )

    def _lag(self, task: Train, began: float) -> None:
        """Take as long as a slower machine would; past the deadline there is no answer."""
        took = time.monotonic() - began
        takes = took * self._node.slow
        time.sleep(max(0.0, min(takes, task.deadline_seconds) - took))
        if takes > task.deadline_seconds:
            raise Stopped("the round's deadline has passed.", reason="deadline")


class _Contributor(Contributor):
    """The real contributor, which finds policy and recordings loaded."""

    def __init__(self, worker: Worker, node: VirtualNode) -> None:
        plan = worker.plan
        self._worker, self._node = worker, node
        self._taken: Prepared | None = None
        super().__init__(
            ClientSettings.parse(
                {
                    "name": node.name,
                    "dataset-uri": node.dataset_uri,
                    "limits": {
                        "models": [plan.model_name],
                        # The site's limits are the site's; here all is one machine's.
                        "max-steps": 1_000_000_000,
                        "max-batch-size": 1_000_000,
                    },
                    "learner": {
                        "device": plan.device,
                        "precision": plan.precision,
                        **plan.reading.model_dump(by_alias=True),
                    },
                },
                where=f"contributor {node.name}",
            )
        )

    def _pace(self, task: Train, step_time: StepTime) -> Pace:
        """By the simulation's own clock."""
        asked = task.training.local_steps
        if not task.training.round_minutes:
            return super()._pace(task, step_time)
        bounds = task.training.step_bounds
        there_is_time_for = 60 * task.training.round_minutes / (STEP_SECONDS * self._node.slow)
        steps = min(max(round(there_is_time_for), bounds.fewest), bounds.most)
        return SetPace(asked, steps)

    def take(self, task: Train, path: Path) -> Prepared:
        """Become this contributor as it was after its last round."""
        self._taken = self._prepared_for(task)
        _recall(self._taken, path)
        return self._taken

    def statistics(self, task: Train) -> Any:
        """Of its own recordings."""
        return self._prepared_for(task).data.statistics()

    def _prepared_for(self, task: Train) -> Prepared:
        augments = task.training.image_augmentation
        return self._worker.prepared(task.spec, self._node, self.settings, augments)

    def _prepare(
        self, spec: PolicySpec, uri: str, augments: bool, control: TaskControl
    ) -> Prepared:
        del uri
        self._check_allowed(spec)
        if self._taken:
            return self._taken
        return self._worker.prepared(spec, self._node, self.settings, augments, control.tell)


def _poisoned(payload: Payload) -> Payload:
    turned = {name: POISON * array for name, array in payload.arrays().items()}
    return Payload.of(turned, payload.manifest.kind, payload.manifest.codec)


def _keep(prepared: Prepared, path: Path) -> None:
    """Write what this contributor keeps, whole or not at all."""
    run, round_, tensors = prepared.moments.kept()
    _, _, arrays = prepared.residual.kept()
    content = {f"moments/{name}": tensor.contiguous() for name, tensor in tensors.items()}
    content |= {f"residual/{name}": torch.from_numpy(array) for name, array in arrays.items()}
    variates = prepared.variates.kept()
    payloads = {f"variates/{made_in}": variate for made_in, variate in variates.items()}
    if held := prepared.held.kept():
        payloads[_HELD] = held
    for key, payload in payloads.items():
        data = bytearray(b"".join(payload.chunks))
        content[key] = torch.frombuffer(data, dtype=torch.uint8)
    manifests = {key: payload.manifest.to_json() for key, payload in payloads.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False) as draft:
        save_file(content, draft, {"run": run, "round": str(round_), **manifests})


def _recall(prepared: Prepared, path: Path) -> None:
    run, round_ = "", 0
    moments, residual, variates, held = {}, {}, {}, None
    if path.exists():
        with safe_open(path, "pt") as file:
            facts = file.metadata()
            run, round_ = facts["run"], int(facts["round"])
            for key in file.keys():  # noqa: SIM118 - no mapping
                what, name = key.split("/", 1)
                if what == "moments":
                    moments[name] = file.get_tensor(key)
                elif what == "residual":
                    residual[name] = file.get_tensor(key).numpy()
                else:
                    data = file.get_tensor(key).numpy().tobytes()
                    payload = Payload(Manifest.from_json(facts[key]), [data])
                    if key == _HELD:
                        held = payload
                    else:
                        variates[int(name)] = payload
    prepared.moments.restore(run, round_, moments)
    prepared.residual.restore(run, round_, residual)
    prepared.variates.restore(run, variates)
    prepared.held.restore(held)


def _held_in(path: Path) -> str:
    """Manifest hash of the weights that a contributor holds; empty if none."""
    if not path.exists():
        return ""
    with safe_open(path, "pt") as file:
        text = file.metadata().get(_HELD)
    return Manifest.from_json(text).sha256 if text else ""


def training_seconds(plan: Plan) -> Callable[[int, Message], float]:
    """How long contributors train by the simulation's own clock; the same on every machine."""

    def takes(partition: int, answer: Message) -> float:
        try:
            reply = message_in(content(answer), TrainReply)
        except Zk0dError:
            return 0.0  # a refusal, or the answer to a query
        return reply.figures.steps * STEP_SECONDS * plan.nodes[partition].slow

    return takes
