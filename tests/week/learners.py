"""The homes' learners: fakes that take no time, or the real one on SoReach."""

from __future__ import annotations

import hashlib

from flwr.app import Context, Message, MessageType, RecordDict

from tests.federation.fakes import FakeNode
from tests.week.homes import Home
from zk0d.federation.envelope import from_record, kind_of, to_record
from zk0d.federation.messages import Noted, Query, Train
from zk0d.flower.simulation import copied
from zk0d.simulation.plan import Plan
from zk0d.simulation.worker import PARTITION, VirtualApp


def steps_of(task: Train, step_seconds: float) -> int:
    """Optimizer steps that a machine takes in a round."""
    training, bounds = task.training, task.training.step_bounds
    if not training.round_minutes:
        return training.local_steps
    there_is_time_for = 60 * training.round_minutes / step_seconds
    return min(max(round(there_is_time_for), bounds.fewest), bounds.most)


class FakeLearners:
    """Updates that say whose they are: every weight of one is :func:`told_by` home and round."""

    def __init__(self, homes: list[Home], step_seconds: float) -> None:
        self._homes = homes
        self._step_seconds = step_seconds

    def steps(self, index: int, task: Train) -> int:
        return steps_of(task, self._step_seconds * self._homes[index].slow)

    def restarted(self, index: int) -> None: ...

    def answer(self, index: int, message: Message) -> Message:
        content = copied(message.content)
        name = self._homes[index].name
        if message.metadata.message_type == MessageType.TRAIN:
            task, payload = from_record(content, Train)
            assert payload is not None
            steps = self.steps(index, task)
            node = FakeNode(name, step=told_by(name, task.round))
            batch = task.training.batch_size
            record = node.update(task, payload, steps=steps, samples=steps * batch)
        elif kind_of(content) == Query.__name__:
            record = to_record(FakeNode(name).query_reply())
        else:
            record = to_record(Noted())
        return Message(record, reply_to=message)


def told_by(name: str, number: int) -> float:
    """A number near 1 that no other home and round has."""
    digest = hashlib.sha256(f"{name}/{number}".encode()).digest()
    return 1.0 + int.from_bytes(digest[:2], "big") / 2**17


class RealLearners:
    """The real ClientApp and learner; a machine that restarts forgets what its learner kept.

    Parameters
    ----------
    plan
        Its nodes are the homes, in order.
    keeps
        Whether a learner has on disk what it keeps between rounds.
    """

    def __init__(self, plan: Plan, homes: list[Home], step_seconds: float, *, keeps: bool) -> None:
        nodes = [
            node.model_copy(update={"name": home.name, "slow": step_seconds * home.slow})
            for node, home in zip(plan.nodes, homes, strict=True)
        ]
        self._plan = plan.model_copy(update={"nodes": nodes})
        self._app = VirtualApp(self._plan)
        self._keeps = keeps

    def steps(self, index: int, task: Train) -> int:
        return steps_of(task, self._plan.nodes[index].slow)

    def restarted(self, index: int) -> None:
        if not self._keeps:
            name = self._plan.nodes[index].name
            (self._plan.state / f"{name}.safetensors").unlink(missing_ok=True)

    def answer(self, index: int, message: Message) -> Message:
        context = Context(
            run_id=1,
            node_id=index + 1,
            node_config={PARTITION: index},
            state=RecordDict(),
            run_config={},
        )
        return self._app(message, context)
