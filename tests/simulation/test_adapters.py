"""A federation whose nodes train adapters: what travels, how it learns, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from tests.simulation.test_simulation import SMALL, lines_of, make, uri, weights  # noqa: F401
from zk0d.federation import model
from zk0d.federation.aggregate import Combined, aggregate
from zk0d.learning import adapters
from zk0d.learning.policy import load_policy
from zk0d.learning.spec import PolicySpec
from zk0d.record.journal import committed_rounds
from zk0d.record.state import RunState
from zk0d.simulation.alone import TrainOptions, train_alone
from zk0d.simulation.engine import simulate
from zk0d.simulation.main import read_plan, write_plan

pytestmark = pytest.mark.slow

LORA: dict[str, Any] = {"adapter": "lora", "adapter-rank": 4, "initial-lr": 1e-2}
#: Of B of the small SmolVLA: a column of each of its layers for each of four ranks.
VALUES = 4 * 432


def spec_of(run: Path) -> PolicySpec:
    spec = RunState.read(run).spec
    assert spec is not None
    return spec


def test_only_adapters_travel_and_they_learn(tmp_path: Path, uri: str) -> None:  # noqa: F811
    settings = {**LORA, "local-steps": 12, "uplink-codec": "fp32"}
    run = simulate(make(tmp_path / "s", uri, settings))
    rounds = lines_of(run, "round.committed")
    losses = [line["evaluation"]["loss"] for line in rounds]
    assert losses[-1] < losses[0]
    assert not lines_of(run, "update.refused"), "the first weights are zeros, and no cap is passed"
    for number in range(len(rounds)):
        arrays = load_file(run / "rounds" / f"{number:05d}" / "global.safetensors")
        assert sum(array.size for array in arrays.values()) == VALUES
        assert all("lora_B" in name for name in arrays)
    for line in rounds[1:]:
        for node in line["nodes"]:
            # An update, four bytes a value, and weights as bf16; no variate.
            assert node["bytes_up"] == 4 * VALUES
            assert node["bytes_down"] == 2 * VALUES


def test_the_base_stays_what_it_was(tmp_path: Path, uri: str) -> None:  # noqa: F811
    run = simulate(make(tmp_path / "s", uri, LORA))
    spec = spec_of(run)
    loaded = load_policy(spec, device="cpu")
    assert loaded.spec == spec, "the base's hash after the run is that of before"
    plain = load_policy(spec.model_copy(update={"adapter": None, "sha256": ""}), device="cpu")
    merged = {n: p.detach().numpy() for n, p in plain.policy.named_parameters()}
    loaded.load_weights(load_file(run / "rounds" / "00002" / "global.safetensors"))
    assert spec.adapter is not None
    moved = {f"{name}.weight" for name in spec.adapter.targets}
    with adapters.merged(loaded.policy):
        for name, values in loaded.policy.named_parameters():
            assert np.array_equal(values.detach().numpy(), merged[name]) == (name not in moved)


@pytest.mark.parametrize(
    "codecs",
    [
        {"uplink-codec": "int4", "variate-codec": "int4", "drift-correction": "control-variates"},
        {"downlink-codec": "int8-delta", "aggregation": "median"},
    ],
    ids=["int4 and variates", "median of differences"],
)
def test_codecs_and_rules_take_them_as_any_weights(
    tmp_path: Path,
    uri: str,  # noqa: F811
    codecs: dict[str, Any],
) -> None:
    runs = [simulate(make(tmp_path / n, uri, {**LORA, **codecs})) for n in "ab"]
    assert weights(runs[0]) == weights(runs[1]), "it repeats bit by bit"
    assert not lines_of(runs[0], "update.refused")


def test_an_interrupted_run_resumes_with_its_adapter(
    tmp_path: Path,
    uri: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = simulate(make(tmp_path / "whole", uri, LORA))
    broken = make(tmp_path / "broken", uri, LORA)
    write_plan(broken)
    real, calls = aggregate, []

    class Killed(BaseException):
        pass

    def deadly(*args: Any) -> Combined:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return real(*args)

    monkeypatch.setattr(model, "aggregate", deadly)
    with pytest.raises(Killed):
        simulate(broken)
    assert committed_rounds(broken.run_folder) == [0, 1]
    run = simulate(read_plan(tmp_path / "broken"))
    assert weights(run) == weights(whole)
    assert spec_of(run) == spec_of(whole)


def test_training_alone_writes_both_forms(tmp_path: Path, uri: str) -> None:  # noqa: F811
    options = TrainOptions(
        dataset=uri,
        overrides=tuple({**SMALL, "model-name": "tiny", "num-server-rounds": 1, **LORA}.items()),
        device="cpu",
        folder=tmp_path / "t",
    )
    checkpoint = train_alone(options, Console(quiet=True))
    config = json.loads((checkpoint / adapters.FOLDER / adapters.ADAPTER_CONFIG).read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (4, "tiny")
    arrays = load_file(checkpoint / adapters.FOLDER / adapters.ADAPTER_WEIGHTS)
    assert sum(each.size for name, each in arrays.items() if "lora_B" in name) == VALUES
