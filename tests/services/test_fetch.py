"""``zk0d fetch`` against a fake hub, and a learner that opens what it left."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.fake_hub import FakeHub
from zk0d.config.families import CLIP
from zk0d.errors import TryAgainError
from zk0d.learning import backbones
from zk0d.services import fetch

ZK0D = Path(sys.executable).parent / "zk0d"


class Machine:
    """A machine with settings and download folders."""

    def __init__(self, root: Path, hub: FakeHub) -> None:
        self.root = root
        self.config = root / "client.toml"
        self.write()
        self.hub = root / "hub"
        self.env = {
            **{key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(root / "own"),
            "HF_HUB_CACHE": str(self.hub / "models"),
            "HF_LEROBOT_HOME": str(self.hub / "lerobot"),
        }

    def write(self, dataset: str = "hf:ann/cubes", models: str = '["ann/policy"]') -> None:
        self.config.write_text(
            f'name = "left"\ndataset-uri = "{dataset}"\nfetch-models = {models}\n'
        )

    def fetch(self, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ZK0D), "fetch", "--client", str(self.config)],
            capture_output=True,
            text=True,
            env={**self.env, **more},
            timeout=120,
        )


@pytest.fixture
def hub(recordings_folder: Path, tmp_path: Path) -> Iterator[FakeHub]:
    policy, vlm = tmp_path / "policy", tmp_path / "vlm"
    for folder in (policy, vlm):
        folder.mkdir()
        (folder / "README.md").write_text("not needed")
        (folder / "model.safetensors").write_bytes(b"\0" * 1000)
    (policy / "config.json").write_text(
        json.dumps({"type": "smolvla", "vlm_model_name": "ann/vlm"})
    )
    (vlm / "config.json").write_text("{}")
    (vlm / "tokenizer.json").write_text("{}")
    with FakeHub() as made:
        made.repositories = {
            "datasets/ann/cubes": recordings_folder,
            "models/ann/policy": policy,
            "models/ann/vlm": vlm,
        }
        made.tags["datasets/ann/cubes"] = ["v2.1", "v3.0", "release"]
        yield made


@pytest.fixture
def machine(tmp_path: Path, hub: FakeHub) -> Machine:
    root = tmp_path / "machine"
    root.mkdir()
    return Machine(root, hub)


@pytest.mark.slow
def test_the_settings_datasets_and_models_are_fetched_once(machine: Machine, hub: FakeHub) -> None:
    first = machine.fetch()
    assert first.returncode == 0, first.stderr
    assert "dataset ann/cubes: fetched" in first.stderr
    assert "model ann/policy: fetched" in first.stderr
    there = {path.name for path in (machine.hub / "models").rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= there
    assert "README.md" not in there
    asked = [path for _, path in hub.asked]
    assert not [path for path in asked if "vlm" in path and path.endswith(".safetensors")]
    for path in machine.hub.rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & stat.S_IRGRP, path
    assert sorted(path.name for path in (machine.hub / "lerobot/ann").iterdir()) == ["cubes"]
    hub.asked.clear()
    second = machine.fetch()
    assert second.returncode == 0, second.stderr
    assert "dataset ann/cubes: is here already" in second.stderr
    assert hub.asked == [], "what is here is not asked for"


@pytest.mark.slow
def test_a_checkpoint_that_carries_its_vision_language_model(
    machine: Machine, hub: FakeHub, tmp_path: Path
) -> None:
    """As zk0d pushes one: what it needs is in its own repository, and nothing else is asked for."""
    policy = tmp_path / "policy"
    (policy / "config.json").write_text(
        json.dumps({"type": "smolvla", "vlm_model_name": "zk0d/vlm-1"})
    )
    (policy / "zk0d" / "vlm-1").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "merges.txt"):
        (policy / "zk0d/vlm-1" / name).write_text("{}")
    done = machine.fetch()
    assert done.returncode == 0, done.stderr
    there = {path.name for path in (machine.hub / "models").rglob("zk0d/vlm-1/*")}
    assert there == {"config.json", "tokenizer.json", "merges.txt"}
    assert not [path for _, path in hub.asked if "models/ann/vlm" in path]


@pytest.mark.slow
def test_an_encoder_that_new_policies_begin_with_comes_with_its_weights(
    machine: Machine, hub: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "vlm" / "pytorch_model.bin").write_bytes(b"can run code")
    hub.repositories[f"models/{CLIP}"] = tmp_path / "vlm"
    machine.write(models=f'["{CLIP}"]')
    done = machine.fetch()
    assert done.returncode == 0, done.stderr
    snapshots = machine.hub / "models" / f"models--{CLIP.replace('/', '--')}" / "snapshots"
    there = {path.name for path in snapshots.rglob("*") if path.is_file()}
    assert there == {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.mark.slow
def test_a_broken_download_stays_hidden_and_resumes(machine: Machine, hub: FakeHub) -> None:
    hub.broken = "tasks.parquet"
    broken = machine.fetch()
    assert broken.returncode == 75, broken.stderr
    assert not (machine.hub / "lerobot/ann/cubes").exists()
    hub.broken = ""
    assert machine.fetch().returncode == 0
    assert (machine.hub / "lerobot/ann/cubes/meta/tasks.parquet").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "models", "sentence"),
    [
        ("hf:ann/nothing", "[]", "dataset ann/nothing: the hub knows no such dataset"),
        ("hf:ann/old", "[]", "is there in LeRobot's format v2.1 only"),
        ("hf:ann/secret", "[]", "those who accepted its terms"),
        ("hf:ann/policy", "[]", "dataset ann/policy: the hub knows no such dataset"),
        ("local:/data", '["ann/nothing"]', "model ann/nothing: the hub knows no such model"),
        ("local:/data", '["ann/empty"]', "holds no config.json with weights"),
    ],
)
def test_a_name_that_cannot_be_had_waits_for_a_person(
    machine: Machine, hub: FakeHub, tmp_path: Path, dataset: str, models: str, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    hub.repositories |= {
        "datasets/ann/old": tmp_path / "empty",
        "models/ann/empty": tmp_path / "empty",
    }
    hub.tags["datasets/ann/old"] = ["v2.0", "v2.1"]
    hub.gated.add("datasets/ann/secret")
    machine.write(dataset, models)
    said = machine.fetch()
    assert said.returncode == 78, said.stderr
    assert sentence in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr


@pytest.mark.slow
def test_a_hub_that_is_away_is_tried_again(machine: Machine) -> None:
    said = machine.fetch(HF_ENDPOINT="http://127.0.0.1:9")
    assert said.returncode == 75, said.stderr
    assert "dataset ann/cubes: could not be fetched" in said.stderr.splitlines()[-1]


@pytest.mark.slow
def test_one_wrong_name_does_not_stop_the_other_downloads(machine: Machine, hub: FakeHub) -> None:
    machine.write("hf:ann/nothing")
    said = machine.fetch()
    assert said.returncode == 78
    assert "model ann/policy: fetched" in said.stderr


@pytest.mark.slow
def test_a_token_is_sent(machine: Machine, hub: FakeHub, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hf_of_ann\n")
    assert machine.fetch(HF_TOKEN_PATH=str(token)).returncode == 0
    assert "Bearer hf_of_ann" in hub.tokens


def test_without_settings_there_is_nothing_to_fetch(tmp_path: Path) -> None:
    said = subprocess.run(
        [str(ZK0D), "fetch", "--client", str(tmp_path / "nothing.toml")],
        capture_output=True,
        text=True,
    )
    assert said.returncode == 78
    assert "no such settings file" in said.stderr


OPEN = """
import sys
from zk0d.learning.recordings import open_recordings
recordings = open_recordings("hf:ann/cubes")
print(len(recordings), recordings.columns["action"][3].shape)
from zk0d.learning.policy import _model_folder
print(sorted(path.name for path in _model_folder("ann/policy", {}, {}).iterdir()))
from pathlib import Path
from lerobot.utils.constants import HF_LEROBOT_HOME
try:
    Path(HF_LEROBOT_HOME, "written").touch()
