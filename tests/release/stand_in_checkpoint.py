"""A stand-in of a checkpoint: the names and the notes of one, and bytes in place of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.release.test_gate import summary
from zk0d.config.machine import ServerSettings
from zk0d.release.checkpoint import Releases
from zk0d.release.gate import judge

CONFIG = {
    "type": "act",
    "input_features": {
        "observation.state": {"type": "STATE", "shape": [6]},
        "observation.images.front": {"type": "VISUAL", "shape": [3, 96, 96]},
    },
}
CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n\n# act, trained together\n"


def put(
    server: ServerSettings,
    run: str,
    *losses: float,
    files: Mapping[str, bytes] = {},
    lerobot: str = "",
    policy: str = "act",
    began: str = "2026-01-01T00:00:00Z",
) -> Path:
    """The checkpoint of the last of these rounds, judged and linked as an evaluator does."""
    releases = Releases.of(server)
    versions = {"zk0d": "0.1.0", "lerobot": lerobot or version("lerobot")}
    told = summary(*losses, run=run, spread=0.001, settings={"policy": policy}).model_copy(
        update={"versions": versions, "began": began}
    )
    verdict = judge(told, releases.rival(run))
    folder = releases.checkpoint(run, told.round)
    folder.mkdir(parents=True, exist_ok=True)
    gate = {"passed": verdict.passed, "reasons": list(verdict.reasons)}
    origin = {"evaluation_licenses": {"held-out": "cc-by-4.0"}, "robot_types": ["so101"]}
    content = {
        "config.json": json.dumps(CONFIG | {"type": policy}).encode(),
        "model.safetensors": f"{run}/{told.round}".encode() * 300_000,
        "policy_preprocessor.json": b"{}",
        "README.md": CARD.encode(),
        "metrics.json": json.dumps(
            {"gate": gate, "summary": told.model_dump(mode="json")}
        ).encode(),
        "provenance.json": json.dumps(origin).encode(),
        **files,
    }
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    releases.settle(folder, verdict)
    return folder
