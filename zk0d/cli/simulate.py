"""``zk0bot simulate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from zk0d.config.machine import ReadingSettings

Config = Annotated[
    list[str] | None, typer.Option("-c", "--config", help="Run settings, 'key=value ...'.")
]
Folder = Annotated[
    Path | None, typer.Option(help="A new folder for everything (simulations/DATE).")
]
Model = Annotated[
    list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Folder of a base model.")
]
HoldOut = Annotated[float, typer.Option(help="Share of the episodes kept out for evaluation.")]


def _device(value: str) -> str:
    from zk0d.config.machine import check_device

    try:
        return check_device(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", callback=_device)]
Learner = Annotated[
    list[str] | None,
    typer.Option(
        "--learner",
        help="Keys of [learner] in client.toml: max-bad-frames, policy-packages and cache.KEY,"
        " 'key=value ...'.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Fixes weights, sampling, shares and faults.")]
By = Annotated[str, typer.Option(help="One dataset's episodes: iid, dirichlet, task or region.")]
Alpha = Annotated[float, typer.Option(help="Dirichlet's concentration; a small one is uneven.")]
Demonstrations = Annotated[
    int | None, typer.Option(min=2, help="SoReach: recorded episodes in all.")
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds to train.")]
Camera = Annotated[
    list[str] | None,
    typer.Option(
        metavar="OWN=POLICYS", help="A camera's name in the policy; OWN= leaves the camera out."
    ),
]
MixedUnits = Annotated[
    bool,
    typer.Option(
        "--allow-mixed-units", help="Let joints of other scales pass, and another type of robot."
    ),
]


def simulate(
    datasets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATASET...]",
            help="Several: a contributor for each. One: its episodes are split. None: SoReach.",
        ),
    ] = None,
    contributors: Annotated[
        int | None, typer.Option("-n", "--contributors", min=1, help="Number of contributors (4).")
    ] = None,
    contributors_file: Annotated[
        Path | None, typer.Option("--file", help="TOML with [[contributor]] tables.")
    ] = None,
    by: By = "iid",
    alpha: Alpha = 0.5,
    hold_out: HoldOut = 0.1,
    rounds: Rounds = None,
    config: Config = None,
    seed: Seed = 0,
    tiny: Annotated[bool, typer.Option(help="A few small rounds, to see that it works.")] = False,
    demonstrations: Demonstrations = None,
    drop: Annotated[float, typer.Option(help="Chance that a contributor misses a round.")] = 0.0,
    slow: Annotated[list[str] | None, typer.Option(help="3@2x: three take twice as long.")] = None,
    poison: Annotated[
        int, typer.Option(min=0, help="Number of contributors that send poisoned updates.")
    ] = 0,
    replay: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="A run's folder: nodes that were away there are away here."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="ray, in-process, or auto: Ray if it is installed and pays.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Contributors that train at once, here (1: in turn).")
    ] = None,
    ray_address: Annotated[str, typer.Option(help="A Ray cluster, such as host:6379.")] = "",
    cpus: Annotated[float, typer.Option(min=0.01, help="CPUs that a contributor takes.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0.0, help="GPUs that a contributor takes.")] = 0.0,
    camera: Camera = None,
    allow_mixed_units: MixedUnits = False,
    device: Device = "auto",
    learner: Learner = None,
    model: Model = None,
    folder: Folder = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Resume an interrupted simulation.")
    ] = None,
) -> None:
    """Run a federation of virtual contributors: the same apps, run folder and outputs."""
    from rich.console import Console

    from zk0d.cli.interrupt import ends_at_once
    from zk0d.errors import UsageError
    from zk0d.flower.simulation import RayOptions
    from zk0d.simulation.main import Options, resume_simulation, run_simulation

    if engine not in ("auto", "ray", "in-process"):
        raise UsageError(f"--engine: {engine!r} is none of auto, ray, in-process.")
    if ray_address and workers:
        raise UsageError("--workers is for this machine; with --ray-address the shares decide.")
    ray = RayOptions(ray_address, workers or 0, cpus, gpus)
    if resume is not None:
        with ends_at_once("simulation"):
            resume_simulation(resume, Console(), engine, ray)
        return
    options = Options(
        datasets=tuple(datasets or ()),
        contributors=contributors,
        file=contributors_file,
        by=by,
        alpha=alpha,
        hold_out=hold_out,
        rounds=rounds,
        overrides=overrides(config, allow_mixed_units),
        cameras=cameras(camera),
        seed=seed,
        tiny=tiny,
        demonstrations=demonstrations,
        drop=drop,
        slow=tuple(slow or ()),
        poison=poison,
        replay=replay,
        engine=engine,
        ray=ray,
        device=device,
        reading=reading(learner),
        models=models(model),
        folder=folder,
    )
    with ends_at_once("simulation"):
        run_simulation(options, Console())


def overrides(config: list[str] | None, allow_mixed_units: bool) -> tuple[tuple[str, Any], ...]:
    """The run settings that the options say."""
    from zk0d.config.run import parse_overrides

    said = parse_overrides(config or [])
    return tuple({**said, **({"allow-mixed-units": True} if allow_mixed_units else {})}.items())


def cameras(texts: list[str] | None) -> dict[str, str]:
    """``OWN=POLICYS`` texts as a mapping."""
    from zk0d.config.cameras import camera_name
    from zk0d.errors import UsageError

    mapping: dict[str, str] = {}
    for text in texts or []:
        own, equals, to = text.rpartition("=")
        if not (own and equals):
            raise UsageError(
                f"--camera: {text!r} is not of the form OWN=POLICYS; write front=camera1, or front="
                " to leave the camera out."
            )
        if camera_name(own) in mapping:
            raise UsageError(f"--camera: {own!r} is named twice; keep one.")
        mapping[camera_name(own)] = camera_name(to)
    return mapping


def models(texts: list[str] | None) -> tuple[tuple[str, Path], ...]:
    """``NAME=FOLDER`` texts as pairs."""
    from zk0d.errors import UsageError

    pairs = []
    for text in texts or []:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UsageError(f"--model: {text!r} is not of the form NAME=FOLDER.")
        pairs.append((name, Path(path).expanduser()))
    return tuple(pairs)


def reading(texts: list[str] | None) -> ReadingSettings:
    """``key=value`` texts of ``--learner`` as settings."""
    from zk0d.config.base import parse_words
    from zk0d.config.machine import ReadingSettings

    values: dict[str, Any] = {}
    for key, value in parse_words(texts or [], "--learner"):
        table, dot, inner = key.rpartition(".")
        (values.setdefault(table, {}) if dot else values)[inner] = value
    return ReadingSettings.parse(values, where="--learner")
