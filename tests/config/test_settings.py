from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from zk0d.config.base import known_keys
from zk0d.config.families import FAMILIES
from zk0d.config.machine import ClientSettings, LearnerSettings, ServerSettings
from zk0d.config.names import DatasetUri
from zk0d.config.run import RunSettings, parse_overrides, run_key, run_settings, stored_settings
from zk0d.errors import ConfigError, DataError, ExitCode, UsageError

Write = Callable[[str, str], Path]


def test_client_settings_are_read(write: Write) -> None:
    path = write(
        "client.toml",
        'name = "left-bench"\ndataset-uri = "local:/data/reach"\n[cameras]\nfront = "top"\n'
        '[learner]\ncpu-threads = 2\n[learner.cache]\nmemory-gib = 1.5\n[models]\nbase = "/m"\n',
    )
    settings = ClientSettings.load(path)
    assert settings.name == "left-bench"
    assert settings.cameras == {"front": "top"}
    assert settings.learner.cpu_threads == 2
    assert settings.learner.cache.memory_gib == 1.5
    assert settings.models["base"] == Path("/m")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "a"\nlearnr = 1\n', "unknown key 'learnr' (did you mean 'learner'?)"),
        ('name = "a"\n[learner]\ndevise = "cpu"\n', "'learner.devise' (did you mean 'device'?)"),
        ('name = "a"\n[learner.cache]\nmemory = 1\n', "'learner.cache.memory'"),
        ("", "'name' is missing"),
        ('name = "My Robot"\n', "a name is 1 to 32 of a-z"),
        ('name = "a"\ndataset-uri = "ftp:x"\n', "write hf:user/name, user/name or local:/folder"),
        ('name = "a"\ndataset-uri = "~/arm"\n', "'~/arm' is another folder for each user"),
        ('name = "a"\ndataset-uri = "local:~/arm"\n', "write the whole path, such as local:/home"),
        ('name = "a"\ndataset-uri = "local:arm"\n', "write the whole path, such as local:/home"),
        ('name = "a"\n[learner]\ncpu-threads = -1\n', "'learner.cpu-threads' is wrong"),
        ("name = \n", "not valid TOML"),
    ],
)
def test_a_wrong_client_setting_is_one_sentence_with_its_path(
    write: Write, text: str, said: str
) -> None:
    path = write("client.toml", text)
    with pytest.raises(ConfigError) as error:
        ClientSettings.load(path)
    assert said in error.value.message
    assert str(path) in error.value.message
    assert "\n" not in error.value.message
    assert error.value.exit_code is ExitCode.CONFIG


def test_a_wrong_key_inside_a_list_is_found(write: Write) -> None:
    path = write("server.toml", '[[evaluation]]\nname = "a"\nuri = "local:/x"\n')
    with pytest.raises(ConfigError, match=r"evaluation\.0\.dataset-uri' is missing"):
        ServerSettings.load(path)


