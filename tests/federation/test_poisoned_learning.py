"""One of four nodes poisons every round: what is left of success in closed loop. Prints a table.

Real learners, policies and evaluation; messages go from hand to hand. All nodes record the same
half of the table, other episodes each: what is measured is the poison and not the missing data.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flwr.app import Message

from tests.federation import test_in_process
from tests.federation.fakes import _copied
from tests.federation.test_in_process import DirectGrid, Lab
from zk0d.demo.recordings import make_recordings
from zk0d.federation.envelope import from_record, to_record
from zk0d.federation.messages import TrainReply
from zk0d.federation.update import Payload
from zk0d.simulators.task import Sector

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NODES, DEMONSTRATIONS, HELD_OUT = 4, 25, 4
POISONER = "n3"
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 14,
    "local-steps": 50,
    "batch-size": 32,
    "initial-lr": 2e-3,
    "weight-decay": 0.01,
    "min-fit-clients": 3,
    "eval-frequency": 14,
    "eval-rollouts": 40,
    # Strikes and outliers are refused elsewhere; here the poison comes every round.
    "max-strikes": 0,
    "norm-outlier-factor": 0.0,
}
#: What the plain mean is replaced by.
DEFENDED: dict[str, dict[str, Any]] = {
    "trimmed mean": {"aggregation": "trimmed-mean", "trim-fraction": 0.25},
    "norm clipping": {"norm-clip-factor": 1.0},
}


class PoisonedGrid(DirectGrid):
    """Turns one node's updates round and makes them four times as long."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        answers = super().pull_messages(message_ids)
        for answer in answers:
            poison(answer)
        return answers


def poison(answer: Message) -> None:
    if answer.has_error() or "payload" not in answer.content:
        return
    record = _copied(answer.content)
    reply, payload = from_record(record, TrainReply)
    if reply.name != POISONER or payload is None:
        return
    turned = {name: -4.0 * array for name, array in payload.arrays().items()}
    answer.content = to_record(reply, Payload.of(turned, "delta", payload.manifest.codec))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("poison")
    make_recordings(folder / "held-out", Sector(0, 2), HELD_OUT, first_seed=900)
    with ExitStack() as stack:
        made = Lab(folder, folder / "held-out", stack)
        for number in range(NODES):
            recordings = folder / f"recordings-{number}"
            make_recordings(recordings, Sector(0, 2), DEMONSTRATIONS, first_seed=1000 * number)
            made.contribute(f"n{number}", **{"dataset-uri": f"local:{recordings}"})
        yield made


def success(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, grid: type[DirectGrid], **more: Any
) -> float:
    shutil.rmtree(lab.folder / "runs", ignore_errors=True)
    monkeypatch.setattr(test_in_process, "DirectGrid", grid)
    lines = lab.run(monkeypatch, **{**SETTINGS, **more})
    committed = [line for line in lines if line["kind"] == "round.committed"]
    assert len(committed[-1]["nodes"]) == NODES, "the poisoner takes part in every round"
    return float(committed[-1]["evaluation"]["success"])


@pytest.mark.parametrize("defence", DEFENDED)
def test_one_of_four_poisons_every_round(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, defence: str, record_property: Any
) -> None:
    found = success(lab, monkeypatch, PoisonedGrid, **DEFENDED[defence])
    record_property("attack", f"turned round x4, {defence}")
    record_property("became", f"success {found:.2f}")
    assert found >= 0.9, "without the poison 1.00 was measured"


def test_a_plain_mean_is_poisoned(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    """The yardstick: without a defence the same poison does harm."""
    found = success(lab, monkeypatch, PoisonedGrid)
    record_property("attack", "turned round x4, plain mean")
    record_property("became", f"success {found:.2f}")
    assert found < 0.5
