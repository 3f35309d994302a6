"""A hostile base model runs nothing: it is refused before anything reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.learning.test_policy import saved
from zk0d.errors import UnavailableError
from zk0d.learning.policies.base import LoadedPolicy
from zk0d.learning.policy import load_policy, spec_for
from zk0d.learning.recordings import Recordings
from zk0d.learning.untrusted import STEPS, refuse_code


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A file that hostile code would make."""
    return tmp_path / "it-ran"


def hostile(proof: Path) -> dict[str, tuple[str, Any, str]]:
    """File name, content, and what the refusal says, by what it tries."""
    touch = f"open({str(proof)!r}, 'w').close()\n"
    step = {"class": "subprocess.Popen", "config": {"args": ["touch", str(proof)]}}
    return {
        "a class in the processor": (
            "policy_preprocessor.json",
            {"name": "x", "steps": [{"registry_name": "device_processor"}, step]},
            "policy_preprocessor.json: its 'class' names code to run",
        ),
        "a step of its own": (
            "policy_postprocessor.json",
            {"name": "x", "steps": [{"registry_name": "shell_processor"}]},
            "its step 'shell_processor' is not one that zk0d knows",
        ),
        "remote code asked for": (
            "policy_preprocessor.json",
            {"steps": [{"config": {"trust_remote_code": True}}]},
            "it asks for remote code to be trusted",
        ),
        "transformers' auto_map": (
            "tokenizer_config.json",
            {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}},
            "its 'auto_map' names code to run",
        ),
        "python beside it": ("modeling_evil.py", touch, "such a file can run code"),
        "pickled weights": ("pytorch_model.bin", "cos\nsystem\n", "weights are safetensors"),
        "a pickle in a folder": ("more/stats.pkl", "cos\nsystem\n", "more/stats.pkl: such a file"),
    }


NAMES = sorted(hostile(Path("x")))


@pytest.mark.parametrize("attempt", NAMES)
def test_a_hostile_model_is_refused(
    smolvla: LoadedPolicy, recordings: Recordings, tmp_path: Path, proof: Path, attempt: str
) -> None:
    name, content, said = hostile(proof)[attempt]
    folder = saved(smolvla, tmp_path)
    spec = spec_for("smolvla", "base", 3, recordings.summary, {"base": folder})
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for load in (
        lambda: load_policy(spec, models={"base": folder}, device="cpu"),
        lambda: spec_for("smolvla", "base", 3, recordings.summary, {"base": folder}),
    ):
        with pytest.raises(UnavailableError, match=said) as caught:
            load()
        assert caught.value.reason == "model_unsafe"
    assert not proof.exists()


def test_lerobots_own_files_are_accepted(smolvla: LoadedPolicy, tmp_path: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors

    folder = saved(smolvla, tmp_path)
    for pipeline in make_pre_post_processors(smolvla.config, dataset_stats={}):
        pipeline.save_pretrained(folder)
    names = {
        step["registry_name"]
        for path in folder.glob("policy_*processor.json")
        for step in json.loads(path.read_text())["steps"]
    }
    assert names <= STEPS
    assert "tokenizer_processor" in names
    refuse_code(folder, "base", "smolvla")
