"""A personal policy's card and figures: a release, tuned at home on one owner's recordings.

It belongs to one arm. Nothing of it is sent, and ``zk0bot push`` refuses it.
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from zk0d.config.base import Settings
from zk0d.config.names import VLM_FOLDER
from zk0d.release.card import usage

#: Marks a checkpoint as personal, and has the figures of its card.
PERSONAL = "personal.json"


class PersonalSummary(Settings):
    """How a personal policy was made, and what its gate saw. It names no folder of the machine."""

    schema_version: int = 1
    policy: str
    release: str  #: what it was tuned from: RUN/ROUND, or its folder's name
    release_sha256: str  #: of that one's ``model.safetensors``
    made: str  #: UTC, ISO 8601
    steps: PositiveInt
    pull: NonNegativeFloat
    learning_rate: PositiveFloat
    batch_size: PositiveInt
    seed: NonNegativeInt
    episodes: PositiveInt
    frames: PositiveInt
    held_out_episodes: PositiveInt
    loss_before: float  #: the release's, on the held-out episodes
    loss_after: float
    change_low: float  #: 95 % interval of the change of loss
    change_high: float
    moved: NonNegativeFloat  #: norm of the weights' change, as a share of their norm
    versions: dict[str, str]


def describe_personal(folder: Path, summary: PersonalSummary, gate: str) -> None:
    """Add the card and ``personal.json`` to a checkpoint's folder.

    Parameters
    ----------
    gate
        What the gate said, a sentence.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    content = json.dumps(summary.model_dump(mode="json"), indent=1) + "\n"
    (folder / PERSONAL).write_text(content, encoding="utf-8")
    card = personal_card(summary, gate, carries_vlm=(folder / VLM_FOLDER).exists())
    (folder / "README.md").write_text(str(card), encoding="utf-8")


def personal_card(summary: PersonalSummary, gate: str, *, carries_vlm: bool) -> ModelCard:
    """The card: what it is, for whom, and how good it is there."""
    data = ModelCardData(
        language="en",
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=["robotics", "lerobot", summary.policy, "zk0d", "personal"],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {summary.policy}, a personal policy\n\nTuned at home from the release"
        f" {summary.release} with zk0d, on the recordings of one owner and for that owner's arm."
        " Nothing of it was sent to anybody. It is not a release: do not judge the shared policy by"
        " it, and do not expect it to work on another arm.",
        f"## Training\n\n{summary.steps} optimizer steps of {summary.batch_size} frames over"
        f" {summary.episodes} episodes ({summary.frames} frames), at most at the learning rate"
        f" {summary.learning_rate:g}, with a pull of {summary.pull:g} towards the release's weights"
        f" (FedProx's term). They moved by {summary.moved:.2%} of their norm. Normalized with the"
        " release's statistics.",
        f"## Gate\n\n{gate}",
        usage(summary.policy, carries_vlm),
        "## Limitations\n\n- The loss says how well held-out demonstrations are predicted, not how"
        " often the arm succeeds.\n- The owner's habits are in it: whoever has it can learn"
        " something of the recordings.",
    ]
    return ModelCard("\n\n".join(parts) + "\n")