@pytest.mark.parametrize(
    ("learner", "said"),
    [
        ('devices = ["cpu", "cuda:0"]', "'learner.devices.0' is wrong: 'cpu' is not a GPU; use"),
        ('devices = ["cuda"]', "'learner.devices.0' is wrong: 'cuda' is not a GPU; use cuda:N"),
        ('devices = ["cuda:1", "cuda:1"]', "'learner' is wrong: devices names one twice: cuda:1"),
        ('device = "cuda:0"\ndevices = ["cuda:1"]', "names device and devices; leave one of"),
    ],
)
def test_gpus_that_cannot_share_a_batch_are_refused(write: Write, learner: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ClientSettings.load(write("client.toml", f'name = "a"\n[learner]\n{learner}\n'))
    assert said in refused.value.message


def test_a_learner_trains_on_all_its_devices(write: Write) -> None:
    text = 'name = "a"\n[learner]\ndevices = ["cuda:1", "cuda:0"]\n'
    both = ClientSettings.load(write("client.toml", text))
    assert both.learner.all_devices == ("cuda:1", "cuda:0")
    assert LearnerSettings().all_devices == ("auto",)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such settings file"):
        ClientSettings.load(tmp_path / "nothing.toml")


@pytest.mark.parametrize(
    ("text", "scheme", "location"),
    [
        ("lerobot/pusht", "hf", "lerobot/pusht"),
        ("hf:lerobot/pusht", "hf", "lerobot/pusht"),
        ("local:/a b/c:d", "local", "/a b/c:d"),
    ],
)
def test_dataset_addresses(text: str, scheme: str, location: str) -> None:
    assert DatasetUri.parse(text) == DatasetUri(scheme, location)


def test_a_typed_dataset_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arm" / "cubes").mkdir(parents=True)
    for typed, folder in (
        ("arm", "arm"),
        ("./arm", "arm"),
        ("arm/cubes", "arm/cubes"),
        ("local:arm", "arm"),
        (f"{tmp_path}/typo", "typo"),
        ("typo", "typo"),
        ("a/b/c", "a/b/c"),
        ("../x", "../x"),
    ):
        meant = DatasetUri("local", str((tmp_path / folder).resolve()))
        assert DatasetUri.typed(typed) == meant, typed
    assert DatasetUri.typed("~/arm").folder == Path.home() / "arm"
    assert DatasetUri.typed("ann/cubes") == DatasetUri("hf", "ann/cubes")
    assert DatasetUri.typed("hf:arm/typo") == DatasetUri("hf", "arm/typo")
    with pytest.raises(DataError, match=r"no folder .*/arm/typo; .*hf:arm/typo for the hub's"):
        DatasetUri.typed("arm/typo")
    with pytest.raises(UsageError, match="there is no home of nobody-has-this-name"):
        DatasetUri.typed("~nobody-has-this-name/arm")
    for nothing in ("", "hf:", "hf:arm", "hf:a/b/c"):
        with pytest.raises(UsageError, match="not a dataset address"):
            DatasetUri.typed(nothing)


@pytest.mark.parametrize(
    ("written", "kept"),
    [("/data/arm", "local:/data/arm"), ("ann/cubes", "ann/cubes")],
)
def test_settings_take_a_plain_folder(written: str, kept: str) -> None:
    assert (
        ClientSettings.parse({"name": "a", "dataset-uri": written}, where="x").dataset_uri == kept
    )


@pytest.mark.parametrize("text", ["", "pusht", "hf:", "local:", "http://x/y", "hf:a/b/c", "a/b/c"])
def test_a_wrong_dataset_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a dataset address"):
        DatasetUri.parse(text)


@pytest.mark.parametrize("text", ["~/x", "~ann/x", "./x", "../x", "local:x", "local:~/x"])
def test_settings_take_no_folder_that_depends_on_who_reads_them(text: str) -> None:
    with pytest.raises(ValueError, match="is another folder for each user and place; write the"):
        DatasetUri.parse(text)


def test_old_spellings_are_mapped() -> None:
    assert parse_overrides(["batch_size=4 proximal_mu=0.1", 'policy="act"']) == {
        "batch-size": 4,
        "proximal-mu": 0.1,
        "policy": "act",
    }


def test_a_bare_word_is_a_text() -> None:
    assert parse_overrides(["model-name=lerobot/smolvla_base"]) == {
        "model-name": "lerobot/smolvla_base"
    }


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lokal-steps", "did you mean 'local-steps'"),
        ("eval_batches", "is now 'eval-frames'"),
        ("local-epochs", "is now 'local-steps'"),
        ("eval-mode", "was removed \\(eval-frames = 0 evaluates every frame\\); leave it out"),
        ("trim-fraction", "leaves out a quarter at each end\\); leave it out"),
        ("zzz", "unknown run setting 'zzz'."),
    ],
)
def test_an_unknown_run_setting_is_an_error(key: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_key(key)


@pytest.mark.parametrize("text", ["rounds", "=3", "'open"])
def test_a_wrong_override_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_overrides([text])


def test_a_run_of_version_0_1_is_still_read() -> None:
    values = {"local-steps": 60, "local-epochs": 0, "eval-mode": "full", "eta-min": 5e-7}
    settings = run_settings(stored_settings({**values, "seed": 7}))
    assert (settings.seed, settings.training.local_steps) == (7, 60)
    assert settings.evaluation.eval_frames == 0, "full was every frame"
    assert run_settings(stored_settings({"local-epochs": 9})).training.local_steps == 9


@pytest.mark.parametrize(("used", "project"), [(False, ""), (True, "arms")])
def test_an_old_run_logs_to_its_project_only_if_it_did(used: bool, project: str) -> None:
    old = {"use-wandb": used, "wandb-project": "arms", "strike-cooldown": 10}
    assert run_settings(stored_settings(old)).release.wandb_project == project


def test_a_wrong_value_is_named_by_its_flat_key() -> None:
    with pytest.raises(ConfigError, match=r"^run: 'batch-size' is wrong: "):
        RunSettings.parse({"batch-size": 0}, where="run")
    with pytest.raises(ConfigError, match=r"unknown key 'bach-size' \(did you mean 'batch-size'"):
        RunSettings.parse({"bach-size": 1}, where="run")


def test_no_two_tables_of_a_run_share_a_key() -> None:
    keys = known_keys(RunSettings)
    assert len(keys) == len(set(keys))
    assert not set(keys) & (RunSettings.tables().keys() - {"aggregation"})


def test_a_run_sends_given_settings_even_if_they_are_the_defaults() -> None:
    assert run_settings({"keep-rounds": 3, "seed": 1}).said() == {"keep-rounds": 3, "seed": 1}


@pytest.mark.parametrize("policy", FAMILIES)
def test_the_policy_fills_in_values_that_count_as_not_given(policy: str) -> None:
    given = {key: "auto" for key, value in RunSettings.flat_defaults().items() if value == "auto"}
    assert given.keys() == {
        *("model-name", "batch-size", "weight-decay", "initial-lr", "warmup-steps"),
        "drift-correction",
    }
    settings = run_settings({"policy": policy, **given})
    assert settings == run_settings({"policy": policy})
    assert settings.said() == {"policy": policy}
    known, flat = FAMILIES[policy], settings.to_flat()
    assert "auto" not in flat.values()
    assert flat["model-name"] == known.base
    assert {key: flat[key] for key in ("batch-size", "initial-lr")} == {
        "batch-size": known.usual.batch_size,
        "initial-lr": known.usual.initial_lr,
    }
    kept = run_settings({"policy": policy, "batch-size": 3, "warmup-steps": 0})
    assert (kept.training.batch_size, kept.schedule.warmup_steps) == (3, 0)


@pytest.mark.parametrize(
    ("given", "corrects"),
    [
        ({}, True),
        ({"drift-correction": "auto"}, True),
        ({"adapter": "lora"}, False),
        ({"adapter": "lora", "drift-correction": "auto"}, False),
        ({"adapter": "lora", "drift-correction": "control-variates"}, True),
    ],
)
def test_an_adapter_trains_without_drift_correction_unless_it_is_asked_for(
    given: dict[str, str], corrects: bool
) -> None:
    settings = run_settings(given)
    wanted = "control-variates" if corrects else "none"
    assert settings.to_flat()["drift-correction"] == wanted
    said = {key: value for key, value in given.items() if value != "auto"}
    assert settings.said() == said


def test_the_coordinators_policy_fills_in_numbers_that_a_run_leaves_out(write: Write) -> None:
    server = ServerSettings.load(write("server.toml", '[run]\npolicy = "act"\n'))
    # As Flower sends it: without the settings that nobody gave.
    settings = server.run_settings(run_settings({"seed": 3}).said())
    assert settings.training.batch_size == FAMILIES["act"].usual.batch_size


def test_the_schema_takes_auto_where_the_settings_do() -> None:
    schema = RunSettings.flat_schema()
    for key, default in RunSettings.flat_defaults().items():
        takes_auto = Draft202012Validator(schema["properties"][key]).is_valid("auto")
        if not isinstance(RunSettings().to_flat()[key], str):
            assert takes_auto == (default == "auto"), key


@pytest.mark.parametrize("key", ["seed", "num-server-rounds", "max-strikes"])
def test_only_values_that_the_policy_decides_can_be_auto(key: str) -> None:
    with pytest.raises(ConfigError, match=f"'{key}' is wrong"):
        run_settings({key: "auto"})


def test_the_coordinator_fills_in_settings_that_a_run_leaves_out(write: Write) -> None:
    path = write("server.toml", "[run]\nkeep-checkpoints = 9\nmax-strikes = 5\n")
    server = ServerSettings.load(path)
    settings = server.run_settings({"max-strikes": 3})
    assert (settings.release.keep_checkpoints, settings.admission.max_strikes) == (9, 3)
    for wrong in ("keep-chekpoints = 9", "max-strikes = -1", 'resume = "7"'):
        with pytest.raises(ConfigError, match="'run' is wrong: "):
            ServerSettings.load(write("server.toml", f"[run]\n{wrong}\n"))


@pytest.mark.parametrize(
    "values",
    [
        {"local-steps": 0},
        {"round-minutes": -1},
        {"round-minutes": float("nan")},
        {"round-minutes": float("inf")},
        {"server-momentum": 1.0},
        {"fraction-fit": 0.0},
        {"dataset-uri": "nonsense"},
        {"num-server-rounds": "many"},
    ],
)
def test_impossible_values_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        run_settings(values)


@pytest.mark.parametrize("minutes", [60.0, 61.5])
def test_a_round_has_time_for_more_than_training(minutes: float) -> None:
    with pytest.raises(ConfigError, match=r"round-minutes = 6.* s of training, and round-deadline"):
        run_settings({"round-minutes": minutes})
    longer = run_settings({"round-minutes": minutes, "round-deadline": 4000.0})
    assert longer.training.round_minutes == minutes


def test_settings_survive_flowers_flat_form() -> None:
    settings = run_settings({"num-server-rounds": 3, "policy": "act", "initial-lr": 2e-3})
    assert RunSettings.parse(settings.to_flat(), where="flower") == settings
    assert settings.total_steps == 120


def test_a_partly_given_evaluator_keeps_its_own_socket(write: Write) -> None:
    path = write("server.toml", '[evaluator]\ndevice = "cpu"\n')
    assert ServerSettings.load(path).evaluator.socket == Path("/run/zk0d/evaluator.sock")


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("http://127.0.0.1:9480/zk0d/v1", True),
        ("http://localhost:9480/zk0d/v1", True),
        ("https://hub.example:9443/zk0d/v1", True),
        ("http://hub.example:9480/zk0d/v1", False),
        ("http://127.0.0.1.evil.example/zk0d/v1", False),
        ("http://192.0.2.1/zk0d/v1", False),
    ],
)
def test_without_tls_only_loopback_is_asked(url: str, fine: bool) -> None:
    values = {"name": "left", "coordinator": {"presence": url}}
    if fine:
        ClientSettings.parse(values, where="x")
        return
    with pytest.raises(ConfigError, match="has no TLS, so anybody could answer in its place"):
        ClientSettings.parse(values, where="x")


