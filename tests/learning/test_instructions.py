"""A long instruction is named before a policy is loaded, exactly or by an estimate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recordings.shapes import SHAPES
from zk0d.config.families import FAMILIES
from zk0d.config.machine import ClientSettings
from zk0d.learner.contributor import Contributor
from zk0d.learning.inspection import inspect
from zk0d.learning.instructions import cut_instructions, estimated_tokens
from zk0d.learning.policies import tiny_vlm
from zk0d.learning.recordings import Recordings, open_recordings

SHORT = "pick up the red cube and put it into the box on the right"
LONG = f"{SHORT}, then {SHORT.replace('right', 'left')}, then {SHORT}, and go back"
READ = FAMILIES["smolvla"].reads_tokens


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with nothing in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def tokenizer(hub: Path) -> int:
    """One in the cache where SmolVLA's is; how many tokens it makes of ``SHORT`` with its end."""
    kept = hub / f"models--{FAMILIES['smolvla'].tokenizer.replace('/', '--')}"
    snapshot = kept / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text(snapshot.name)
    made = tiny_vlm.tokenizer()
    made.backend_tokenizer.save(str(snapshot / "tokenizer.json"))
    return len(made(f"{SHORT}\n")["input_ids"])


def test_an_estimate_names_itself() -> None:
    assert list(cut_instructions([SHORT] * 3)) == []
    (said,) = cut_instructions([SHORT, LONG, LONG, ""])
    assert said == (
        "1 of 3 instructions may be longer than the 48 tokens that policy 'smolvla' reads"
        " (estimated, because HuggingFaceTB/SmolVLM2-500M-Video-Instruct's tokenizer is not in the"
        " hub's cache); the rest of each is cut."
    )


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), ("open", 1), ("opens it", 3), ("slot 12, left", 5), ("把红", 6), ("é", 2), ("\n", 1)],
)
def test_the_estimate(text: str, tokens: int) -> None:
    assert estimated_tokens(text) == tokens


def test_the_tokenizer_in_the_cache_decides(tokenizer: int) -> None:
    words = " cube" * (READ - tokenizer)
    (more,) = {len(tiny_vlm.tokenizer()(" cube")["input_ids"])}
    assert more == 1
    assert list(cut_instructions([SHORT + words])) == []
    (said,) = cut_instructions([SHORT + words + " cube"])
    assert said == (
        "1 of 1 instructions are longer than the 48 tokens that policy 'smolvla' reads; the rest of"
        " each is cut."
    )


def test_a_tokenizer_that_cannot_be_read_is_not_there(tokenizer: int, hub: Path) -> None:
    (path,) = hub.rglob("tokenizer.json")
    path.write_text("{}")
    (said,) = cut_instructions([LONG])
    assert "estimated" in said


def test_data_check_notices(recordings_folder: Path) -> None:
    own: Recordings = open_recordings(f"local:{recordings_folder}")
    own.tasks[own.rows(2)] = [LONG] * len(own.tasks[own.rows(2)])
    (said,) = [each.text for each in inspect(own).remarks if each.check == "task"]
    assert "may be longer than the 48 tokens" in said


def test_a_learner_says_so_when_it_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    SHAPES["long-task"].make(tmp_path / "arm")
    Contributor(ClientSettings(name="left", dataset_uri=f"local:{tmp_path}/arm")).open()
    reads = [known.reads_tokens for known in FAMILIES.values() if known.reads_tokens]
    for record, tokens in zip(caplog.records, reads, strict=True):
        begins = f"local:{tmp_path}/arm: 1 of 1 instructions may be longer than the {tokens}"
        assert record.getMessage().startswith(begins)
