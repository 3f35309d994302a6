"""What a caller's shell may set, ROS and worse, and who is told of it."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

#: Fail where they are imported; the last ones come before anything of ours.
MODULES = ("zk0d", "pydantic", "typer", "torch", "numpy", "flwr", "lerobot", "httpx", "yaml")
#: What a person sets for the services that run here.
MEANT = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    "NVIDIA_VISIBLE_DEVICES": "none",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MUJOCO_GL": "egl",
    "LD_LIBRARY_PATH": "/opt/cuda/lib64",
    "HF_HUB_OFFLINE": "1",
}
FOLDERS = ("HF_HOME", "HF_LEROBOT_HOME", "XDG_CACHE_HOME")
#: What no service may know.
SECRET = {
    "HF_TOKEN": "planted",
    "WANDB_API_KEY": "planted",
    "NVIDIA_API_KEY": "planted",
    "AWS_SECRET_ACCESS_KEY": "planted",
}


def packages(folder: Path) -> Path:
    """A folder of packages, each of which fails, and one of which is a plugin of pytest."""
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"raise ImportError('a foreign {name}')\n")
    (folder / "sitecustomize.py").write_text("raise RuntimeError('a foreign sitecustomize')\n")
    (folder / "foreign_plugin.py").write_text("raise ImportError('a foreign plugin')\n")
    about = folder / "foreign-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[pytest11]\nforeign = foreign_plugin\n")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """This process's, with foreign packages first, what is meant for services, and secrets."""
    caches = {name: str(folder.with_name(name)) for name in FOLDERS}
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("COV")},
        "PYTHONPATH": str(packages(folder)),
        **(MEANT | caches | SECRET),
        "https_proxy": "http://127.0.0.1:9",
    }


def assert_right(told: dict[str, str]) -> None:
    """The environment of a service, or of what it started."""
    assert not {"PYTHONPATH", "PYTHONHOME", "https_proxy", *SECRET} & set(told)
    assert (told["PYTHONNOUSERSITE"], told["PYTHONSAFEPATH"]) == ("1", "1")
    assert {key: told.get(key) for key in MEANT} == MEANT
    assert {Path(told[name]).name for name in FOLDERS} == set(FOLDERS)


def assert_right_below(pid: int) -> int:
    """Of all services below a program, and of what they started; how many there are."""
    count = 0
    for child in psutil.Process(pid).children(recursive=True):
        try:
            command, told = " ".join(child.cmdline()), child.environ()
        except psutil.Error:  # it has ended
            continue
        # The demo's own workers are no services: they have what the demo has.
        assert "PYTHONPATH" not in told, command
        if "multiprocessing" not in command:
            assert_right(told)
            count += 1
    return count
