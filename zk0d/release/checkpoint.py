"""A checkpoint's folder: LeRobot's own files, the card, the figures, and where it comes from."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from zk0d.config.machine import ServerSettings
from zk0d.config.run import LATEST_OR_BASE, RunSettings, run_settings, stored_settings
from zk0d.errors import ConfigError, TryAgainError, not_written
from zk0d.files import point, write_file
from zk0d.learning.spec import RobotDescription
from zk0d.record.held_out import change_of
from zk0d.record.summary import RunSummary
from zk0d.release.chart import CHART, draw_training
from zk0d.release.gate import Verdict, judge

METRICS, PROVENANCE, CARD = "metrics.json", "provenance.json", "README.md"
WEIGHTS = "*.safetensors"
#: The last release; a run's best; and the release of another run that was the latest before it.
LATEST, BEST, BEFORE = "latest", "best", "before"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Releases:
    """The folder with one folder per run, and the link to the latest release.

    A run has one candidate: of its checkpoints that passed the gate, the one with the lowest
    held-out loss. They do not compete with each other before the gate, because two rounds of one
    run seldom differ by more than the evaluation's spread.
    """

    folder: Path

    @classmethod
    def of(cls, server: ServerSettings) -> Releases:
        """Those of a coordinator."""
        return cls(server.releases_folder)

    def checkpoint(self, run: str, number: int) -> Path:
        """Where a round's checkpoint lies."""
        if not run.isascii() or not run.replace("-", "").isalnum():
            raise ConfigError(f"run {run!r} is not a run's name.", reason="bad_message")
        return self.folder / run / f"checkpoint_round_{number}"

    def rival(self, run: str) -> RunSummary | None:
        """What a checkpoint of ``run`` must beat: the last release of another run.

        ``None`` if there is none that can be read.
        """
        latest = _summary(self.folder / LATEST)
        if latest is not None and latest.run == run:
            return _summary(self.folder / run / BEFORE)
        return latest

    def find(self, name: str) -> Path | None:
        """The checkpoint that ``start-from`` means.

        Parameters
        ----------
        name
            ``latest``; a run's name for its best; ``RUN/ROUND`` for any that passed the gate or
            was accepted by hand; or ``latest-or-base``.

        Returns
        -------
        ``None`` if ``latest-or-base`` means the base model, because there is no release yet.

        Raises
        ------
        ConfigError
            If there is none.
        """
        run, _, number = name.partition("/")
        if name in (LATEST, LATEST_OR_BASE):
            folder = self.folder / LATEST
        elif number:
            folder = self.checkpoint(run, int(number) if number.isdecimal() else 0)
        else:
            folder = self.checkpoint(run, 0).parent / BEST
        there = (folder / "model.safetensors").is_file()
        if name == LATEST_OR_BASE and not there:
            return None
        if not there or (number and not _is_released(folder)):
            raise ConfigError(
                f"start-from: there is no release '{name}' in {self.folder}; it must have passed"
                " the gate (zk0bot release list).",
                reason="no_release",
            )
        return folder.resolve()

    def settle(self, folder: Path, verdict: Verdict) -> None:
        """Point ``latest`` and the run's ``best`` to a checkpoint that passed the gate.

        They stay if a checkpoint of the same run that passed has a lower loss.
        """
        if not verdict.passed:
            return
        best = folder.parent / BEST
        if best.resolve() != folder.resolve() and _loss(best) < _loss(folder):
            return
        point_to(best, folder)
        self.make_latest(folder)

    def make_latest(self, folder: Path) -> None:
        """Point ``latest`` to a checkpoint, and remember which other run's it was before.

        Raises
        ------
        TryAgainError
            If no link can be written.
        """
        latest = self.folder / LATEST
        before = latest.resolve()
        if before.parent != folder.resolve().parent and before.is_dir():
            point_to(folder.resolve().parent / BEFORE, before)
        point_to(latest, folder)

    def prune(self, run: str, keep: int) -> None:
        """Delete the run's oldest checkpoints beyond ``keep``; what a link names stays."""
        home = self.folder / run
        links = [home / BEST, self.folder / LATEST, *self.folder.glob(f"*/{BEFORE}")]
        named = {link.resolve() for link in links}
        found = sorted(home.glob("checkpoint_round_*"), key=_round_of)
        for path in found[: max(0, len(found) - keep)]:
            if path.resolve() not in named:
                shutil.rmtree(path, ignore_errors=True)