except PermissionError:
    print("denied")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can read as another user")
@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv (util-linux) is not installed")
def test_a_learner_without_network_and_write_rights_opens_fetched_data(
    machine: Machine,
) -> None:
    assert machine.fetch().returncode == 0
    # Of another user and of our group, as the learner sees what zk0d-fetch left.
    for path in (machine.hub, *machine.hub.rglob("*")):
        if not path.is_symlink():
            os.chown(path, 65534, 0)
            path.chmod(path.stat().st_mode & ~(stat.S_IRWXO | stat.S_IWGRP))
    said = subprocess.run(
        [
            *("setpriv", "--bounding-set=-all", "--inh-caps=-all"),
            *(sys.executable, "-c", OPEN),
        ],
        capture_output=True,
        text=True,
        env={**machine.env, "HF_HUB_OFFLINE": "1"},
    )
    assert said.returncode == 0, said.stderr
    assert "torch.Size([6])" in said.stdout
    assert "['config.json', 'model.safetensors']" in said.stdout
    assert "denied" in said.stdout, "it could not have written"


@pytest.fixture
def served_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a server with resnet18's file, as torchvision names it."""
    served = tmp_path / "served"
    served.mkdir()
    content = b"weights" * 1000
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (served / name).write_bytes(content)
    serves = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serves) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        monkeypatch.setitem(backbones.URLS, "resnet18", url)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        yield served / name
        server.shutdown()


def settings_with_a_backbone(folder: Path) -> Path:
    path = folder / "client.toml"
    path.write_text('name = "left"\nfetch-models = ["resnet18"]\n')
    return path


def test_a_backbones_weights_are_fetched_once_to_where_torchvision_looks(
    tmp_path: Path, served_backbone: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "zk0d")
    config = settings_with_a_backbone(tmp_path)
    fetch.run(client=config)
    found = tmp_path / "torch" / "hub" / "checkpoints" / served_backbone.name
    assert found.read_bytes() == served_backbone.read_bytes()
    assert found.stat().st_mode & stat.S_IRGRP, "the learner reads it"
    fetch.run(client=config)
    assert [record.getMessage() for record in caplog.records] == [
        "model resnet18: fetched",
        "model resnet18: is here already",
    ]


def test_a_backbone_that_did_not_arrive_whole_is_not_kept(
    tmp_path: Path, served_backbone: Path
) -> None:
    served_backbone.write_bytes(served_backbone.read_bytes()[:-1])
    with pytest.raises(TryAgainError, match="did not come whole"):
        fetch.run(client=settings_with_a_backbone(tmp_path))
    assert not list((tmp_path / "torch").rglob("*.pth*"))
