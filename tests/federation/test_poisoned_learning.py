"""One of four nodes poisons every round: whether the others' policy still learns.

Real learners, policies and evaluation; messages go from hand to hand. What is left of success in
closed loop after whole trainings is measured by ``make results`` (docs/results.md, One poisoned of
four).
"""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Context

from tests.federation.test_in_process import Lab, lab  # noqa: F401 - a fixture
from zk0d.config.machine import SOCKET_KEY
from zk0d.federation import client_app
from zk0d.federation.learner_client import LearnerClient, Progress
from zk0d.federation.messages import Train, TrainReply
from zk0d.federation.update import Payload

pytestmark = [pytest.mark.slow, pytest.mark.long]

NODES = 4
POISONER = "n3"
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 3,
    "min-fit-clients": 3,
    "eval-frequency": 3,
    "eval-rollouts": 0,
    # Strikes and outliers are refused elsewhere; here the poison comes every round.
    "max-strikes": 0,
    "norm-outlier-factor": 0.0,
}
#: What the plain mean is replaced by.
DEFENDED: dict[str, dict[str, Any]] = {
    "trimmed mean": {"aggregation": "trimmed-mean"},
    "norm clipping": {"norm-clip-factor": 1.0},
}


class HostileLearner(LearnerClient):
    """Turns one node's updates and variates round and makes them four times as long.

    It stands where a hostile owner would: between the learner and the ClientApp, which sends what
    it is given whichever way it travels.
    """

    turned = 0  #: updates

    def train(
        self, task: Train, weights: Payload, progress: Progress = lambda _: None
    ) -> tuple[TrainReply, Payload]:
        reply, payload = super().train(task, weights, progress)
        if reply.name != POISONER:
            return reply, payload
        assert payload.companion("variates") is not None
        update, *beside = map(turned, (payload, *payload.beside))
        HostileLearner.turned += 1
        return reply, update.with_beside(*beside)


def reach(context: Context) -> LearnerClient:
    return HostileLearner(str(context.node_config[SOCKET_KEY]), streams=True)


def turned(payload: Payload) -> Payload:
    arrays = {name: -4.0 * array for name, array in payload.arrays().items()}
    return Payload.of(arrays, payload.manifest.kind, payload.manifest.codec)


def losses(
    lab: Lab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    **more: Any,
) -> tuple[float, float]:
    """On held-out recordings, before the first round and after the last one."""
    for number in range(NODES):
        lab.contribute(f"n{number}")
    monkeypatch.setattr(HostileLearner, "turned", 0)
    with client_app.reached_by(reach):
        lines = lab.run(monkeypatch, {**SETTINGS, **more})
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert HostileLearner.turned == SETTINGS["num-server-rounds"], "its every update is poison"
    left = [path for path in (lab.folder / "transfer").rglob("*") if path.is_file()]
    assert not left, "it came by files, as all updates here do"
    assert len(committed[-1]["nodes"]) == NODES, "the poisoner takes part in every round"
    return committed[0]["evaluation"]["loss"], committed[-1]["evaluation"]["loss"]


@pytest.mark.parametrize("defence", DEFENDED)
def test_with_a_defence_it_learns(
    lab: Lab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    defence: str,
    record_property: Any,
) -> None:
    before, after = losses(lab, monkeypatch, **DEFENDED[defence])
    record_property("attack", f"turned round x4, {defence}")
    record_property("became", f"loss {before:.3f} -> {after:.3f}")
    assert after < 0.8 * before


def test_with_a_plain_mean_it_unlearns(
    lab: Lab,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    """The yardstick: without a defence the same poison does harm."""
    before, after = losses(lab, monkeypatch)
    record_property("attack", "turned round x4, plain mean")
    record_property("became", f"loss {before:.3f} -> {after:.3f}")
    assert after > before