@pytest.mark.parametrize(
    ("parse", "said"),
    [
        (lambda: run_settings({"policy": "smolvia"}), "run settings: 'policy' is wrong: 'smolvia'"),
        (
            lambda: ClientSettings.parse(
                {"name": "a", "limits": {"policies": ["act", "smolvia"]}}, where="client.toml"
            ),
            "client.toml: 'limits.policies.1' is wrong: 'smolvia'",
        ),
    ],
)
def test_an_unknown_policy_is_named_with_the_nearest_known_one(
    parse: Callable[[], object], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parse()
    assert error.value.message == (
        f"{said} is none of {', '.join(FAMILIES)} (did you mean 'smolvla'?)."
    )


@pytest.mark.parametrize("policy", FAMILIES)
def test_every_family_is_a_policy_of_runs_and_sites(policy: str) -> None:
    assert run_settings({"policy": policy}).policy == policy
    assert policy in ClientSettings(name="a").limits.policies


def test_a_backbones_rate_needs_a_backbone() -> None:
    given = {"backbone-lr-factor": 0.1}
    assert run_settings({"policy": "act", **given}).training.backbone_lr_factor == 0.1
    with pytest.raises(ConfigError, match="backbone-lr-factor: smolvla trains no backbone"):
        run_settings({"policy": "smolvla", **given})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"adapter": "lora", "adapter-rank": 0}, "'adapter-rank' is wrong: .* greater than 0"),
        ({"adapter": "dora"}, "'adapter' is wrong: .* 'none' or 'lora'"),
        ({"adapter-rank": 8}, "adapter-rank is an adapter's; add adapter=lora"),
        (
            {"policy": "act", "adapter": "lora"},
            "adapter: LeRobot does not say which layers of act to adapt, it does of smolvla",
        ),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_settings(given)


def test_an_adapter_has_lerobots_rank() -> None:
    from lerobot.configs.default import PeftConfig

    assert run_settings({"adapter": "lora"}).adapter_rank == PeftConfig().r
