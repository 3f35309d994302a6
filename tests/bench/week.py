"""A week of twelve homes against the real ServerApp, and undisturbed runs beside it.

Every line trains the tiny policy on SoReach with the real learner, by region; outcomes are kept in
a file as they come, so that an interrupted call goes on. With ``--account`` learners are stand-ins
that train nothing: the same week in a minute, for what became of the work alone.

    python -m tests.bench.week [--account] [--seed N ...] [--only TITLE] [--parks] [--report]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from tests.bench.learning_results import FOLDER, TODAY, base
from tests.federation.fakes import FakeEvaluator
from tests.week.evaluator import InProcessEvaluator
from tests.week.homes import Home, homes, steady, undisturbed
from tests.week.learners import FakeLearners, RealLearners
from tests.week.week import TROUBLE, Account, Trouble, run_week, say
from zk0d.config.run import run_settings

OUTCOMES, PAGE = Path("docs/results/week.jsonl"), Path("docs/results.md")
BEGIN, END = "<!-- week: made by python -m tests.bench.week -->", "<!-- week: end -->"
#: Rounds of the week's run; chosen, as the other settings, on seeds 0 to 2.
ROUNDS = 200
#: One optimizer step of a machine in the middle stands for so many seconds: a tiny policy's week
#: takes minutes. In a round's half hour it takes five.
STEP_SECONDS = 360.0
SETTINGS = {
    **TODAY,
    "local-steps": 5,
    "round-minutes": 30,
    "round-deadline": 3600.0,
    "min-fit-clients": 2,
    "checkpoint-interval": 0,
    "keep-rounds": 1,
}
#: Evaluations of a run.
LOOKS = 4
SEEDS = (3, 4, 5)

#: The same with stand-ins, until the week is over.
ACCOUNTS: dict[str, dict[str, float]] = {
    "stand-ins, by pace": {},
    "stand-ins, the same steps of each": {"round-minutes": 0},
}
STAND_INS = {
    **SETTINGS,
    "num-server-rounds": 10_000,
    "drift-correction": "none",
    # All weights of the fakes are 0 or 1, all updates far longer.
    "max-update-ratio": 0.0,
    "uplink-codec": "fp32",
    "downlink-codec": "fp32",
    "eval-frequency": 0,
}

WEEK, SAME_MACHINES = "a week", "undisturbed, the same machines"
#: Twelve machines that are all alike.
ROUNDS_ALIKE, WORK_ALIKE = "undisturbed, as many rounds", "undisturbed, same work"


@dataclass(frozen=True)
class Outcome:
    """What one line came to. ``curve``: round, hour, loss and success of each evaluation."""

    title: str
    seed: int
    rounds: int
    finished: bool
    hours: float
    steps: int
    counted: float
    late: float
    lost: dict[str, float]
    refusals: dict[str, int]
    loss: float | None
    success: float | None
    curve: tuple[tuple[int, float, float, float], ...]
    parks: bool
    seconds: float


def lent_in(title: str, seed: int) -> list[Home]:
    """The homes of a line."""
    if title == WEEK:
        return homes(seed)
    return undisturbed(homes(seed)) if title == SAME_MACHINES else steady(12)


def make(title: str, seed: int, *, parks: bool, rounds: int) -> Outcome:
    """Train one line."""
    began = time.monotonic()
    lent = lent_in(title, seed)
    settings = {**SETTINGS, "num-server-rounds": rounds, "eval-frequency": rounds // LOOKS}
    simulation = base("region", len(lent), seed, **settings)
    folder = FOLDER.absolute() / "week" / f"{title.replace(' ', '-')}-{seed}"
    plan = simulation.plan.model_copy(update={"state": folder / "contributors"})
    made = run_week(
        folder / "run",
        lent,
        simulation.settings,
        RealLearners(plan, lent, STEP_SECONDS, keeps=parks),
        InProcessEvaluator(simulation),
        step_seconds=STEP_SECONDS,
        trouble=TROUBLE if title == WEEK else Trouble(),
        parks=parks,
    )
    print(f"{time.strftime('%H:%M:%S')} {title}, seed {seed}: {say(made)}", flush=True)
    return outcome(title, seed, made, parks, time.monotonic() - began)


def outcome(title: str, seed: int, made: Account, parks: bool, seconds: float) -> Outcome:
    """What is kept of it."""
    curve = []
    for event in made.committed:
        if event.evaluation and event.evaluation.loss is not None:
            hour = made.hours[event.round - 1] if event.round else 0.0
            success = event.evaluation.success or 0.0
            curve.append((event.round, round(hour, 1), round(event.evaluation.loss, 4), success))
    return Outcome(
        title=title,
        seed=seed,
        rounds=made.rounds,
        finished=made.finished,
        hours=round(made.hours[-1], 1),
        steps=made.steps.total(),
        counted=round(made.counted, 4),
        late=round(made.late / made.steps.total(), 4),
        lost={why: round(share, 4) for why, share in made.lost().items() if share},
        refusals=made.refusals,
        loss=curve[-1][2] if curve else None,
        success=curve[-1][3] if curve else None,
        curve=tuple(curve),
        parks=parks,
        seconds=round(seconds),
    )


def account(title: str, seed: int, *, parks: bool) -> Outcome:
    """A week with stand-ins."""
    began = time.monotonic()
    lent = homes(seed)
    made = run_week(
        FOLDER.absolute() / "week" / f"{title.replace(' ', '-')}-{seed}",
        lent,
        run_settings({**STAND_INS, **ACCOUNTS[title]}),
        FakeLearners(lent, STEP_SECONDS),
        FakeEvaluator(),
        step_seconds=STEP_SECONDS,
        parks=parks,
    )
    print(f"{time.strftime('%H:%M:%S')} {title}, seed {seed}: {say(made)}", flush=True)
    return outcome(title, seed, made, parks, time.monotonic() - began)


def kept() -> dict[tuple[str, int], Outcome]:
    """Outcomes that are there, by title and seed."""
    if not OUTCOMES.exists():
        return {}
    lines = map(json.loads, OUTCOMES.read_text(encoding="utf-8").splitlines())
    return {(line["title"], line["seed"]): Outcome(**line) for line in lines}


def run(seeds: list[int], only: list[str], *, parks: bool) -> None:
    """Make what is not there yet."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    FOLDER.mkdir(exist_ok=True)
    for seed in seeds:
        for title in (WEEK, SAME_MACHINES, WORK_ALIKE, ROUNDS_ALIKE):
            if (title, seed) in kept() or (only and title not in only):
                continue
            rounds = ROUNDS
            if title == WORK_ALIKE:
                week = kept().get((WEEK, seed))
                if week is None:
                    continue
                rounds = round(week.steps / (SETTINGS["local-steps"] * 12))
            _write(make(title, seed, parks=parks, rounds=rounds))


