"""Pushing a checkpoint, against a stand-in for the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tests.release.hub_stand_in import HubStandIn, Repository
from tests.release.test_gate import summary
from zk0d.cli.main import app
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


def make_checkpoint(folder: Path, run: str = "7", scale: float = 1.0) -> Path:
    """A folder that may be pushed."""
    folder.mkdir(parents=True)
    weights = scale * np.arange(1000, dtype=np.float32)
    save_file({"w": weights, "b": weights[:8]}, folder / "model.safetensors")
    save_file({"mean": weights[:6]}, folder / "policy_preprocessor_step_3.safetensors")
    (folder / "config.json").write_text('{"type": "act"}')
    told = summary(1.0, 0.5, run=run)
    describe(folder, told, judge(told), "---\n---\n# card\n", parent={}, licenses={})
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint_round_1")


def api(server: HubStandIn) -> HfApi:
    return HfApi(endpoint=server.url, token=TOKEN)


@pytest.mark.slow
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
    assert done.tag == "fl-run-7-round-1"
    assert there.snapshots[there.tags[done.tag]] == there.files


def test_a_repository_is_public_only_on_request_and_keeps_its_visibility(
    stand_in: HubStandIn, checkpoint: Path
) -> None:
    hub.push(checkpoint, "user/open", private=False, api=api(stand_in))
    assert not stand_in.repositories["user/open"].private
    stand_in.repositories["user/old"] = Repository(private=False)
    hub.push(checkpoint, "user/old", tag="v1", api=api(stand_in))
    assert not stand_in.repositories["user/old"].private
    assert list(stand_in.repositories["user/old"].tags) == ["v1"]


@pytest.mark.slow
def test_a_push_that_was_cut_off_resumes(stand_in: HubStandIn, checkpoint: Path) -> None:
    stand_in.fail_uploads = 100
    with pytest.raises(TryAgainError, match="user/arm"):
        hub.push(checkpoint, "user/arm", api=api(stand_in))
    assert stand_in.repositories["user/arm"].commits == [], "nothing half is there"
    stand_in.fail_uploads = 0
    hub.push(checkpoint, "user/arm", api=api(stand_in))
    hub.push(checkpoint, "user/arm", tag="again", api=api(stand_in))
    assert len(stand_in.uploads) == 2, "what the hub has is not sent again"


def test_each_runs_tag_names_its_own_weights(stand_in: HubStandIn, tmp_path: Path) -> None:
    """Two runs of equal length to one repository."""
    pushed = {}
    for run, scale in (("7", 1.0), ("8", 2.0)):
        folder = make_checkpoint(tmp_path / run / "checkpoint_round_1", run, scale)
        pushed[hub.push(folder, "user/arm", api=api(stand_in)).tag] = folder
    there = stand_in.repositories["user/arm"]
    assert there.tags.keys() == pushed.keys()
    for tag, folder in pushed.items():
        found = there.snapshots[there.tags[tag]]
        assert found["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_tag_that_is_there_keeps_its_weights(stand_in: HubStandIn, tmp_path: Path) -> None:
    first = make_checkpoint(tmp_path / "7")
    hub.push(first, "user/arm", tag="best", api=api(stand_in))
    there = stand_in.repositories["user/arm"]
    commit = there.tags["best"]
    (first / "README.md").write_text("---\n---\n# a better card\n")
    assert hub.push(first, "user/arm", tag="best", api=api(stand_in)).tag == "best"
    assert there.tags == {"best": commit}, "the same weights: it stays"
    before = list(there.commits)
    other = make_checkpoint(tmp_path / "8", run="8", scale=2.0)
    with pytest.raises(ConfigError, match=r"user/arm: its tag 'best' names other weights.*--tag"):
        hub.push(other, "user/arm", tag="best", api=api(stand_in))
    assert there.commits == before, "nothing of it is there"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("repository", "tag", "says"),
    [
        ("arm", "", "--repo-id: 'arm' is not a repository name; write it as user/name"),
        ("user/my arm", "", "--repo-id: the hub does not take this name"),
        ("user/arm.git", "", "--repo-id: the hub does not take this name"),
        ("user/arm", "v 1", "--tag: 'v 1' is not a tag"),
        ("user/arm", "a..b", "--tag: 'a..b' is not a tag"),
        ("user/arm", "v1.lock", "--tag: 'v1.lock' is not a tag"),
    ],
)
def test_names_are_checked_before_anything(
    checkpoint: Path, repository: str, tag: str, says: str
) -> None:
    for words in (["--dry-run"], []):
        command = ["push", str(checkpoint), "--repo-id", repository, *words]
        said = CliRunner().invoke(app, [*command, "--tag", tag] if tag else command)
        assert isinstance(said.exception, ConfigError)
        assert says in said.exception.message


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 64)


@pytest.mark.parametrize("harm", [cut, empty, no_header])
@pytest.mark.parametrize("name", ["model", "policy_preprocessor_step_3"])
def test_torn_weights_are_found_by_a_dry_run(
    checkpoint: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(checkpoint / f"{name}.safetensors")
    said = CliRunner().invoke(app, ["push", str(checkpoint), "--repo-id", "a/b", "--dry-run"])
    assert isinstance(said.exception, ConfigError)
    assert f"{name}.safetensors: is cut short or not a safetensors file" in said.exception.message


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"w": (999,), "b": (8,)}, "tensor 'w' is F32 [999], the checkpoint was written with F32"),
        ({"w": (1000, 1), "b": (8,)}, "tensor 'w' is F32 [1000, 1]"),
        ({"w": (1000,)}, "tensor 'b' is missing"),
        ({"w": (1000,), "b": (8,), "c": (1,)}, "tensor 'c' is F32 [1]"),
    ],
)
def test_weights_of_another_shape_are_found_by_a_dry_run(
    checkpoint: Path, held: dict[str, tuple[int, ...]], says: str
) -> None:
    save_file(
        {name: np.zeros(shape, np.float32) for name, shape in held.items()},
        checkpoint / "model.safetensors",
    )
    said = CliRunner().invoke(app, ["push", str(checkpoint), "--repo-id", "a/b", "--dry-run"])
    assert isinstance(said.exception, ConfigError)
    assert says in said.exception.message


def test_a_whole_checkpoint_passes_a_dry_run(checkpoint: Path) -> None:
    said = CliRunner().invoke(app, ["push", str(checkpoint), "--repo-id", "a/b", "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "7 files" in said.output
    assert "would go to a/b" in said.output
    origin = json.loads((checkpoint / "provenance.json").read_text())
    del origin["tensors"]  # as versions before this one wrote it
    (checkpoint / "provenance.json").write_text(json.dumps(origin))
    assert hub.check(checkpoint)


def test_a_refusal_is_a_sentence(stand_in: HubStandIn, checkpoint: Path) -> None:
    stand_in.refuse = True
    with pytest.raises(ConfigError, match=r"the hub refuses \(403\)"):
        hub.push(checkpoint, "user/arm", api=api(stand_in))


def test_without_a_token_it_stays_here(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UnavailableError, match=f"The checkpoint stays in {checkpoint}"):
        hub.push(checkpoint, "user/arm", api=HfApi(token=False))


@pytest.mark.parametrize("name", ["weights.bin", "model.pt", "notes.env"])
def test_a_foreign_file_is_not_pushed(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text("x")
    with pytest.raises(ConfigError, match="does not belong in a checkpoint"):
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
    assert releases.rival("8") is None
    accept(checkpoint, "another dataset counts here", releases)
    assert (tmp_path / "latest").resolve() == checkpoint
    assert releases.rival("8") is not None
    told = json.loads((checkpoint / "metrics.json").read_text())["gate"]
    assert told["accepted"] == "another dataset counts here"
    assert told["reasons"], "what the gate said"
    text = card.read_text()
    assert text.index("Accepted by hand in spite of it: another") < text.index(
        "## Training Insights"
    )
    assert hub.check(checkpoint), "it may still be pushed"
    with pytest.raises(ConfigError, match="is not a checkpoint of zk0d"):
        accept(tmp_path, "x", releases)
