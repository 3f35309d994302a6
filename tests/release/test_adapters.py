"""Releases of runs that trained adapters, and what may begin from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.learner.tasks import train_task
from tests.release.test_checkpoint import evaluator, statistics_of  # noqa: F401
from tests.release.test_gate import summary
from zk0d.config.machine import ClientSettings
from zk0d.config.run import run_settings
from zk0d.errors import ConfigError
from zk0d.federation.messages import Release, Start, StartReply
from zk0d.federation.update import Payload, UpdateError
from zk0d.learner.contributor import Contributor
from zk0d.learner.evaluator import CoordinatorEvaluator
from zk0d.learner.tasks import TaskControl
from zk0d.learning import adapters
from zk0d.learning.spec import Adapter
from zk0d.release.checkpoint import Releases, base_of

pytestmark = pytest.mark.slow

LORA = Adapter(kind="lora", rank=4)
PLAIN = Start(policy="smolvla", model_name="tiny", seed=0)
ADAPTED = PLAIN.model_copy(update={"adapter": LORA})


def started(evaluator: CoordinatorEvaluator, start: Start) -> tuple[StartReply, Payload]:  # noqa: F811
    reply, payload = evaluator.run(start, None, TaskControl())
    assert isinstance(reply, StartReply)
    assert payload is not None
    return reply, payload


def release(evaluator: CoordinatorEvaluator, start: Start, run: str = "7") -> Path:  # noqa: F811
    """A run's first checkpoint, whose weights are those of its start and a half."""
    reply, payload = started(evaluator, start)
    moved = {name: array + 0.5 for name, array in payload.decode(consume=True)}
    weights = Payload.of(moved, "weights")
    given = {"adapter": start.adapter.kind, "adapter-rank": 4} if start.adapter else {}
    settings = run_settings({"model-name": "tiny", **given}).public()
    task = Release(
        run=run,
        round=1,
        spec=reply.spec,
        base=weights.manifest.sha256,
        statistics=statistics_of(evaluator),
        summary=summary(1.0, 0.5, run=run, settings=settings),
        keep=1,
    )
    evaluator.run(task, weights, TaskControl())
    return Releases.of(evaluator.settings).checkpoint(run, 1)


def test_a_run_begins_with_the_adapter_of_a_release(evaluator: CoordinatorEvaluator) -> None:  # noqa: F811
    folder = release(evaluator, ADAPTED)
    reply, payload = started(evaluator, ADAPTED.model_copy(update={"start_from": "latest"}))
    assert reply.start_from == "7/1"
    assert base_of(folder) == reply.spec.sha256
    for name, array in payload.decode(consume=True):
        assert (array == 0.5).all(), name
    assert "an adapter (lora, rank 4), which is merged" in (folder / "README.md").read_text()


def test_a_run_without_an_adapter_begins_with_the_merged_weights(
    evaluator: CoordinatorEvaluator,  # noqa: F811
) -> None:
    release(evaluator, ADAPTED)
    _, before = started(evaluator, PLAIN)
    _, after = started(evaluator, PLAIN.model_copy(update={"start_from": "latest"}))
    first, second = before.arrays(), after.arrays()
    changed = {name for name, array in second.items() if not np.array_equal(array, first[name])}
    targets = started(evaluator, ADAPTED)[0].spec.adapter
    assert targets is not None
    assert changed == {f"{name}.weight" for name in targets.targets}


@pytest.mark.parametrize(
    ("released", "asked", "said"),
    [
        (PLAIN, ADAPTED, "was trained without an adapter, and this run trains with lora of rank 4"),
        (
            ADAPTED,
            ADAPTED.model_copy(update={"adapter": Adapter(kind="lora", rank=8)}),
            "was trained with lora of rank 4, and this run trains with lora of rank 8",
        ),
        (
            ADAPTED,
            ADAPTED.model_copy(update={"seed": 3}),
            "was trained on another base than model 'tiny' of this run .seed 3.",
        ),
    ],
    ids=["none", "rank", "base"],
)
def test_a_run_does_not_begin_from_another_adapter(
    evaluator: CoordinatorEvaluator,  # noqa: F811
    released: Start,
    asked: Start,
    said: str,
) -> None:
    release(evaluator, released)
    with pytest.raises(ConfigError, match=f"start-from: .*{said}") as error:
        started(evaluator, asked.model_copy(update={"start_from": "latest"}))
    assert error.value.reason == "model_mismatch"


def test_a_merged_layer_that_would_not_train_is_refused(
    evaluator: CoordinatorEvaluator,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release(evaluator, ADAPTED)
    theirs = LORA.model_copy(update={"targets": ("model.vlm_with_expert.vlm.frozen",)})
    monkeypatch.setattr(adapters, "kept_in", lambda folder: theirs)
    with pytest.raises(ConfigError, match="this run trains without an adapter"):
        started(evaluator, PLAIN.model_copy(update={"start_from": "latest"}))


def test_a_node_refuses_weights_of_another_rank(
    evaluator: CoordinatorEvaluator,  # noqa: F811
    recordings_folder: Path,
) -> None:
    settings = ClientSettings.parse(
        {"name": "left", "dataset-uri": f"local:{recordings_folder}", "learner": {"device": "cpu"}},
        where="test",
    )
    spec = started(evaluator, ADAPTED)[0].spec
    other = ADAPTED.model_copy(update={"adapter": Adapter(kind="lora", rank=8)})
    _, weights = started(evaluator, other)
    task = train_task(spec, weights, statistics_of(evaluator).of(""))
    with pytest.raises(UpdateError, match=r"\[\d+, 8\] at the coordinator and \[\d+, 4\] here"):
        Contributor(settings).run(task, weights, TaskControl())
