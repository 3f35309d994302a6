"""``zk0bot demo``: recordings, a federation of real processes, and an honest comparison."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from zk0d.config.run import RunSettings
from zk0d.daemon.workers import worker_pool
from zk0d.demo.budget import picture_side, run_values
from zk0d.demo.layout import Layout
from zk0d.demo.progress import Progress, RoundsView, Stage
from zk0d.errors import ChildError
from zk0d.record.journal import JournalTail, committed_rounds
from zk0d.report.folder import write_report
from zk0d.simulators.tasks import TASKS

RECORDINGS, PROCESSES, FEDERATION, COMPARISON = (
    "recordings",
    "processes",
    "federation",
    "comparison",
)
HELD_OUT_SEED = 500_000  #: after any training recording's seed of the same contributor
SEEDS_PER_CONTRIBUTOR = 1_000_000
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class DemoOptions:
    """What a user can choose."""

    seed: int = 0
    contributors: int = 2
    rounds: int | None = None
    policy: str = "smolvla"
    task: str = "soreach"
    demonstrations: int = 150
    held_out: int = 15
    episodes: int = 100
    folder: Path | None = None
    overrides: tuple[tuple[str, Any], ...] = ()

    def run_settings(self) -> RunSettings:
        """The run's settings: what makes the task learn, and what was asked for."""
        values: dict[str, Any] = {
            **run_values(self.task, self.policy),
            "seed": self.seed,
            "min-fit-clients": self.contributors,
            "server-momentum": 0.5,
        }
        if self.rounds is not None:
            values["num-server-rounds"] = self.rounds
        values.update(self.overrides)
        settings = RunSettings.parse(values, where="demo")
        settings.check_stays("demo")
        settings.check_comparable("demo")
        return settings


