"""A run's figures in Weights & Biases, under the names that zk0 gave them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zk0d.config.run import RunSettings
from zk0d.errors import ConfigError, TryAgainError
from zk0d.record.events import Event, RoundCommitted, RunFailed, RunFinished


def log_rounds(
    events: Sequence[Event],
    known: int,
    settings: RunSettings,
    *,
    folder: Path,
    key: str | None,
) -> None:
    """Log the rounds of a journal from event ``known`` on; the last one may end the run.

    Parameters
    ----------
    folder
        Where the library keeps its files: with ``WANDB_MODE=offline`` these are all there is.
    key
        Of the API; without one the library works offline, and ``wandb sync`` sends the files later.

    Raises
    ------
    ConfigError
        If the library is not installed, or the key is refused.
    TryAgainError
        If W&B cannot be reached.
    """
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "wandb-project: wandb is not installed; pip install 'zk0d[wandb]' in zk0d's"
            " environment."
        ) from None
    name = events[0].run
    folder.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if key else "offline")
    try:
        if key and mode == "online":
            wandb.login(key=key, verify=False, relogin=True)
        run = wandb.init(
            project=settings.release.wandb_project,
            id=f"zk0d-{name}",
            name=name,
            resume="allow",
            dir=folder,
            mode=mode,  # type: ignore[arg-type]
            config=settings.public(),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        for event in events[known:]:
            if isinstance(event, RoundCommitted):
                run.log(figures(event), step=event.round)
        committed = [event for event in events if isinstance(event, RoundCommitted)]
        if isinstance(events[-1], RunFinished | RunFailed) and committed:
            for label, value in figures(committed[-1]).items():
                run.summary[f"final_{label.removeprefix('server_')}"] = value
        run.finish(exit_code=int(isinstance(events[-1], RunFailed)))
    except wandb.errors.AuthenticationError as error:
        raise ConfigError(f"wandb-project: the key is refused ({error}); see wandb.key.") from None
    except (wandb.errors.Error, OSError) as error:
        raise TryAgainError(
            f"wandb-project: W&B cannot be reached ({type(error).__name__}); the rest is sent"
            " later."
        ) from None


def figures(event: RoundCommitted) -> dict[str, float]:
    """One committed round under zk0's names (zk0-behaviour A11); what was not measured is left out.

    ``server_eval_policy_loss`` is the same as ``server_eval_loss``, as it was in zk0.
    """
    found: dict[str, Any] = {"server_round": event.round}
    evaluation = event.evaluation
    if evaluation is not None:
        found |= {
            "server_eval_loss": evaluation.loss,
            "server_eval_policy_loss": evaluation.loss,
            "server_eval_success": evaluation.success,
            "server_eval_total_samples": sum(d.frames for d in evaluation.datasets) or None,
        }
        found |= {f"server_eval_{d.name}_loss": d.loss for d in evaluation.datasets}
    for name in (
        "learning_rate",
        "proximal_mu",
        "mean_update_norm",
        "agreement",
        "bytes_up",
        "bytes_down",
    ):
        found[f"server_{name}"] = getattr(event, name)
    for node in event.nodes:
        found |= {
            f"client_{node.node}_{label}": value
            for label, value in node.model_dump().items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
    return {label: value for label, value in found.items() if value is not None}
