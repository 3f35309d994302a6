"""``zk0bot compare``: a federation against one place, and against each contributor alone.

Every policy takes the same number of optimizer steps from the same first weights, with the same
merged statistics (a loss means nothing across normalizations), and is evaluated by the same seeded
evaluation. Only who trains on what differs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zk0d.daemon.workers import worker_pool
from zk0d.demo.progress import Progress
from zk0d.learning.merge import merge_datasets
from zk0d.simulation.alone import ALONE
from zk0d.simulation.arms import (
    Arm,
    Difference,
    Outcome,
    difference,
    merged_statistics,
    run_arms,
    with_settings,
)
from zk0d.simulation.engine import Simulation
from zk0d.simulation.main import Options, new_folder, source_of
from zk0d.simulation.plan import Plan, VirtualNode
from zk0d.simulation.sources import Source, open_at_command

FEDERATED, CENTRAL = "federated", "in one place"
RECORDINGS, TRAININGS = "recordings", "trainings"


def compare(options: Options, seeds: Sequence[int], rollouts: int, console: Console) -> Path:
    """Train all of them for each seed, and say what differs; the folder.

    Parameters
    ----------
    rollouts
        Closed-loop episodes for each policy, where there is a simulator.
    """
    settings = options.run_settings(max(3, options.count))
    settings.check_comparable("comparison")
    folder = new_folder(options.folder, "comparisons")
    progress = Progress(console, f"zk0d compare · seeds {seeds}", [RECORDINGS, TRAININGS])
    arms: list[Arm] = []

    def tell(note: str) -> None:
        console.print(f"notice: {note}", highlight=False, markup=False, soft_wrap=True)

    with progress.shown():
        with progress.stage(RECORDINGS) as stage:
            for seed in seeds:
                seeded = replace(options, seed=seed)
                source = source_of(seeded, folder / f"seed-{seed}")
                for note in source.notes if seed == seeds[0] else ():
                    tell(note)
                arms += arms_of(seeded, source, folder / f"seed-{seed}", rollouts)
            stage.note = f"{len(arms)} trainings for {len(seeds)} seeds"
        with progress.stage(TRAININGS) as stage:
            count = 0
            told: list[str] = []

            def done(outcome: Outcome) -> None:
                nonlocal count
                count += 1
                how = "" if outcome.success is None else f", success {outcome.success:.2f}"
                progress.note(
                    stage,
                    f"{count} of {len(arms)}: {outcome.title}, seed {outcome.seed}, loss"
                    f" {outcome.loss:.4f}{how}",
                )
                for note in outcome.notices:
                    if note not in told:
                        told.append(note)
                        tell(note)

            outcomes = run_arms(arms, folder / "trainings.log", done)
            stage.note = f"{len(outcomes)} trained and evaluated"
    report(outcomes, folder, console)
    return folder


def arms_of(options: Options, source: Source, folder: Path, rollouts: int) -> list[Arm]:
    """Federated, in one place, and each alone, for one seed."""
    settings = options.run_settings(len(source.nodes))
    simulator = any(each.simulator for each in source.evaluation)
    common: dict[str, Any] = {
        "eval-frequency": settings.rounds.num_server_rounds,
        "eval-frames": 0,
        "eval-rollouts": rollouts if simulator else 0,
    }
    base = Simulation(
        folder / FEDERATED,
        Plan(
            nodes=source.nodes,
            state=folder / FEDERATED / "contributors",
            model_name=settings.model_name,
            models=dict(options.models),
            seed=options.seed,
            forced_statistics=merged_statistics(source.nodes),
            device=options.device,
            reading=options.reading,
            cpu_threads=1,
        ),
        settings,
        tuple(source.evaluation),
    )
    arms = [Arm(FEDERATED, options.seed, with_settings(base, base.folder, **common))]
    lone: list[tuple[str, VirtualNode]] = [(CENTRAL, in_one_place(source.nodes, folder))]
    lone += [(f"{node.name} alone", node) for node in source.nodes]
    for title, node in lone:
        where = folder / title.replace(" ", "-")
        made = with_settings(base, where, **common, **ALONE)
        plan = made.plan.model_copy(update={"nodes": [node]})
        arms.append(Arm(title, options.seed, replace(made, plan=plan)))
    return arms


def in_one_place(nodes: Sequence[VirtualNode], folder: Path) -> VirtualNode:
    """A contributor who has what all of them have."""
    uris = {node.dataset_uri for node in nodes}
    mappings = [node.cameras for node in nodes]
    if len(uris) == 1 and mappings.count(mappings[0]) == len(mappings):
        episodes = sorted(episode for node in nodes for episode in node.episodes)
        return nodes[0].model_copy(update={"name": "everything", "episodes": episodes})
    episodes, roots, offset = [], [], 0
    for node in nodes:
        recordings = open_at_command(node.dataset_uri, node.cameras)
        roots.append(recordings.layout.root)
        episodes += [offset + episode for episode in node.episodes or recordings.episodes]
        offset += len(recordings.layout.episodes)
    everything = folder / "everything"
    folder.mkdir(parents=True, exist_ok=True)
    if not everything.exists():
        with worker_pool(1, folder / "recordings.log") as pool:
            pool.submit(merge_datasets, roots, everything).result()
    return VirtualNode(
        name="everything",
        dataset_uri=f"local:{everything}",
        episodes=episodes,
        cameras=nodes[0].cameras,
    )


def report(outcomes: Sequence[Outcome], folder: Path, console: Console) -> None:
    """``compare.json``, ``compare.md``, ``compare.png`` and a table on the screen."""
    titles = list(dict.fromkeys(outcome.title for outcome in outcomes))
    by_title = {title: [o for o in outcomes if o.title == title] for title in titles}
    table = Table(title=f"equal steps ({outcomes[0].steps}), equal seeded evaluation")
    headers = ("policy", "loss", "success", "federated − this: loss", "federated − this: success")
    for header in headers:
        table.add_column(header, justify="left" if header == "policy" else "right")
    rows = []
    for title in titles:
        against = None if title == FEDERATED else by_title[title]
        rows.append(_row(title, by_title[title], by_title[FEDERATED], against))
        table.add_row(*rows[-1], style="bold green" if title == FEDERATED else None)
    content = {
        "schema_version": 1,
        "test": "95 % interval of the difference paired by seed: Student's t, for success at least"
        " the binomial one; noise if it holds zero",
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }
    (folder / "compare.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "compare.md").write_text(markdown(headers, rows), encoding="utf-8")
    _draw(folder / "compare.png", titles, by_title)
    console.print()
    console.print(table)
    console.print(
        f"{content['test']}.\n"
        f"numbers  {folder / 'compare.json'}\n"
        f"table    {folder / 'compare.md'}\n"
        f"chart    {folder / 'compare.png'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and, of several, standard deviation over the seeds."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def differences(
    first: Sequence[Outcome], second: Sequence[Outcome]
) -> tuple[Difference, Difference | None]:
    """Of loss and of success, paired by seed."""
    loss = difference([o.loss for o in first], [o.loss for o in second])
    if any(o.success is None for o in (*first, *second)):
        return loss, None
    return loss, difference(
        [o.success or 0.0 for o in first], [o.success or 0.0 for o in second], first[0].rollouts
    )


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _row(
    title: str,
    outcomes: Sequence[Outcome],
    federated: Sequence[Outcome],
    against: Sequence[Outcome] | None,
) -> tuple[str, ...]:
    rates = [o.success for o in outcomes if o.success is not None]
    loss, success = differences(federated, against) if against else (None, None)
    return (
        title,
        spread([o.loss for o in outcomes], 4),
        spread(rates, 2) if rates else "–",
        loss.sentence() if loss else "",
        success.sentence() if success else "",
    )


def _draw(path: Path, titles: Sequence[str], by_title: dict[str, list[Outcome]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = ["loss"]
    if all(o.success is not None for each in by_title.values() for o in each):
        kinds.append("success")
    figure, axes = pyplot.subplots(
        1, len(kinds), figsize=(5.5 * len(kinds), 4.2), layout="constrained", squeeze=False
    )
    for axis, kind in zip(axes[0], kinds, strict=True):
        for place, title in enumerate(titles):
            values = [float(getattr(o, kind)) for o in by_title[title]]
            axis.bar(place, sum(values) / len(values), color="C2" if title == FEDERATED else "C0")
            axis.plot([place] * len(values), values, "k.", ms=5)
        axis.set_xticks(range(len(titles)), titles, rotation=40, ha="right", fontsize=8)
        axis.set_title(f"{kind}: mean, and each seed")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
