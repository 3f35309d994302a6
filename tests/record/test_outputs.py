"""zk0's files, field by field, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.record.lines import event
from zk0d.config.run import run_settings
from zk0d.learning.spec import PolicySpec
from zk0d.record.outputs import SCHEMAS, Outputs, run_config
from zk0d.record.state import RunState

SCHEMA_FOLDER = Path(__file__).parents[2] / "docs" / "schemas"

SPEC = PolicySpec(
    policy="act",
    model_name="tiny",
    seed=0,
    fps=30,
    state_width=9,
    action_width=6,
    cameras={"top": (3, 96, 96)},
)


def node(name: str, loss: float, samples: int) -> dict[str, Any]:
    return {
        "node": name,
        "key": "k" + name,
        "samples": samples,
        "steps": 10,
        "loss": loss,
        "policy_loss": loss - 0.1,
        "proximal_loss": 0.1,
        "holdout_loss": 0.7,
        "holdout_frames": 0,
        "grad_norm": 2.0 * loss,
        "update_norm": 0.5,
        "learning_rate": 1e-4,
        "bad_batches": 3,
        "dataset_frames": 300,
        "bytes_up": 40,
        "bytes_down": 80,
        "sha256": "f" * 64,
        "answer_seconds": 9.0,
        "seconds": {"load": 1.0, "train": 5.0, "encode": 0.5, "evaluate": 0.25, "transfer": 2.5},
    }


def line(
    number: int, *, loss: float | None = 0.4, names: tuple[str, ...] = ("Left", "right")
) -> Any:
    evaluation = {
        "loss": loss,
        "success": 0.75,
        "datasets": [
            {"name": "x", "loss": 0.3, "frames": 40, "success": 0.75, "rollouts": 4, "error": None},
            {
                "name": "y",
                "loss": None if loss is None else 0.5,
                "frames": 0 if loss is None else 20,
                "success": None,
                "rollouts": 0,
                "error": "the disk is gone" if loss is None else None,
            },
        ],
    }
    base: dict[str, Any] = {"time": 1.0, "run": "7", "kind": "round.committed", "round": number}
    if not number:
        return event(**base, evaluation=evaluation)
    facts: dict[str, Any] = {
        "nodes": [node(names[0], 1.0, 30), node(names[1], 3.0, 10)],
        "refused": {"bad": "not_finite"},
        "lost": {"gone": "offline"},
        "samples": 40,
        "train_loss": 1.4,
        "proximal_loss": 0.1,
        "holdout_loss": 0.7,
        "learning_rate": 2e-4,
        "proximal_mu": 0.01,
        "reasons": ["stall"],
        "boosts": {},
        "codec": {"uplink": "int8", "downlink": "bf16"},
        "aggregation": "mean",
        "weights_norm": 9.0,
        "mean_update_norm": 0.25,
        "bytes_down": 160,
        "bytes_up": 81,
        "seconds": {"send": 1.0, "collect": 9.0, "aggregate": 0.5, "evaluate": 2.0, "commit": 0.1},
        "evaluation": evaluation,
    }
    return event(**base, **facts)


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    made = Outputs(tmp_path, "7", run_settings({"seed": 5}))
    made.model(SPEC)
    return made


def read(folder: Path, name: str) -> Any:
    def no_constant(text: str) -> Any:
        raise AssertionError(f"{name} holds {text}")

    return json.loads((folder / name).read_text(), parse_constant=no_constant)


def test_a_round(outputs: Outputs, tmp_path: Path) -> None:
    outputs.committed(line(0))
    outputs.committed(line(1))
    content = read(tmp_path, "server/round_1_server_eval.json")
    assert content["server_composite_eval_loss"] == 0.4
    together = content["client_aggregated_training_metrics"]
    assert together["avg_client_loss"] == 2.0
    assert together["std_client_loss"] == 1.0, "of the population"
    assert together["avg_client_proximal_loss"] == pytest.approx(0.1)
    assert together["avg_client_grad_norm"] == 4.0
    assert together["num_clients"] == 2
    assert together["param_update_norm"] == 0.25
    assert together["weighted_client_loss"] == pytest.approx((30 * 1.0 + 10 * 3.0) / 40)
    assert together["weighted_client_policy_loss"] == 1.4
    single = content["individual_client_training_metrics"]
    assert [(each["client_id"], each["round"]) for each in single] == [("Left", 1), ("right", 1)]
    assert single[0]["param_hash"] == "f" * 64
    assert single[1]["policy_loss"] == 2.9
    assert content["applied_lr"] == 2e-4
    assert content["applied_mu"] == 0.01
    assert content["scheduler_reason"] == ["stall"]
    assert content["refusals"] == {"bad": "not_finite"}
    assert content["lost_clients"] == {"gone": "offline"}
    assert content["seconds_eval"] == 2.0
    assert content["seed"] == 5
    assert content["num_server_eval_datasets"] == 2
    first = content["server_per_dataset_eval_results"][0]
    assert (first["dataset_name"], first["evaldata_id"], first["num_examples"]) == ("x", 0, 40)
    assert first["metrics"]["action_dim"] == 6
    assert read(tmp_path, "clients/left/round_1.json") == single[0]
    assert single[0] == {
        "schema_version": 1,
        "run_id": "7",
        "round": 1,
        "client_id": "Left",
        "dataset_name": None,
        "loss": 1.0,
        "policy_loss": 0.9,
        "fedprox_loss": 0.1,
        "grad_norm": 2.0,
        "param_hash": "f" * 64,
        "num_steps": 10,
        "num_samples": 30,
        "dataset_frames": 300,
        "param_update_norm": 0.5,
        "holdout_loss": 0.7,
        "applied_lr": 1e-4,
        "bad_batches": 3,
        "bytes_up": 40,
        "bytes_down": 80,
        "seconds_load": 1.0,
        "seconds_train": 5.0,
        "seconds_encode": 0.5,
        "seconds_evaluate": 0.25,
        "seconds_transfer": 2.5,
    }
    assert (content["bytes_up"], content["bytes_down"]) == (81, 160)
    assert content["seconds_commit"] == 0.1
    assert together["weighted_holdout_loss"] == 0.7
    assert read(tmp_path, "server/federated_metrics.json") == [
        {
            "schema_version": 1,
            "run_id": "7",
            "round": 1,
            "num_clients": 2,
            "avg_policy_loss": pytest.approx(1.9),
            "avg_client_loss": 2.0,
            "param_update_norm": 0.25,
            "server_policy_loss": 0.4,
            "applied_lr": 2e-4,
            "applied_mu": 0.01,
            "bytes_up": 81,
            "bytes_down": 160,
        }
    ]


def test_nan_is_not_written(outputs: Outputs) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        outputs.committed(line(1, loss=float("nan")))


def test_the_histories_have_every_round(outputs: Outputs, tmp_path: Path) -> None:
    for number in range(13):
        outputs.committed(line(number, loss=1.0 - number / 100))
    history = read(tmp_path, "server/federated_metrics.json")
    assert [each["round"] for each in history] == list(range(1, 13))
    assert history[11]["server_policy_loss"] == pytest.approx(0.88)
    assert history[0]["avg_client_loss"] == 2.0
    losses = read(tmp_path, "server/policy_loss_history.json")
    assert list(losses) == [str(number) for number in range(13)]
    assert losses["12"] == {"server_policy_loss": pytest.approx(0.88), "action_dim": 6}


def test_a_failed_evaluation_is_missing(outputs: Outputs, tmp_path: Path) -> None:
    outputs.committed(line(1, loss=None))
    content = read(tmp_path, "server/round_1_server_eval.json")
    assert content["server_composite_eval_loss"] is None
    assert content["server_per_dataset_eval_results"][1]["loss"] is None
    assert content["server_per_dataset_eval_results"][1]["metrics"]["error"] == "the disk is gone"
    assert read(tmp_path, "server/policy_loss_history.json")["1"]["server_policy_loss"] is None
    outputs.committed(line(2).model_copy(update={"evaluation": None}))
    assert read(tmp_path, "server/round_2_server_eval.json")["num_server_eval_datasets"] == 0
    assert "2" not in read(tmp_path, "server/policy_loss_history.json"), "it was not evaluated"


def test_names_that_look_alike_keep_their_folders(outputs: Outputs, tmp_path: Path) -> None:
    outputs.committed(line(1, names=("robot-1", "robot.1")))
    outputs.committed(line(2, names=("robot.1", "robot-1")))
    assert {
        folder.name: read(folder, "round_2.json")["client_id"]
        for folder in (tmp_path / "clients").iterdir()
    } == {"robot_1": "robot-1", "robot_1_2": "robot.1"}


def test_a_resumed_run_is_followed(outputs: Outputs, tmp_path: Path) -> None:
    lines: list[Any] = [
        event("model.ready", spec=SPEC),
        line(0),
        line(1),
        line(2, loss=0.9),
        event("run.resumed", round=1, flower_run="8"),
    ]
    for each in (lines[1], lines[2], lines[3]):
        outputs.committed(each)
    (tmp_path / "server" / ".federated_metrics.json.partial").write_text('[{"half')
    again = Outputs(tmp_path, "7", run_settings({}))
    (tmp_path / "server" / "round_1_server_eval.json").write_text('{"torn')
    (tmp_path / "clients" / "left" / "round_1.json").unlink()
    state = RunState()
    for each in lines:
        state.apply(each)
    again.replay(state)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("round_*.json"))
    assert files == [
        "clients/left/round_1.json",
        "clients/right/round_1.json",
        "server/round_0_server_eval.json",
        "server/round_1_server_eval.json",
    ], "what is missing or torn is made again, what was given up is gone"
    assert read(tmp_path, "server/round_1_server_eval.json")["round"] == 1
    assert [each["round"] for each in read(tmp_path, "server/federated_metrics.json")] == [1]
    again.committed(line(2, loss=0.2))
    history = read(tmp_path, "server/federated_metrics.json")
    assert [(each["round"], each["server_policy_loss"]) for each in history] == [(1, 0.4), (2, 0.2)]
    assert read(tmp_path, "server/policy_loss_history.json")["2"]["action_dim"] == 6
    assert not list(tmp_path.glob("server/.*"))


def test_files_fit_their_schemas(outputs: Outputs, tmp_path: Path) -> None:
    outputs.committed(line(0))
    outputs.committed(line(1))
    config = run_config("7", run_settings({}), 1000.0)
    assert config["timestamp"] == "1970-01-01T00:16:40Z"
    files = {
        "config": [config],
        "round_server_eval": [
            read(tmp_path, f"server/round_{number}_server_eval.json") for number in (0, 1)
        ],
        "client_round": [read(tmp_path, "clients/right/round_1.json")],
        "federated_metrics_entry": read(tmp_path, "server/federated_metrics.json"),
        "policy_loss_history_entry": list(
            read(tmp_path, "server/policy_loss_history.json").values()
        ),
    }
    assert set(files) == set(SCHEMAS)
    for name, contents in files.items():
        schema = json.loads((SCHEMA_FOLDER / f"{name}.schema.json").read_text())
        assert contents
        for content in contents:
            jsonschema.validate(content, schema)
            wrong = {**content, "surprise": 1}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, schema)


def test_the_schemas_are_the_codes() -> None:
    for name, model in SCHEMAS.items():
        written = json.loads((SCHEMA_FOLDER / f"{name}.schema.json").read_text())
        assert written == model.model_json_schema(mode="serialization"), (
            "run python -m zk0d.record.outputs docs/schemas"
        )
