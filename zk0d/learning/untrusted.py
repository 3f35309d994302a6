"""A model comes from elsewhere: what could run code is refused before it is read.

LeRobot's pipelines import and call the class that a JSON names, and transformers runs a folder's
own Python if asked to. zk0d builds processors itself and loads safetensors only: nothing of that is
needed; a folder that has it was made to be loaded by something less careful.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zk0d.config.families import FAMILIES, packaged
from zk0d.errors import UnavailableError

#: Steps of the pipelines that LeRobot saves with the policies of every family.
STEPS = frozenset(
    {
        "device_processor",
        "normalizer_processor",
        "rename_observations_processor",
        "to_batch_processor",
        "tokenizer_processor",
        "unnormalizer_processor",
    }
).union(*(family.steps for family in FAMILIES.values()))
#: Keys whose value is code to be found and run.
_CODE_KEYS = ("class", "auto_map", "custom_pipelines")
#: Formats that run what they hold when they are loaded, and code itself.
_UNSAFE = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".py", ".so")


def refuse_code(folder: Path, name: str, policy: str) -> None:
    """Refuse a model's folder that could run code.

    Parameters
    ----------
    policy
        What it is a model of. Steps of a policy of another package are that package's, and only
        code that is installed can be registered as a step.

    Raises
    ------
    UnavailableError
        With reason ``model_unsafe``: names the file and what in it.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix in _UNSAFE:
            raise _refused(name, relative, "such a file can run code; weights are safetensors")
        if path.suffix != ".json" or not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # who reads it says so
        for key, value in _pairs(content):
            if key in _CODE_KEYS:
                raise _refused(name, relative, f"its '{key}' names code to run")
            if key == "trust_remote_code" and value:
                raise _refused(name, relative, "it asks for remote code to be trusted")
            if key == "registry_name" and value not in STEPS and not packaged(policy):
                raise _refused(name, relative, f"its step '{value}' is not one that zk0d knows")


def _pairs(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, however deep."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _refused(name: str, path: Path, why: str) -> UnavailableError:
    return UnavailableError(
        f"model '{name}' is refused: {path}: {why}; use a model from a source that you trust.",
        reason="model_unsafe",
    )
