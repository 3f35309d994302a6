"""A journal's lines as a test writes and reads them: by kind, with what matters to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zk0d.record.events import EVENT, Event
from zk0d.record.journal import JOURNAL, Journal
from zk0d.record.state import RunState


def event(kind: str, **facts: Any) -> Event:
    """An event of a kind; what the test does not say is as it would be without."""
    fill: dict[str, dict[str, Any]] = {
        "run.started": {"settings": {}},
        "run.failed": {"reason": "bug", "message": "it broke."},
        "round.started": {"round": 1, "nodes": [], "learning_rate": 0.0},
        "round.failed": {"message": "1 of 2 needed updates came."},
        "update.refused": {"reason": "norm_cap", "round": 1},
        "node.sits_out": {"round": 1},
        "checkpoint.written": {"folder": "checkpoint_round_1", "passed": True},
    }
    content = {"kind": kind, **fill.get(kind, {}), **facts}
    if "nodes" in facts and kind == "round.committed":
        content["nodes"] = [
            {"loss": node["policy_loss"], "grad_norm": 1.0, "update_norm": 1.0, **node}
            for node in facts["nodes"]
        ]
    return EVENT.validate_python(content)


class Told(RunState):
    """A run's state that is told lines as a test writes them."""

    def take(self, content: dict[str, Any]) -> None:
        self.apply(event(**content))


def write(journal: Journal, kind: str, **facts: Any) -> Event:
    """Append such an event."""
    return journal.write(event(kind, **facts))


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """The whole lines as they are on disk."""
    try:
        text = (folder / JOURNAL).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
