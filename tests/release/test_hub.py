"""Pushing a checkpoint, against a stand-in for the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save_file

from tests.release.hub_stand_in import HubStandIn, Repository
from tests.release.test_gate import story
from zk0d.errors import ConfigError, TryAgainError, UnavailableError
from zk0d.release import hub
from zk0d.release.checkpoint import Releases, accept, describe
from zk0d.release.gate import judge

TOKEN = "hf_of_the_test"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    server = HubStandIn()
    yield server
    server.shutdown()
    server.server_close()


def make_checkpoint(folder: Path) -> Path:
    """A folder that may be pushed."""
    folder.mkdir(parents=True)
    save_file({"w": np.arange(1000, dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"type": "act"}')
    told = story(1.0, 0.5)
    describe(folder, told, judge(told), "---\n---\n# card\n", parent={}, licenses={})
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint_round_1")


def api(server: HubStandIn) -> HfApi:
    return HfApi(endpoint=server.url, token=TOKEN)


def test_one_commit_with_everything_private_and_tagged(
    stand_in: HubStandIn, checkpoint: Path
) -> None:
    done = hub.push(checkpoint, "user/arm", api=api(stand_in))
    there = stand_in.repositories["user/arm"]
    assert there.private
    assert len(there.commits) == 1
    assert set(there.files) == {path.name for path in checkpoint.iterdir()}
    for path in checkpoint.iterdir():
        assert there.files[path.name] == path.read_bytes()
    assert (done.tag, there.tags) == ("fl-round-1", ["fl-round-1"])


def test_public_only_when_asked_and_what_is_there_stays_as_it_is(
    stand_in: HubStandIn, checkpoint: Path
) -> None:
    hub.push(checkpoint, "user/open", private=False, api=api(stand_in))
    assert not stand_in.repositories["user/open"].private
    stand_in.repositories["user/old"] = Repository(private=False)
    hub.push(checkpoint, "user/old", tag="v1", api=api(stand_in))
    assert not stand_in.repositories["user/old"].private
    assert stand_in.repositories["user/old"].tags == ["v1"]


@pytest.mark.slow
def test_a_push_that_was_cut_off_is_taken_up(stand_in: HubStandIn, checkpoint: Path) -> None:
    stand_in.fail_uploads = 100
    with pytest.raises(TryAgainError, match="user/arm"):
        hub.push(checkpoint, "user/arm", api=api(stand_in))
    assert stand_in.repositories["user/arm"].commits == [], "nothing half is there"
    stand_in.fail_uploads = 0
    hub.push(checkpoint, "user/arm", api=api(stand_in))
    hub.push(checkpoint, "user/arm", tag="again", api=api(stand_in))
    assert len(stand_in.uploads) == 1, "what the hub has is not sent again"


def test_a_refusal_is_a_sentence(stand_in: HubStandIn, checkpoint: Path) -> None:
    stand_in.refuse = True
    with pytest.raises(ConfigError, match=r"the hub refuses \(403\)"):
        hub.push(checkpoint, "user/arm", api=api(stand_in))


def test_without_a_token_it_stays_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UnavailableError, match=f"The checkpoint stays in {checkpoint}"):
        hub.push(checkpoint, "user/arm", api=HfApi(token=False))


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "notes.env"])
def test_what_does_not_belong_is_not_pushed(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text("x")
    with pytest.raises(ConfigError, match="does not belong into a checkpoint"):
        hub.check(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "README.md", "provenance.json"])
def test_half_a_checkpoint_is_not_pushed(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        hub.check(checkpoint)


def test_a_checkpoint_that_is_accepted_by_hand(checkpoint: Path, tmp_path: Path) -> None:
    """The gate's word stays, and what overruled it stands in card and figures."""
    card = checkpoint / "README.md"
    card.write_text(f"{card.read_text()}\n\n## Training Insights\n- none\n")
    releases = Releases(tmp_path)
    assert releases.latest() is None
    accept(checkpoint, "another dataset counts here", releases)
    assert (tmp_path / "latest").resolve() == checkpoint
    told = json.loads((checkpoint / "metrics.json").read_text())["gate"]
    assert told["accepted"] == "another dataset counts here"
    assert told["reasons"], "what the gate said"
    text = card.read_text()
    assert text.index("Accepted by hand all the same: another") < text.index("## Training Insights")
    assert hub.check(checkpoint), "it may still be pushed"
    with pytest.raises(ConfigError, match="is no checkpoint of zk0d"):
        accept(tmp_path, "x", releases)
