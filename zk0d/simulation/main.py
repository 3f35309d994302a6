"""``zk0bot simulate``: from what a user asks for to a run, and what is left of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from zk0d.config.machine import EvaluationDataset, ReadingSettings
from zk0d.config.names import DatasetUri, check_apart
from zk0d.config.run import LEAST_UPDATES, RunSettings, stored_settings
from zk0d.daemon.workers import worker_pool
from zk0d.demo.budget import run_values
from zk0d.demo.progress import Progress, RoundsView
from zk0d.errors import UsageError
from zk0d.flower.simulation import RayOptions, has_ray
from zk0d.learning.partition import SCHEMES, Scheme
from zk0d.record.events import NodeLost, UpdateRefused
from zk0d.record.journal import read_journal
from zk0d.report.folder import write_report
from zk0d.simulation.engine import Engine, Simulation, simulate
from zk0d.simulation.plan import Contributors, Plan, with_faults
from zk0d.simulation.sources import Source, nodes_of, of_episodes, of_nodes, of_soreach

RECORDINGS, ROUNDS = "recordings", "rounds"
PLAN = "simulation.json"
#: Up to so many are trained in this process unless Ray is asked for: its workers load for seconds.
FEW = 8

#: SoReach: what makes it learn (docs/results.md).
SOREACH: dict[str, Any] = run_values("soreach")
TINY: dict[str, Any] = {
    **SOREACH,
    "num-server-rounds": 3,
    "local-steps": 10,
    "batch-size": 16,
    "warmup-steps": 4,
    "eval-frequency": 1,
    "eval-frames": 64,
    "eval-rollouts": 4,
}


@dataclass(frozen=True)
class Options:
    """What a user can choose."""

    datasets: tuple[str, ...] = ()
    contributors: int | None = None
    file: Path | None = None
    by: str = "iid"
    alpha: float = 0.5
    hold_out: float = 0.1
    rounds: int | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    cameras: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    tiny: bool = False
    demonstrations: int | None = None
    drop: float = 0.0
    slow: tuple[str, ...] = ()
    poison: int = 0
    replay: Path | None = None
    engine: str = "auto"
    ray: RayOptions = field(default_factory=RayOptions)
    device: str = "auto"
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    models: tuple[tuple[str, Path], ...] = ()
    folder: Path | None = None

    @property
    def count(self) -> int:
        return self.contributors or (2 if self.tiny else 4)

    def run_settings(self, nodes: int) -> RunSettings:
        """The run's settings for so many contributors."""
        soreach = not self.datasets and self.file is None
        values: dict[str, Any] = dict(TINY if self.tiny else SOREACH if soreach else {})
        values["seed"] = self.seed
        if self.rounds is not None:
            values["num-server-rounds"] = self.rounds
        values.update(self.overrides)
        values.setdefault("min-fit-clients", self._quorum(nodes, values))
        settings = RunSettings.parse(values, where="simulation")
        settings.check_stays("simulation")
        return settings

    def _quorum(self, nodes: int, values: dict[str, Any]) -> int:
        """All, if nothing takes one away: then a run repeats bit by bit."""
        fraction = float(values.get("fraction-fit", 1.0))
        faults = self.drop or self.slow or self.replay or self.poison
        if fraction == 1.0 and not faults:
            return nodes
        least = LEAST_UPDATES.get(str(values.get("aggregation")), 1)
        return min(nodes, max(least, round(fraction * (1.0 - self.drop) * nodes / 2)))


def run_simulation(options: Options, console: Console) -> Path:
    """Run it all; the run's folder.

    Raises
    ------
    Zk0dError
        If anything fails.
    """
    check(options)
    folder = new_folder(options.folder, "simulations")
    progress = Progress(console, f"zk0d simulate · seed {options.seed}", [RECORDINGS, ROUNDS])
    with progress.shown():
        with progress.stage(RECORDINGS) as stage:
            source = source_of(options, folder)
            nodes = with_faults(source.nodes, list(options.slow), options.poison)
            settings = options.run_settings(len(nodes))
            stage.note = (
                f"{len(nodes)} contributors with"
                f" {sum(len(node.episodes) for node in nodes)} episodes"
            )
        for note in source.notes:
            console.print(f"notice: {note}", highlight=False, markup=False, soft_wrap=True)
        plan = Plan(
            nodes=nodes,
            state=folder / "contributors",
            model_name=settings.model_name,
            models=dict(options.models),
            seed=options.seed,
            drop=options.drop,
            missing=_missing(options.replay) if options.replay else {},
            device=options.device,
            reading=options.reading,
            cpu_threads=1,
        )
        engine = _engine(options.engine, options.ray, len(nodes))
        simulation = Simulation(
            folder, plan, settings, tuple(source.evaluation), engine, _at_once(options.ray)
        )
        write_plan(simulation)
        return _follow(simulation, progress, console)


def resume_simulation(folder: Path, console: Console, engine: str, ray: RayOptions) -> Path:
    """Go on with the simulation in ``folder`` after its last committed round."""
    simulation = read_plan(folder)
    picked = _engine(engine, ray, len(simulation.plan.nodes))
    simulation = replace(simulation, engine=picked, ray=_at_once(ray))
    progress = Progress(console, f"zk0d simulate · {folder} resumes", [ROUNDS])
    with progress.shown():
        return _follow(simulation, progress, console)


