"""``zk0bot policy try``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zk0d.cli.policies import NAMED, Folder, settings_of, trained
from zk0d.cli.simulate import Camera, Device, MixedUnits, cameras
from zk0d.cli.verbs import Contributor

if TYPE_CHECKING:
    from zk0d.arm.fit import Fit
    from zk0d.arm.robot import Arm, RobotFile
    from zk0d.arm.rollout import Episode, Plan
    from zk0d.arm.tries import Tally
    from zk0d.cli.keys import Keys
    from zk0d.learning.trained import TrainedPolicy

#: A policy that sends fewer than this share of the commands in time was too slow.
_IN_TIME = 0.9
_ENTER = "\n\r "


def try_(
    release: Annotated[str, typer.Argument(help=NAMED)] = "latest",
    robot_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="LeRobot's configuration of your robot, YAML or JSON (needed)."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes that count.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, help="The longest that one takes.")] = 30.0,
    task: Annotated[
        str, typer.Option(help="The instruction, in the words of the recordings.")
    ] = "",
    speed: Annotated[
        float,
        typer.Option(
            min=0.01, max=30.0, help="How many of its training ranges a joint moves in a second."
        ),
    ] = 2.0,
    margin: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="How far beyond its training range, as a share of that."
        ),
    ] = 0.05,
    fps: Annotated[
        float | None,
        typer.Option(min=1.0, help="Actions per second, for a policy that does not say it."),
    ] = None,
    rtc: Annotated[
        bool, typer.Option("--rtc", help="Plan while the arm moves, for a slow policy.")
    ] = False,
    group: Annotated[
        str, typer.Option(help="The group of statistics, if the policy has several.")
    ] = "",
    camera: Camera = None,
    allow_mixed_units: MixedUnits = False,
    device: Device = "auto",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether to begin.")] = False,
    print_: Annotated[
        bool, typer.Option("--print", help="Only check, and print the lerobot-rollout command.")
    ] = False,
    folder: Folder = None,
    contributor: Contributor = "",
) -> None:
    """Try a policy on your arm within limits, and count how often it succeeds."""
    from zk0d.cli.keys import Keys
    from zk0d.errors import UsageError

    if robot_config is None:
        raise UsageError(
            "--robot-config: name LeRobot's configuration of your robot, a YAML file with type,"
            " port, id and cameras (docs/your-arm.md)."
        )
    keys = None if print_ else Keys()  # a check of minutes for nobody at a terminal helps nobody

    from zk0d.arm import fit
    from zk0d.arm.limits import Limits
    from zk0d.arm.robot import Arm, RobotFile
    from zk0d.arm.rollout import Plan
    from zk0d.arm.tries import weights_sha256
    from zk0d.config.families import FAMILIES
    from zk0d.learning.layout import ACTION
    from zk0d.learning.policy import pick_device
    from zk0d.learning.untrusted import refuse_code
    from zk0d.release.checkpoint import PROVENANCE, check_tensors, rate_of
    from zk0d.release.pulled import check_whole

    policy = trained(release, folder, contributor)
    settings = settings_of(folder, contributor)
    notices = [check_whole(policy.folder, policy.title, settings)]
    refuse_code(policy.folder, policy.title, policy.family)
    if (policy.folder / PROVENANCE).is_file():
        check_tensors(policy.folder)
    if FAMILIES[policy.family].reads_tokens and not task:
        raise UsageError(
            f"--task: {policy.title} reads an instruction; say what to do, in the words of the"
            " recordings."
        )
    robot = RobotFile.read(robot_config)
    arm = Arm.of(robot, robot.driver())
    own = fit.group_for(policy, arm, group, settings.name if settings else "")
    policy.check_processors(own)
    statistics = policy.statistics(own)
    mapped = cameras(camera)
    if not camera and settings:
        mapped = {own: to for own, to in settings.cameras.items() if own in arm.cameras}
    fits = fit.check(
        policy,
        statistics,
        arm,
        rate=rate_of(policy.folder),
        asked_rate=fps,
        cameras=mapped,
        mixed_units=allow_mixed_units,
    )
    limits = Limits.of(
        arm.action,
        statistics.features[ACTION],
        arm.reach,
        fps=fits.fps,
        speed=speed,
        margin=margin,
    )
    plan = Plan(
        folder=policy.folder,
        group=own,
        robot=robot.config,
        limits=limits,
        renamed=fits.renamed,
        task=task,
        fps=fits.fps,
        seconds=seconds,
        device=str(pick_device(device)),
        chunks_ahead=rtc,
    )
    notices += fits.notices
    if keys is None:
        _print(plan, robot, notices)
        return
    for line in _told(policy, plan, robot, arm, fits):
        typer.echo(line)
    for notice in filter(None, notices):
        typer.echo(f"notice: {notice}")
    if not yes and keys.ask("Move the arm within these limits? y/n", "yn") == "n":
        typer.echo("nothing was moved")
        return
    sha256 = weights_sha256(policy.folder)
    _run(plan, keys, episodes, sha256, policy.title, robot.kind)


def _print(plan: Plan, robot: RobotFile, notices: list[str]) -> None:
    from zk0d.release.rollout import command

    for notice in filter(None, notices):
        typer.echo(f"notice: {notice}", err=True)
    typer.echo(
        "notice: lerobot-rollout holds none of the limits of zk0bot policy try.",
        err=True,
    )
    lines = command(
        plan.folder,
        robot.content,
        group=plan.group,
        renamed=plan.renamed,
        task=plan.task,
        fps=plan.fps,
        seconds=plan.seconds,
        device=plan.device,
        chunks_ahead=plan.chunks_ahead,
    )
    typer.echo("\n".join(lines))


def _told(policy: TrainedPolicy, plan: Plan, robot: RobotFile, arm: Arm, fits: Fit) -> list[str]:
    """What will be tried, and the limits that are held."""
    seen = ", ".join(
        own if own == to else f"{own} as {to}" for own, to in fits.cameras.items() if to
    )
    called = f" '{robot.config.id}'" if robot.config.id else ""
    group = f", statistics of '{plan.group}'" if plan.group else ""
    rows = [
        f"policy   {policy.title} ({policy.family}), {plan.folder}{group}",
        f"arm      {robot.kind}{called}, cameras: {seen or 'none'}",
        f"episode  at most {plan.seconds:g} s at {plan.fps:g} actions per second on"
        f" {plan.device}" + (f": {plan.task}" if plan.task else ""),
        "limits   no goal lies outside of low and high, or further than a step from the one before",
        f"         {'joint':28} {'low':>9} {'high':>9} {'step':>9}",
    ]
    for joint in plan.limits.joints:
        unit = arm.units.get(joint.name)
        rows.append(
            f"         {joint.name:28} {joint.low:9.4g} {joint.high:9.4g} {joint.step:9.3g}"
            f"  {unit.value if unit else ''}".rstrip()
        )
    own = getattr(robot.config, "max_relative_target", None)
    if own is not None:
        rows.append(f"         and LeRobot's max_relative_target of your file: {own}")
    rows.append(
        "stop     any key ends an episode, Ctrl-C ends the try; between episodes and at the end the"
        " arm goes back to where it stands now"
    )
    return rows


def _run(plan: Plan, keys: Keys, episodes: int, sha256: str, title: str, robot_type: str) -> None:
    from zk0d.arm.rollout import connected
    from zk0d.arm.tries import Tries

    tries = Tries.of_user()
    done = succeeded = 0
    total: Tally | None = None
    interrupted = False
    try:
        with connected(plan) as arm:
            moved = False
            while done < episodes:
                if moved:
                    arm.go_home()
                asked = f"episode {done + 1} of {episodes}: Enter starts it, q ends the try"
                if arm.ended or keys.ask(asked, f"{_ENTER}q") == "q":
                    break
                moved = True
                episode = arm.episode(keys)
                typer.echo(_of(episode, plan))
                if episode.ended:
                    break
                answer = keys.ask(
                    "did it succeed? y, n, a: once more without counting, q: quit", "ynaq"
                )
                if answer == "q":
                    break
                if answer == "a":
                    continue
                done += 1
                succeeded += answer == "y"
                total = tries.add(sha256, title, robot_type, succeeded=answer == "y")
            interrupted = arm.ended
    except KeyboardInterrupt:
        interrupted = True
    typer.echo(f"{succeeded} of {done} succeeded now")
    if total is not None:
        typer.echo(f"{total.sentence()}  ({tries.file})")
    if interrupted:
        raise typer.Exit(130)


def _of(episode: Episode, plan: Plan) -> str:
    """An episode, in a line."""
    line = f"{episode.seconds:.0f} s, {episode.commands} commands, {episode.held} held back"
    if episode.rate < _IN_TIME * plan.fps:
        line += (
            f"; only {episode.rate:.1f} of {plan.fps:g} a second, so the arm was slower than its"
            " recordings: take a GPU, or --rtc"
        )
    return line