def describe(
    folder: Path,
    summary: RunSummary,
    verdict: Verdict,
    card: str,
    *,
    parent: dict[str, str],
    licenses: dict[str, str],
    robot_types: Sequence[str] = (),
    robot: RobotDescription | None = None,
    fps: float | None = None,
) -> None:
    """Add the card, ``metrics.json`` and ``provenance.json`` to a checkpoint's folder.

    Parameters
    ----------
    robot
        Whose joints' names are noted, in order; LeRobot's own files do not have them.
    fps
        Frames per second that the action chunk is made for; LeRobot's files lack it, too.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    contents: dict[str, Any] = {
        METRICS: {
            "schema_version": SCHEMA_VERSION,
            "gate": {
                "passed": verdict.passed,
                "reasons": list(verdict.reasons),
                "judged_by": verdict.judged_by,
            },
            "summary": summary.model_dump(mode="json"),
        },
        PROVENANCE: {
            "schema_version": SCHEMA_VERSION,
            "run": summary.run,
            "round": summary.round,
            "seed": summary.settings["seed"],
            "versions": summary.versions,
            "settings": summary.settings,
            "settings_sha256": _sha256(json.dumps(summary.settings, sort_keys=True).encode()),
            "code_sha256": code_sha256(),
            "nodes": [part.model_dump() for part in summary.nodes],
            "evaluation_licenses": licenses,
            "robot_types": list(robot_types),
            "joints": {
                "state": list(robot.state.names if robot else ()),
                "action": list(robot.action.names if robot else ()),
            },
            "fps": fps,
            "parent": parent,
            "tensors": _tensors(folder),
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    draw_training(summary, folder / CHART)


def accept(folder: Path, because: str, releases: Releases) -> None:
    """Make a checkpoint the latest release although the gate said no; card and figures record it.

    Raises
    ------
    ConfigError
        If it is no checkpoint.
    TryAgainError
        If it cannot be written.
    """
    read_summary(folder)
    metrics, card = folder / METRICS, folder / CARD
    try:
        content = json.loads(metrics.read_text(encoding="utf-8"))
        content["gate"]["accepted"] = because
        text = card.read_text(encoding="utf-8")
        said = f"\n\nAccepted by hand in spite of it: {because}\n"
        marked = text.replace("\n\n## Training Insights", f"{said}\n## Training Insights", 1)
        write_file(card, marked if marked != text else text + said)
        write_file(metrics, json.dumps(content, indent=1) + "\n")
        releases.make_latest(folder)
    except OSError as error:
        raise TryAgainError(
            f"{folder}: cannot be written ({error.strerror or error}); are you root?"
        ) from None


def point_to(link: Path, folder: Path) -> None:
    """Make a link to a checkpoint.

    Raises
    ------
    TryAgainError
        If it cannot be written.
    """
    try:
        point(link, folder)
    except OSError as error:
        what = f"{link}: no link to the checkpoint can be written"
        raise not_written(what, error) from None


def read_summary(folder: Path) -> RunSummary:
    """What a checkpoint's ``metrics.json`` tells.

    Raises
    ------
    ConfigError
        If it is no checkpoint of zk0d.
    """
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        content = metrics["summary"] if "summary" in metrics else metrics["story"]  # before 0.2
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder}: is not a checkpoint of zk0d ({METRICS}: {error}); name a checkpoint_round_N"
            " folder."
        ) from None
    return RunSummary.parse(content, where=str(path))


def _summary(folder: Path) -> RunSummary | None:
    try:
        return read_summary(folder)
    except ConfigError:
        return None


def _loss(folder: Path) -> float:
    """Held-out loss of a checkpoint's own round; infinity if it is not known.

    Where nodes alone evaluate, it is how their losses changed since the run's beginning.
    """
    summary = _summary(folder)
    if summary is None:
        return math.inf
    if not summary.has_evaluations:
        since = change_of(summary)
        return math.inf if since is None else since.mean
    loss = {point.round: point.loss for point in summary.evaluations}.get(summary.round)
    return math.inf if loss is None else loss


def _is_released(folder: Path) -> bool:
    """Whether a checkpoint passed the gate, or was accepted in spite of it."""
    try:
        gate = json.loads((folder / METRICS).read_text(encoding="utf-8"))["gate"]
        return bool(gate["passed"] or gate.get("accepted"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def tensors_of(file: Path) -> dict[str, str]:
    """Type and shape of every tensor, ``F32 [64, 9]``, by its name; reads the file's header alone.

    Raises
    ------
    ConfigError
        If the file is cut short, or no safetensors file.
    """
    try:
        with safe_open(file, "numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {n: f"{part.get_dtype()} {part.get_shape()}" for n, part in parts.items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(
            f"{file}: is cut short or not a safetensors file ({error}); take another checkpoint, or"
            " copy this one again.",
            reason="torn_weights",
        ) from None


def _tensors(folder: Path) -> dict[str, dict[str, str]]:
    """Of every file of tensors, by its place in the folder."""
    files = sorted(folder.rglob(WEIGHTS))
    return {file.relative_to(folder).as_posix(): tensors_of(file) for file in files}


def check_tensors(folder: Path) -> None:
    """Whether a checkpoint's files of tensors hold what was written, by their headers.

    Raises
    ------
    ConfigError
        Naming the file and the first tensor that is missing, extra, or of another type or shape.
    """
    path = folder / PROVENANCE
    try:
        written = json.loads(path.read_text(encoding="utf-8")).get("tensors", {})
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); copy the checkpoint again.") from None
    found = _tensors(folder)
    for name, wanted in written.items():
        have = found.get(name, {})
        for tensor in sorted(wanted.keys() | have.keys()):
            if have.get(tensor) != wanted.get(tensor):
                raise ConfigError(
                    f"{folder / name}: tensor '{tensor}' is {have.get(tensor, 'missing')}, the"
                    f" checkpoint was written with {wanted.get(tensor, 'none of that name')}; copy"
                    " it again.",
                    reason="other_weights",
                )


def check_lerobot(folder: Path, title: str) -> None:
    """Whether the LeRobot that is here is the one that a checkpoint of zk0d was written with.

    A patch's number may differ. A folder that does not say passes: LeRobot reads it, or says why.

    Raises
    ------
    ConfigError
        Naming both versions.
    """
    try:
        theirs = str(_provenance(folder)["versions"]["lerobot"])
    except (KeyError, TypeError):
        return
    own = version("lerobot")
    if series_of(theirs) != series_of(own):
        raise ConfigError(
            f"{title}: was written with LeRobot {theirs}, here is {own}, in which the same weights"
            " may act otherwise; use the zk0d of that release, or a newer release."
        )


def series_of(lerobot: str) -> tuple[str, ...]:
    """A version of LeRobot without its last number: those of one series read each other's files."""
    return tuple(lerobot.split(".")[:2])


