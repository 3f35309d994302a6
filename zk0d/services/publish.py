"""``zk0d publish``: sends out what a run's settings ask for: its checkpoint, its figures.

A timer starts it, so that nothing of a round waits for the hub. It reads journals and checkpoints,
keeps what is done in a file for each run, and tries again what could not be done.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zk0d.config.machine import ServerSettings
from zk0d.config.run import RunSettings
from zk0d.daemon.notify import Notify
from zk0d.errors import ConfigError, Zk0dError
from zk0d.files import make_folder, write_file
from zk0d.machine.credentials import optional_credential
from zk0d.record.events import CheckpointWritten, Event, RunFinished
from zk0d.record.journal import CONFIG, read_journal, settings_of
from zk0d.release.checkpoint import Releases

log = logging.getLogger("zk0d")


def run(config: Path) -> None:
    """Send out what is due of every run, and end.

    Raises
    ------
    ConfigError
        If a name or a token is refused, or something that is needed is not installed.
    TryAgainError
        If the hub or W&B cannot be reached.
    """
    server = ServerSettings.load(config)
    notify = Notify()
    sent, errors = 0, []
    for folder in _runs(server.runs):
        try:
            settings = settings_of(folder)
            if settings.release.hf_repo_id or settings.release.wandb_project:
                notify.status(f"sending out run {folder.name}")
                noted = Sent(server.publish.state / f"{folder.name}.json")
                sent += _send(folder, settings, noted, server)
        except Zk0dError as error:  # the other runs go out all the same
            errors.append(error)
            log.error("run %s: %s", folder.name, error.message)
    if errors:
        raise min(errors, key=lambda error: not isinstance(error, ConfigError))
    notify.status(f"nothing is left to send; {sent} sent now")


def _runs(home: Path) -> Iterator[Path]:
    """Folders of runs; most ask for nothing, and one look must be cheap.

    The newest comes last, so that a repository that several push to ends with its weights.
    """
    found = [(began, path.parent) for path in home.glob(f"*/{CONFIG}") if (began := _asks(path))]
    yield from (folder for _, folder in sorted(found))


def _asks(config: Path) -> str:
    """When the run began, if it asks for anything."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        settings = content["settings"]
        asks = settings.get("hf-repo-id") or settings.get("wandb-project")
        return str(content.get("timestamp") or "unknown") if asks else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""


class Sent:
    """What of a run was sent, in a file that is written after each step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.facts = {}

    def keep(self, **facts: Any) -> None:
        """Add facts, whole or not at all."""
        self.facts.update(facts)
        make_folder(self._path.parent)
        write_file(self._path, json.dumps(self.facts))


def _send(folder: Path, settings: RunSettings, sent: Sent, server: ServerSettings) -> int:
    """Send what is due; how much that was. What one refuses does not hold up the other."""
    events = list(read_journal(folder))
    done, errors = 0, []
    if settings.release.hf_repo_id:
        try:
            done += _checkpoint(events, settings, sent, server)
        except Zk0dError as error:
            errors.append(error)
    if settings.release.wandb_project:
        try:
            done += _figures(events, settings, sent, server)
        except Zk0dError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return done


def _checkpoint(
    events: list[Event], settings: RunSettings, sent: Sent, server: ServerSettings
) -> bool:
    """Push a finished run's newest checkpoint that passed the gate: the best one comes last."""
    if "pushed" in sent.facts or not isinstance(events[-1], RunFinished):
        return False
    written = [event for event in events if isinstance(event, CheckpointWritten)]
    if not written:
        return False  # the journal says why
    last = next((each for each in reversed(written) if each.passed), written[-1])
    folder = Releases.of(server).checkpoint(last.run, last.round)
    why = ""
    if settings.rounds.num_server_rounds < settings.release.checkpoint_interval:
        why = "the run was shorter than its checkpoint-interval"
    elif not last.passed:
        why = f"its checkpoint did not pass the gate ({'; '.join(last.reasons)})"
    if why:
        log.info("run %s: not pushed, %s; it is in %s", last.run, why, folder)
        sent.keep(pushed="", why=why)
        return False
    from huggingface_hub import HfApi

    from zk0d.release.hub import push

    api = HfApi(token=optional_credential("hf.token", server.publish.hf_token))
    done = push(
        folder, settings.release.hf_repo_id, private=not settings.release.hf_public, api=api
    )
    log.info("run %s: pushed to %s (tag %s)", last.run, done.url, done.tag)
    sent.keep(pushed=done.url, tag=done.tag)
    return True


def _figures(
    events: list[Event], settings: RunSettings, sent: Sent, server: ServerSettings
) -> bool:
    """Log the rounds that Weights & Biases has not got yet."""
    from zk0d.release.wandb import log_rounds

    known = sent.facts.get("wandb_lines", 0)
    if len(events) == known:
        return False
    log_rounds(
        events,
        known,
        settings,
        folder=sent._path.parent / "wandb",
        key=optional_credential("wandb.key", server.publish.wandb_key),
    )
    sent.keep(wandb_lines=len(events))
    return True
