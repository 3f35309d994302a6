"""``zk0bot train``: one policy on one machine's recordings, the baseline of a federation.

It is a federation of one contributor whose updates travel uncoded into a server without momentum:
what comes out is what the trainer itself made, with the same evaluation, journal and resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy
from rich.console import Console

from zk0d.config.cameras import MappedAt, camera_feature, camera_name
from zk0d.config.machine import EvaluationDataset, ReadingSettings
from zk0d.config.run import RunSettings
from zk0d.demo.budget import run_values
from zk0d.demo.progress import Progress, RoundsView
from zk0d.errors import UsageError
from zk0d.learning.cameras import map_cameras, share_out
from zk0d.learning.checkpoint import write_checkpoint
from zk0d.learning.layout import find, read_info
from zk0d.learning.policy import load_policy
from zk0d.learning.statistics import RunStatistics
from zk0d.record.journal import STATISTICS, WEIGHTS, committed_rounds
from zk0d.record.state import RunState
from zk0d.simulation.engine import Simulation, simulate
from zk0d.simulation.main import new_folder, read_plan, write_plan
from zk0d.simulation.plan import Plan, VirtualNode
from zk0d.simulation.sources import join_robots, of_nodes, open_at_command, simulator_of

CHECKPOINT = "checkpoint"
TRAINING = "training"
#: What makes a federation of one be training alone; a user may not change these.
ALONE: dict[str, Any] = {
    "uplink-codec": "fp32",
    "drift-correction": "none",
    "downlink-codec": "fp32",
    "aggregation": "mean",
    "server-momentum": 0.0,
    "server-nesterov": False,
    "server-learning-rate": 1.0,
    "min-fit-clients": 1,
    "fraction-fit": 1.0,
    "round-minutes": 0.0,
    "norm-clip-factor": 0.0,
    "norm-outlier-factor": 0.0,
    "max-update-ratio": 0.0,
    "max-strikes": 0,
}


@dataclass(frozen=True)
class TrainOptions:
    """What a user can choose."""

    dataset: str
    held_out: str | None = None
    hold_out: float = 0.1
    rounds: int | None = None
    overrides: tuple[tuple[str, Any], ...] = ()
    cameras: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    device: str = "auto"
    reading: ReadingSettings = field(default_factory=ReadingSettings)
    models: tuple[tuple[str, Path], ...] = ()
    folder: Path | None = None


def alone(values: dict[str, Any]) -> RunSettings:
    """Run settings of training alone.

    Raises
    ------
    UsageError
        If one that belongs to a federation is given another value.
    """
    for key, value in ALONE.items():
        if values.get(key, value) != value:
            raise UsageError(f"-c: {key} is a federation's; training alone leaves it at {value}.")
    settings = RunSettings.parse({**values, **ALONE}, where="training")
    settings.check_stays("training")
    return settings


def train_alone(options: TrainOptions, console: Console) -> Path:
    """Train, evaluate, and write the checkpoint; its folder. Nothing is ever pushed.

    Raises
    ------
    Zk0dError
        If anything fails.
    """
    uris = [options.dataset, *([options.held_out] if options.held_out else [])]
    mapped, *of_held_out = share_out(options.cameras, uris)
    recordings = open_at_command(options.dataset, mapped)
    task = simulator_of(recordings)
    given = dict(options.overrides)
    values: dict[str, Any] = {}
    if task:
        side = max(shape[-1] for shape in recordings.summary.cameras.values())
        values = run_values(task, given.get("policy", "smolvla"), side)
    values["seed"] = options.seed
    if options.rounds is not None:
        values["num-server-rounds"] = options.rounds
    settings = alone({**values, **given})
    folder = new_folder(options.folder, "trainings")
    node = VirtualNode(name="alone", dataset_uri=options.dataset, cameras=mapped)
    notes = list(recordings.notices)
    if options.held_out is None:
        source = of_nodes([node], options.hold_out)
        (node,), evaluation = source.nodes, source.evaluation
    else:
        other = open_at_command(options.held_out, of_held_out[0])
        robots = [recordings.robot(recordings.finite_statistics())]
        mixed_units = settings.admission.allow_mixed_units
        notes += join_robots(robots, other, "--held-out", mixed_units=mixed_units)
        evaluation = [
            EvaluationDataset(
                name="held-out",
                dataset_uri=options.held_out,
                cameras=of_held_out[0],
                simulator=simulator_of(other),
            )
        ]
    for note in notes:
        console.print(f"notice: {note}", highlight=False, markup=False, soft_wrap=True)
    plan = Plan(
        nodes=[node],
        state=folder / "contributors",
        model_name=settings.model_name,
        models=dict(options.models),
        seed=options.seed,
        device=options.device,
        reading=options.reading,
    )
    simulation = Simulation(folder, plan, settings, tuple(evaluation))
    write_plan(simulation)
    return _train(simulation, console)


def resume_alone(folder: Path, console: Console) -> Path:
    """Go on with an interrupted training after its last committed round."""
    simulation = read_plan(folder)
    if len(simulation.plan.nodes) != 1:
        raise UsageError(f"--resume: {folder} is a simulation's; zk0bot simulate --resume.")
    return _train(simulation, console)


def _train(simulation: Simulation, console: Console) -> Path:
    settings = simulation.settings
    progress = Progress(console, f"zk0d train · {simulation.plan.nodes[0].dataset_uri}", [TRAINING])
    with progress.shown(), progress.stage(TRAINING) as stage:
        progress.rounds = RoundsView(settings.rounds.num_server_rounds, 1)
        run = simulate(simulation, progress.show, lambda text: progress.note(stage, text))
        stage.note = (
            f"{settings.total_steps} steps, evaluated after every {settings.training.local_steps}"
        )
    checkpoint = export(run, simulation.plan, simulation.folder / CHECKPOINT)
    console.print(
        f"checkpoint  {checkpoint}  (loads in LeRobot; nothing was pushed)\n"
        f"run         {run}  (journal.jsonl, metrics)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return checkpoint


def export(run: Path, plan: Plan, folder: Path) -> Path:
    """Write a run's last committed round as a LeRobot checkpoint.

    Its cameras have the names of the recordings, by which LeRobot's tools find those of the robot.
    """
    spec = RunState.read(run).spec
    assert spec is not None
    last = run / "rounds" / f"{committed_rounds(run)[-1]:05d}"
    loaded = load_policy(
        spec, models=plan.models, device="cpu", packages=plan.reading.policy_packages
    )
    loaded.load_weights(safetensors.numpy.load_file(last / WEIGHTS))
    statistics = RunStatistics.model_validate(
        json.loads((run / STATISTICS).read_text(encoding="utf-8"))
    )
    (node,) = plan.nodes
    info = read_info(find(node.dataset_uri), node.dataset_uri)
    cameras, _ = map_cameras(info, node.dataset_uri, node.cameras, MappedAt.COMMAND)
    own = {to: camera_feature(camera_name(key)) for key, to in cameras.items()}
    return write_checkpoint(loaded, statistics, folder, cameras=own)