def run_demo(options: DemoOptions, console: Console, picture: Path | None = None) -> Path:
    """Run it all; the folder with what it made, and at ``picture`` the last view as an SVG.

    Raises
    ------
    Zk0dError
        If anything fails; no process of the demo is left.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = options.run_settings()
    folder = options.folder or Path("demo-runs") / time.strftime("%Y-%m-%d_%H-%M-%S")
    layout = Layout.make(folder, options.contributors, options.task)
    cores = os.cpu_count() or 1
    progress = Progress(
        console,
        f"zk0d demo · {TASKS[options.task].title} · {options.contributors} contributors ·"
        f" {options.policy} · seed {options.seed}",
        [RECORDINGS, PROCESSES, FEDERATION, COMPARISON],
    )
    seconds: dict[str, float] = {}
    with _terminated_as_interrupted(), progress.shown():
        _make_recordings(options, layout, progress, cores)
        run = _federate(options, settings, layout, progress, cores, seconds)
        outcomes = _compare(options, settings, layout, run, progress, cores)
    from zk0d.demo import results

    results.write_summary(
        layout.root / "summary.json",
        outcomes,
        layout.contributors,
        options.episodes,
        {
            "seed": options.seed,
            "task": options.task,
            "policy": options.policy,
            "contributors": options.contributors,
            "rounds": settings.rounds.num_server_rounds,
            "run": str(run.relative_to(layout.root)),
            "seconds": {name: round(value, 1) for name, value in seconds.items()},
            "settings": settings.to_flat(),
            "versions": {name: version(name) for name in ("zk0d", "flwr", "lerobot", "torch")},
        },
    )
    results.draw_chart(layout.root / "chart.png", run, outcomes, layout.contributors)
    report = write_report(run)
    table = results.table(outcomes, layout.contributors, options.episodes)
    if picture is not None:
        screen = Console(record=True, file=io.StringIO(), width=92, force_terminal=True)
        screen.print(progress.render(), "", table)
        screen.save_svg(str(picture), title="make demo")
    console.print()
    console.print(table)
    console.print(
        f"summary  {layout.root / 'summary.json'}\n"
        f"chart    {layout.root / 'chart.png'}\n"
        f"report   {report}\n"
        f"run      {run}  (journal.jsonl, committed rounds)\n"
        f"logs     {layout.logs}\n"
        f"Next: another seed (--seed {options.seed + 1}), more contributors (--contributors 4), or"
        " docs/results.md.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return layout.root


def _make_recordings(options: DemoOptions, layout: Layout, progress: Progress, cores: int) -> None:
    from zk0d.demo.recordings import make_recordings

    with progress.stage(RECORDINGS) as stage:
        pool = worker_pool(min(cores, options.contributors), layout.logs / "recordings.log")
        with _closed(pool):
            futures: list[Future[int]] = []
            for number, contributor in enumerate(layout.contributors):
                first = (options.seed * 100 + number) * SEEDS_PER_CONTRIBUTOR
                for path, episodes, seed in (
                    (layout.recordings(contributor), options.demonstrations, first),
                    (layout.held_out(contributor), options.held_out, first + HELD_OUT_SEED),
                ):
                    futures.append(
                        pool.submit(
                            make_recordings,
                            path,
                            contributor.sector,
                            episodes,
                            seed,
                            size=picture_side(options.policy),
                            task=options.task,
                        )
                    )
            done = _results(futures, layout, stage, progress, "datasets")
        stage.note = (
            f"{options.contributors * options.demonstrations} demonstrations and"
            f" {options.contributors * options.held_out} held-out episodes, {sum(done):,} frames"
        )


def _federate(
    options: DemoOptions,
    settings: RunSettings,
    layout: Layout,
    progress: Progress,
    cores: int,
    seconds: dict[str, float],
) -> Path:
    from zk0d.demo.federation import federation
    from zk0d.flower.control import FINISHED

    began = time.monotonic()
    with progress.stage(PROCESSES) as stage:
        running = federation(layout, cpu_threads=max(1, cores // options.contributors))
        federated = running.__enter__()
        stage.note = f"{len(federated.children)}: SuperLink, SuperExecs, SuperNodes, learners"
    try:
        with progress.stage(FEDERATION) as stage:
            seconds["start"] = time.monotonic() - began
            run_id = federated.start_run(settings)
            run = layout.runs / str(run_id)
            progress.rounds = RoundsView(settings.rounds.num_server_rounds, options.contributors)
            tail = JournalTail(run)
            while True:
                state = federated.state(run_id)
                for event in tail.new_events():
                    progress.show(event)
                if state.status == FINISHED:
                    break
                federated.check()
                time.sleep(LOOK_SECONDS)
            federated.raise_if_failed(state)
            stage.note = f"{progress.rounds.round} rounds of {settings.training.local_steps} steps"
    except BaseException as error:
        if not running.__exit__(type(error), error, error.__traceback__):
            raise
    else:
        running.__exit__(None, None, None)
    seconds["federation"] = time.monotonic() - began
    return run


def _compare(
    options: DemoOptions,
    settings: RunSettings,
    layout: Layout,
    run: Path,
    progress: Progress,
    cores: int,
) -> list[Any]:
    from zk0d.demo.comparison import Job, measure
    from zk0d.demo.results import FEDERATED, PLAIN
    from zk0d.learning.merge import merge_datasets

    steps = settings.total_steps
    contributors = layout.contributors
    sectors = tuple(contributor.sector for contributor in contributors)
    folders = tuple(layout.recordings(contributor) for contributor in contributors)

    def job(title: str, **how: Any) -> Job:
        return Job(
            title=title,
            settings=settings,
            sectors=sectors,
            episodes=options.episodes,
            task=options.task,
            **how,
        )

    federated = run / "rounds" / f"{committed_rounds(run)[-1]:05d}" / "global.safetensors"
    with progress.stage(COMPARISON) as stage:
        pool = worker_pool(min(cores, 4), layout.logs / "comparison.log")
        with _closed(pool):
            everything, averaged = folders, []
            if len(contributors) > 1:
                pool.submit(merge_datasets, list(folders), layout.everything).result()
                everything = (layout.everything,)
                averaged = [job(PLAIN, recordings=folders, steps=steps)]
            jobs = [
                *(
                    job(f"{c.title} alone", recordings=(layout.recordings(c),), steps=steps)
                    for c in contributors
                ),
                *averaged,
                job(
                    FEDERATED,
                    recordings=folders[:1],
                    steps=steps,
                    weights=federated,
                    statistics=run / "statistics.json",
                ),
                job("everything in one place", recordings=everything, steps=steps),
                job("everything, double steps", recordings=everything, steps=2 * steps),
            ]
            # The longest begins first, so that the cores end together.
            longest = sorted(jobs, key=lambda each: -each.work)
            futures = {each.title: pool.submit(measure, each) for each in longest}
            _results(list(futures.values()), layout, stage, progress, "policies")
            outcomes = [futures[each.title].result() for each in jobs]
        stage.note = f"{len(jobs)} policies, {options.episodes} episodes in each region"
    return outcomes


def _results(
    futures: list[Future[Any]], layout: Layout, stage: Stage, progress: Progress, what: str
) -> list[Any]:
    """Wait for the workers, saying how far they are; their results in the order of ``futures``."""
    try:
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            progress.note(stage, f"{number} of {len(futures)} {what}")
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise ChildError(
            f"a worker of the demo's {stage.title} died (out of memory?); {layout.logs} has its"
            " last lines."
        ) from None


@contextmanager
def _closed(pool: Any) -> Iterator[None]:
    """End the workers: kindly after success, at once after anything else."""
    try:
        yield
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does: every process is stopped on the way out."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