def run_accounts(seeds: list[int], only: list[str], *, parks: bool) -> None:
    """The same with stand-ins."""
    for seed in seeds:
        for title in ACCOUNTS:
            if (title, seed) not in kept() and (not only or title in only):
                _write(account(title, seed, parks=parks))


def _write(made: Outcome) -> None:
    with OUTCOMES.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(made)) + "\n")


def table(outcomes: dict[tuple[str, int], Outcome]) -> Iterator[str]:
    """The outcomes as Markdown."""
    yield "| seed | | rounds | hours | optimizer steps | counted | late | loss | success |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for (title, seed), each in sorted(outcomes.items(), key=lambda item: (item[0][1], item[0][0])):
        yield (
            f"| {seed} | {title} | {each.rounds} | {each.hours:.0f} | {each.steps:,} |"
            f" {each.counted:.1%} | {each.late:.1%} | {_number(each.loss)} |"
            f" {_number(each.success)} |"
        )
    weeks = [each for each in outcomes.values() if each.title in (WEEK, *ACCOUNTS)]
    if not weeks:
        return
    yield ""
    yield (
        "| why work did not count, of all steps | "
        + " | ".join(f"{each.title}, seed {each.seed}" for each in weeks)
        + " |"
    )
    yield "|---|" + "---|" * len(weeks)
    whys = {
        why: fmean(each.lost.get(why, 0.0) for each in weeks) for each in weeks for why in each.lost
    }
    for why in sorted(whys, key=lambda why: -whys[why]):
        yield f"| {why} | " + " | ".join(f"{each.lost.get(why, 0.0):.1%}" for each in weeks) + " |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def write_report() -> None:
    """Put the tables between their marks in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n".join(table(kept())) if kept() else "Not run."
    PAGE.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A week of twelve homes.")
    parser.add_argument("--account", action="store_true", help="with learners that train nothing")
    parser.add_argument("--seed", type=int, action="append", default=[])
    parser.add_argument("--only", action="append", default=[], help="only lines of this title")
    parser.add_argument(
        "--parks", action="store_true", help="learners keep their round's state on disk"
    )
    parser.add_argument("--report", action="store_true", help="only write the tables")
    asked = parser.parse_args()
    if not asked.report:
        make_lines = run_accounts if asked.account else run
        make_lines(asked.seed or list(SEEDS), asked.only, parks=asked.parks)
    write_report()