def source_of(options: Options, folder: Path) -> Source:
    """The contributors that the options mean."""
    scheme: Scheme = options.by  # type: ignore[assignment]
    cameras = options.cameras
    mixed_units = options.run_settings(max(3, options.count)).admission.allow_mixed_units
    uris = [str(DatasetUri.typed(text)) for text in options.datasets]
    if options.file is not None or len(uris) > 1:
        file = options.file
        nodes = nodes_of(uris) if file is None else Contributors.load(file).contributor
        return of_nodes(nodes, options.hold_out, cameras=cameras, mixed_units=mixed_units)
    if uris:
        return of_episodes(
            uris[0],
            options.count,
            scheme,
            options.hold_out,
            seed=options.seed,
            alpha=options.alpha,
            cameras=cameras,
        )
    each = 6 if options.tiny else 75
    total = options.demonstrations or max(each * options.count, 2 * options.count)
    folder.mkdir(parents=True, exist_ok=True)
    with worker_pool(min(2, os.cpu_count() or 1), folder / "recordings.log") as pool:
        return of_soreach(
            folder,
            options.count,
            scheme,
            total,
            4 if options.tiny else 20,
            seed=options.seed,
            alpha=options.alpha,
            make=pool.submit,
        )


def new_folder(wanted: Path | None, parent: str) -> Path:
    """The folder for everything, which must be empty.

    Raises
    ------
    UsageError
        If it is not, or lies in recordings.
    """
    folder = (wanted or Path(parent) / time.strftime("%Y-%m-%d_%H-%M-%S")).absolute()
    check_apart(folder, "--folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"--folder: {folder} is not empty; name a new folder.")
    return folder


def check(options: Options) -> None:
    """Refuse what cannot be meant.

    Raises
    ------
    UsageError, ConfigError
        Naming the option or the setting.
    """
    options.run_settings(max(3, options.count))  # before anything is recorded
    if options.by not in SCHEMES:
        raise UsageError(f"--by: {options.by!r} is none of {', '.join(SCHEMES)}.")
    if not 0.0 <= options.drop < 1.0:
        raise UsageError(f"--drop: give a chance from 0 to below 1, not {options.drop:g}.")
    if options.file is not None and options.datasets:
        raise UsageError("--file names the contributors; leave the datasets out.")
    if options.cameras and not options.datasets and options.file is None:
        raise UsageError("--camera maps the cameras of datasets; name some, or leave it out.")
    if options.contributors and (options.file is not None or len(options.datasets) > 1):
        raise UsageError(
            "--contributors splits one dataset; several datasets are one contributor each."
        )


def _engine(wanted: str, ray: RayOptions, nodes: int) -> Engine:
    if wanted == "auto":
        asked = ray.address or ray.workers > 1 or nodes > FEW
        return "ray" if has_ray() and asked else "in-process"
    found: Literal["ray", "in-process"] = "ray" if wanted == "ray" else "in-process"
    if found == "in-process" and (ray.address or ray.workers > 1):
        raise UsageError("--engine in-process trains one after another; leave --workers out.")
    return found


def _at_once(ray: RayOptions) -> RayOptions:
    workers = ray.workers or max(1, int((os.cpu_count() or 1) // ray.cpus))
    return RayOptions(ray.address, workers, ray.cpus, ray.gpus)


def _missing(run: Path) -> dict[int, list[str]]:
    """By round, who gave no answer in a run, by its journal."""
    away: dict[int, list[str]] = {}
    events = list(read_journal(run))
    if not events:
        raise UsageError(f"--replay: {run} holds no journal; give a run's folder.")
    for event in events:
        if isinstance(event, NodeLost) or (isinstance(event, UpdateRefused) and not event.strike):
            away.setdefault(event.round, []).append(event.node)
    return away


def read_plan(folder: Path) -> Simulation:
    """An interrupted simulation, to be resumed.

    Raises
    ------
    UsageError
        If the folder holds none.
    """
    folder = folder.absolute()
    try:
        kept = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"--resume: {folder} holds nothing to resume ({PLAN} cannot be read)."
        ) from None
    return Simulation(
        folder,
        Plan.parse(kept["plan"], where=PLAN),
        RunSettings.parse({**stored_settings(kept["settings"]), "resume": "1"}, where=PLAN),
        tuple(EvaluationDataset.parse(each, where=PLAN) for each in kept["evaluation"]),
        number=2,
    )


def write_plan(simulation: Simulation) -> None:
    """Write a simulation's plan, so that it can be resumed or repeated."""
    simulation.folder.mkdir(parents=True, exist_ok=True)
    content = {
        "settings": simulation.settings.to_flat(),
        "plan": simulation.plan.model_dump(mode="json", by_alias=True),
        "evaluation": [e.model_dump(mode="json", by_alias=True) for e in simulation.evaluation],
    }
    (simulation.folder / PLAN).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _follow(simulation: Simulation, progress: Progress, console: Console) -> Path:
    plan, settings = simulation.plan, simulation.settings
    where = "in this process, one contributor after another"
    if simulation.engine == "ray":
        at = f"at {simulation.ray.address}" if simulation.ray.address else "on this machine"
        where = f"on Ray {at}"
    elif not has_ray():
        where += " (Ray is not installed; pip install 'zk0d[simulation]' for many)"
    with progress.stage(ROUNDS) as stage:
        progress.note(stage, where)
        progress.rounds = RoundsView(settings.rounds.num_server_rounds, len(plan.nodes))
        run = simulate(simulation, progress.show, lambda text: progress.note(stage, text))
        stage.note = (
            f"{progress.rounds.round} rounds of {settings.training.local_steps} steps, {where}"
        )
    report = write_report(run)
    console.print(
        f"run      {run}  (journal.jsonl, committed rounds, server, clients)\n"
        f"report   {report}\n"
        f"plan     {simulation.folder / PLAN}\n"
        f"log      {simulation.folder / 'flower.log'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return run
