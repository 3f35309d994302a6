"""``zk0d learner`` whose GPU fails: see ``failure.py``, which starts this file by its path."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching


def serve(config: str, after: int) -> None:
    """``zk0d learner`` with a kernel that fails after so many steps of the first such process."""
    mark = Path(f"{config}.failed")
    if not mark.exists():
        mark.touch()
        _break(after)
    from zk0d.services.main import main as zk0d

    sys.argv = ["zk0d", "learner", "--config", config]
    zk0d()


def _break(after: int) -> None:
    plain = VLAFlowMatching.sample_time
    taken: list[torch.Tensor] = []

    def sample_time(self: VLAFlowMatching, rows: int, device: torch.device) -> torch.Tensor:
        # Counted on the GPU: a recorded step is replayed without this function.
        if not taken:
            taken.append(torch.zeros((), dtype=torch.long, device=device))
            taken.append(torch.zeros(8, device=device))
        count, table = taken
        count += 1
        if torch.device(device).type == "cpu" and count > after:
            raise RuntimeError("CUDA error: raised on a CPU, to try this file")
        beyond = table[torch.where(count > after, 10**6, 0).view(1)]
        drawn: torch.Tensor = plain(self, rows, device)
        return drawn + beyond

    VLAFlowMatching.sample_time = sample_time


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