def robot_types_of(folder: Path) -> tuple[str, ...]:
    """The types of robots that a checkpoint's statistics are of; none if it does not say."""
    told = _provenance(folder).get("robot_types")
    return tuple(map(str, told)) if isinstance(told, list) else ()


def joints_of(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a checkpoint calls the numbers of the state and of the action; none if it does not."""
    told = _provenance(folder).get("joints")
    if not isinstance(told, dict):
        return (), ()
    state, action = (tuple(map(str, told.get(what) or ())) for what in ("state", "action"))
    return state, action


def rate_of(folder: Path) -> float | None:
    """Frames per second that a checkpoint's actions are made for; ``None`` if it does not say."""
    told = _provenance(folder).get("fps")
    return float(told) if isinstance(told, int | float) and told > 0 else None


def settings_of(folder: Path) -> RunSettings | None:
    """The settings of the run that a checkpoint is of; ``None`` if it does not say."""
    told = _provenance(folder).get("settings")
    if not isinstance(told, dict):
        return None
    try:
        return run_settings(stored_settings(told), where=str(folder / PROVENANCE))
    except ConfigError:
        return None  # a newer zk0d's


def _provenance(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its origin; nothing if it says nothing."""
    try:
        content = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def judge_folder(folder: Path, last: Path | None) -> Verdict:
    """What the gate says of a checkpoint's folder, beside the release in ``last``."""
    return judge(read_summary(folder), read_summary(last) if last else None)


@functools.cache
def code_sha256() -> str:
    """Over the names and contents of zk0d's own modules, as they are installed here."""
    root = Path(__file__).parents[1]
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest = _sha256(path.read_bytes())
        whole.update(f"{digest}  {path.relative_to(root).as_posix()}\n".encode())
    return whole.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def base_of(folder: Path) -> str:
    """SHA-256 of the policy with which a checkpoint's run began; empty if that is not known."""
    try:
        parent = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))["parent"]
        return str(parent["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def name_of(folder: Path) -> str:
    """A checkpoint's name for ``start-from``: ``RUN/ROUND``."""
    return f"{folder.parent.name}/{_round_of(folder)}"


def _round_of(path: Path) -> int:
    number = path.name.rpartition("_")[2]
    return int(number) if number.isdigit() else -1
