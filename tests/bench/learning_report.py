"""Writes the tables of ``make results`` into docs/results.md, between two marks, and a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Protocol

from zk0d.simulation.arms import Outcome, difference
from zk0d.simulation.compare import CENTRAL, FEDERATED, differences, markdown, spread

PAGE, CHART = Path("docs/results.md"), Path("docs/images/unlike.png")
BEGIN, END = "<!-- learning: made by make results -->", "<!-- learning: end -->"
#: What each experiment's lines are compared with (with nothing if empty).
YARDSTICKS = {
    "normalization": "merged (default)",
    "iid": CENTRAL,
    "gap": CENTRAL,
    "own": "merged (default)",
    "poison": "mean",
    "schedules": "plain FedAvg",
    "rules": "mean",
    "participation": "100%",
    "late": "all are waited for",
    "codecs": "fp32",
    "downlink": "bf16",
    "drift": f"{CENTRAL}, 4e-03",
    "choices": "today",
    "shorter": f"{CENTRAL}, 4e-03",
    "peers": "",
    "length": "",
    "poisoned-drift": "mean, clean",
    "unlike-poisoned": "mean, clean",
    "unlike-rules": "mean, clean",
    "pace": "",
    "calibration": "all alike, in one place, 4e-03",
    "so101": CENTRAL,
    "adapters": "whole expert",
}
HEADINGS = {
    "normalization": "Whose statistics: two contributors by region",
    "main": "Federated, in one place, alone",
    "iid": "Split iid, with more seeds",
    "gap": "What closes the gap by region: four contributors",
    "own": "Statistics of one's own, with more seeds: four contributors by region",
    "poison": "One poisoned of four, iid",
    "schedules": "Schedules against plain FedAvg: two contributors by region",
    "rules": "Rules without an attacker: four contributors by region",
    "participation": "Participation: four contributors by region",
    "late": "One of four by region takes three times as long",
    "codecs": "Codecs: two contributors by region",
    "downlink": "Weights down as a difference: two contributors by region",
    "drift": "Drift correction: unlike contributors against one place",
    "choices": "What the defaults of drift correction are worth: eight contributors by region",
    "shorter": "Shorter rounds for many contributors, or for some that are often away",
    "peers": "Other rules, without drift correction",
    "length": "How long a round should be, at the same steps in all",
    "poisoned-drift": "Drift correction with one poisoned of four, iid",
    "unlike-poisoned": "Drift correction with one poisoned of four, by region",
    "unlike-rules": "Robust rules without an attacker: eight contributors by region",
    "pace": "Rounds of equal time on machines of unequal speed, by region",
    "calibration": "Four arms, each calibrated otherwise by two standard deviations",
    "so101": "SO-101 pick-and-place: long and short rounds, two contributors by region",
    "adapters": "What trains of a base that knows half of the table: four contributors by region",
}
#: Their tables tell what was sent up.
WITH_BYTES = ("codecs", "adapters")
Key = tuple[str, str, int]


class Line(Protocol):
    """What :mod:`tests.bench.learning_results` makes."""

    @property
    def title(self) -> str: ...

    @property
    def key(self) -> Key: ...


def write_report(kept: Mapping[Key, Outcome], lines: Mapping[str, Sequence[Line]]) -> None:
    """Put a table for each experiment that has outcomes between the marks of the page."""
    parts = []
    for name, wanted in lines.items():
        found = {line.key: kept[line.key] for line in wanted if line.key in kept}
        if not found:
            parts.append(f"### {HEADINGS[name]}\n\nNot run.\n")
            continue
        by_title: dict[str, list[Outcome]] = {}
        for outcome in found.values():
            by_title.setdefault(outcome.title, []).append(outcome)
        table = _main(by_title) if name == "main" else _against(by_title, YARDSTICKS[name], name)
        missing = len(wanted) - len(found)
        note = f"\n{missing} of {len(wanted)} trainings of this table were not run.\n"
        parts.append(f"### {HEADINGS[name]}\n\n{table}{note if missing else ''}")
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n".join(parts)
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{after}", encoding="utf-8")


def draw_chart(kept: Mapping[Key, Outcome], names: Sequence[str], rates: Sequence[str]) -> None:
    """Success by number of contributors by region: drift correction, other rules, one place.

    Every rule of ``names`` stands at that of ``rates`` where its mean over all counts is best.
    Nothing is drawn before every point is there. Of one or two seeds there is no interval.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = (2, 4, 8, 16)

    def points(experiment: str, titles: Sequence[str]) -> list[list[float]]:
        return [
            [
                outcome.success
                for (name, other, _), outcome in kept.items()
                if (name, other) == (experiment, title) and outcome.success is not None
            ]
            for title in titles
        ]

    lines = {"drift correction": points("drift", [f"{count} by region" for count in counts])}
    for name in names:
        there = [
            points("peers", [f"{count} by region, {name}, {rate}" for count in counts])
            for rate in rates
        ]
        whole = [each for each in there if all(each)]
        if whole:
            lines[name] = max(whole, key=lambda each: sum(map(fmean, each)))
    (place,) = points("drift", [YARDSTICKS["drift"]])
    if len(lines) <= len(names) or not all(lines["drift correction"]) or not place:
        return
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(
        fmean(place), color="gray", ls="--", label=f"all recordings in one place{_of(place)}"
    )
    for number, (name, rates_of) in enumerate(lines.items()):
        # Side by side, so that intervals can be told apart.
        places = [index + 0.05 * (number - len(lines) / 2) for index in range(len(counts))]
        means = [fmean(each) for each in rates_of]
        errors = [
            difference(each, [0.0] * len(each)).half_width if len(each) > 2 else nan
            for each in rates_of
        ]
        ours = name == "drift correction"
        axes.errorbar(
            places,
            means,
            errors,
            marker="o",
            capsize=3,
            lw=2.4 if ours else 1.2,
            label=name + _of(*rates_of),
        )
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    axes.set(
        xlabel="contributors, each with its own part of the table", ylabel="success", ylim=(0, 1.05)
    )
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(CHART, dpi=130)


