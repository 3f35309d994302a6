"""What is wrong with settings and recordings is said before torch is loaded for seconds."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zk0d.errors import ExitCode

#: Runs a program in a process of its own, which then says whether torch was loaded in it.
LOOK = """\
import sys
from {module} import main
sys.argv = {argv!r}
try:
    main()
except SystemExit as end:
    print("torch" in sys.modules)
    raise
"""
UNLOADED, LOADED = "False", "True"


def fails(*argv: str, loaded: str = UNLOADED, **env: str) -> tuple[int, str]:
    """Exit code of ``zk0d`` or ``zk0bot``, and what it said."""
    module = "zk0d.cli.main" if argv[0] == "zk0bot" else "zk0d.services.main"
    said = subprocess.run(
        [sys.executable, "-c", LOOK.format(module=module, argv=list(argv))],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )
    assert said.stdout.split()[-1:] == [loaded], said.stdout + said.stderr
    assert "Traceback" not in said.stderr
    return said.returncode, said.stderr


@pytest.fixture
def folder() -> Iterator[Path]:
    # A socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="zk0d-") as made:
        yield Path(made)


def client(folder: Path, dataset: str, learner: str = "") -> str:
    path = folder / "client.toml"
    uri = f"dataset-uri = {dataset!r}\n" if dataset else ""
    path.write_text(f'name = "left"\n{uri}[learner]\nsocket = "{folder}/l.sock"\n{learner}\n')
    return str(path)


def server(folder: Path, dataset: str, evaluator: str = "") -> str:
    path = folder / "server.toml"
    path.write_text(
        f'[evaluator]\nsocket = "{folder}/e.sock"\n{evaluator}\n'
        f"[[evaluation]]\nname = 'held-out'\ndataset-uri = {dataset!r}\n"
    )
    return str(path)


@pytest.mark.slow
def test_an_import_of_torch_is_found(folder: Path, recordings_folder: Path) -> None:
    """Whether PyTorch sees a GPU is asked of PyTorch."""
    config = client(folder, f"local:{recordings_folder}", 'device = "cuda"')
    asked = ("zk0d", "learner", "--config", config)
    code, said = fails(*asked, loaded=LOADED, CUDA_VISIBLE_DEVICES="-1")
    assert (code, "PyTorch sees none" in said) == (ExitCode.UNAVAILABLE, True)


@pytest.mark.slow
def test_a_learner_without_recordings(folder: Path) -> None:
    code, said = fails("zk0d", "learner", "--config", client(folder, ""))
    assert code == ExitCode.CONFIG
    assert "dataset-uri is missing in this node's settings" in said


@pytest.mark.slow
@pytest.mark.parametrize("role", ["learner", "evaluator"])
@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("local:{folder}/typo", "there is no folder"),
        ("local:{folder}/empty", "is not a LeRobot dataset (meta/info.json is missing)"),
        ("local:{folder}/cut", "the recording was broken off"),
        ("hf:ann/never-fetched", "zk0bot data fetch ann/never-fetched gets it"),
    ],
)
def test_recordings_that_are_not_there(
    folder: Path, recordings_folder: Path, role: str, dataset: str, words: str
) -> None:
    (folder / "empty").mkdir()
    shutil.copytree(recordings_folder, folder / "cut")
    info = folder / "cut/meta/info.json"
    info.write_text(info.read_text().replace('"total_frames": 1', '"total_frames": 9'))
    settings = client if role == "learner" else server
    config = settings(folder, dataset.format(folder=folder))
    code, said = fails("zk0d", role, "--config", config, HF_LEROBOT_HOME=str(folder / "hub"))
    assert code == ExitCode.UNAVAILABLE
    assert words in said


@pytest.mark.slow
@pytest.mark.parametrize("role", ["learner", "evaluator"])
def test_a_device_and_a_socket_that_cannot_be(
    folder: Path, recordings_folder: Path, role: str
) -> None:
    settings, uri = client if role == "learner" else server, f"local:{recordings_folder}"
    code, said = fails("zk0d", role, "--config", settings(folder, uri, 'device = "gpu0"'))
    assert code == ExitCode.CONFIG
    assert f"'{role}.device' is wrong: 'gpu0' is not a device; use auto, cpu, cuda or" in said
    deep = folder / ("d" * 100)
    deep.mkdir()
    code, said = fails("zk0d", role, "--config", settings(deep, uri))
    assert code == ExitCode.CONFIG
    assert f"'{role}.socket' is wrong" in said
    assert "the path of a unix socket 107 at most" in said


@pytest.mark.slow
def test_a_socket_that_is_taken(folder: Path, recordings_folder: Path) -> None:
    config = client(folder, f"local:{recordings_folder}")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "l.sock"))
        other.listen()
        code, said = fails("zk0d", "learner", "--config", config)
    assert code == ExitCode.UNAVAILABLE
    assert "another learner listens there already; stop it first" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("client", "start"), ExitCode.USAGE, "no dataset is named"),
        (("client", "start", "/nowhere/at-all"), ExitCode.CONFIG, "there is no folder"),
    ],
)
def test_client_start(folder: Path, words: tuple[str, ...], code: int, says: str) -> None:
    client(folder, "")
    assert fails("zk0bot", *words, "--folder", str(folder))[0] == code
    assert says in fails("zk0bot", *words, "--folder", str(folder))[1]


@pytest.mark.parametrize("verb", ["train", "simulate", "compare"])
def test_a_device_on_the_command_line(verb: str) -> None:
    code, said = fails("zk0bot", verb, "/data/arm", "--device", "gpu0")
    assert code == ExitCode.USAGE
    assert "'gpu0' is not a device" in said
