"""What a child process gets of this one's environment, and the programs of this installation."""

from __future__ import annotations

import os
import sys
from fnmatch import fnmatchcase
from pathlib import Path

#: What a child keeps of the caller's environment, as shell patterns. Everything else stays with the
#: caller: tokens and passwords, which no service but ``zk0d fetch`` and ``publish`` wants; proxies,
#: since services speak to this machine and the coordinator; what another service was given.
KEPT = (
    # Who and where: names, language, and where programs keep their files.
    *("HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ", "TMPDIR", "XDG_*_HOME", "XDG_RUNTIME_DIR"),
    # Which GPUs: on a shared host each user has some. CUDA's libraries may lie elsewhere.
    *("CUDA_*", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "LD_LIBRARY_PATH"),
    # How to compute: threads, kernels, memory. How MuJoCo draws.
    *("OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*", "ONEDNN_*", "ATEN_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "MUJOCO_*", "PYOPENGL_*"),
    # Where datasets and models were fetched to, and whether the hub may be asked.
    *("HF_HOME", "HF_HUB_CACHE", "HF_LEROBOT_HOME", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE"),
    "ZK0D_DEBUG",
)
#: What the two that speak to the hub and to W&B keep besides.
KEPT_FOR_THE_HUB = ("HF_*", "WANDB_*", "*_PROXY", "*_proxy")
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
#: Neither a user's packages nor those in the folder in which a child runs come before ours, and
#: ``PYTHONPATH`` is not kept. ``bin/zk0bot`` does the same for the programs that people start.
_ALONE = {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}


def child_environment(*besides: str, **more: str) -> dict[str, str]:
    """The environment of a child: little of ours, and our programs first on ``PATH``.

    Parameters
    ----------
    besides
        Patterns of what it keeps besides :data:`KEPT`.
    """
    kept = {
        key: value
        for key, value in os.environ.items()
        if any(fnmatchcase(key, pattern) for pattern in (*KEPT, *besides))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**kept, **_QUIET, **_ALONE, "PATH": path, "PYTHONUNBUFFERED": "1", **more}


def program_path(name: str) -> str:
    """One of the programs installed beside this interpreter."""
    return str(Path(sys.executable).parent / name)