def _of(*points: Sequence[float]) -> str:
    """How many seeds stand behind a line's points."""
    fewest, most = min(map(len, points)), max(map(len, points))
    count = str(most) if fewest == most else f"{fewest} to {most}"
    return f" ({count} seed{'s' if most > 1 else ''})"


def _against(by_title: Mapping[str, Sequence[Outcome]], yardstick: str, name: str) -> str:
    rows = []
    for title, outcomes in by_title.items():
        like = {outcome.seed: outcome for outcome in by_title.get(yardstick, [])}
        pairs = [(o, like[o.seed]) for o in outcomes if o.seed in like]
        loss, success = "", ""
        if title != yardstick and pairs:
            by_loss, by_success = differences([a for a, _ in pairs], [b for _, b in pairs])
            loss = by_loss.sentence() if len(pairs) > 1 else f"{by_loss.mean:+.3f} (one seed)"
            success = by_success.sentence() if by_success else ""
        row = [title, _seeds(outcomes), *_means(outcomes)]
        if yardstick:
            row += [loss, success]
        if name in WITH_BYTES:
            row.insert(2, f"{outcomes[0].bytes_up / 1e6:.1f} MB")
        if name == "participation":
            row.insert(2, str(sum(outcome.refused for outcome in outcomes)))
        rows.append(row)
    headers = ["", "seeds", "loss", "success"]
    if yardstick:
        headers += [f"loss − {yardstick}", f"success − {yardstick}"]
    if name in WITH_BYTES:
        headers.insert(2, "up, a run")
    if name == "participation":
        headers.insert(2, "answers missing")
    return markdown(headers, rows)


def _main(by_title: Mapping[str, Sequence[Outcome]]) -> str:
    """Federated beside one place and the mean of those alone, by number and shares."""
    central = {outcome.seed: outcome for outcome in by_title.get(CENTRAL, [])}
    rows = []
    if central:
        rows.append(
            [CENTRAL, _seeds([*central.values()]), *_means([*central.values()]), "", "", ""]
        )
    for title, outcomes in by_title.items():
        if not title.endswith(FEDERATED):
            continue
        start = title.removesuffix(FEDERATED)
        alone = [o for t, each in by_title.items() if t.startswith(f"{start}alone") for o in each]
        pairs = [(o, central[o.seed]) for o in outcomes if o.seed in central]
        loss = success = None
        if pairs:
            loss, success = differences([a for a, _ in pairs], [b for _, b in pairs])
        said = loss.sentence() if loss and len(pairs) > 1 else ""
        if loss and len(pairs) == 1:
            said = f"{loss.mean:+.3f} (one seed)"
        lone = " / ".join(_means(alone)) if alone else "–"
        rows.append(
            [
                title,
                _seeds(outcomes),
                *_means(outcomes),
                said,
                success.sentence() if success else "",
                lone,
            ]
        )
    headers = [
        "contributors",
        "seeds",
        "loss",
        "success",
        "loss − one place",
        "success − one place",
        "each alone: loss / success",
    ]
    return markdown(headers, rows)


def _means(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    rates = [outcome.success for outcome in outcomes if outcome.success is not None]
    return (
        spread([outcome.loss for outcome in outcomes], 4),
        spread(rates, 2) if rates else "–",
    )


def _seeds(outcomes: Sequence[Outcome]) -> str:
    return " ".join(str(outcome.seed) for outcome in sorted(outcomes, key=lambda o: o.seed))
