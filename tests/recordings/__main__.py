"""From ``data check`` to a policy that plain LeRobot loads, for every shape of recordings.

``ZK0D_RECORDINGS`` names a folder of further datasets, one in each of its folders; they are only
read.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from rich.console import Console

from tests.learning.damage import fingerprint
from tests.recordings import page
from tests.recordings.shapes import SHAPES, TRAINED
from tests.recordings.trial import loads_in_lerobot, said_of
from zk0d.errors import DataError, Zk0dError
from zk0d.learning.convert import convert
from zk0d.simulation.alone import CHECKPOINT, TrainOptions, train_alone
from zk0d.simulation.main import Options, run_simulation

POLICIES = ("smolvla", "act")
SETTINGS = {
    "model-name": "tiny",
    "local-steps": 2,
    "batch-size": 4,
    "warmup-steps": 1,
    "eval-frames": 8,
    "eval-rollouts": 0,
}


def trial(folder: Path, place: Path, says: str) -> page.Outcome:
    """What becomes of one dataset, which ``check`` should describe with ``says``."""
    good, said = said_of(folder)
    told = "" if good and not says else _short(said, folder)
    if says and says in said:
        told = says
    verdict, outcomes = "read" if good else "refused", {}
    if "zk0bot data convert" in said:
        try:
            verdict, folder = _converted(folder, place / "converted")
            good, said = said_of(folder)
        except DataError as error:
            good, said = False, error.message
        if not good:
            verdict, told = "refused", _short(said, folder)
    if good:
        outcomes = {policy: _trained(policy, folder, place / policy) for policy in POLICIES}
    return page.Outcome(verdict, outcomes, " ".join(told.split()))


def _short(said: str, folder: Path) -> str:
    """Without the place of the dataset."""
    return said.removeprefix("local:").replace(f"{folder}: ", "").replace(str(folder), "FOLDER")


def _converted(folder: Path, output: Path) -> tuple[str, Path]:
    """A copy, and how it was made: the whole, or what is there of it."""
    try:
        return "convert", convert(folder, output)
    except DataError as error:
        if "--partial" not in error.message:
            raise
        return "convert --partial", convert(folder, output, partial=True)


def _trained(policy: str, folder: Path, place: Path) -> str:
    """Two simulated rounds, training alone, and the checkpoint in plain LeRobot."""
    values = tuple({**SETTINGS, "policy": policy}.items())
    uri, console = f"local:{folder}", Console(file=io.StringIO())
    rounds = Options(
        (uri,), 2, hold_out=0.25, rounds=2, overrides=values, device="cpu", folder=place / "two"
    )
    single = TrainOptions(
        uri, hold_out=0.25, rounds=1, overrides=values, device="cpu", folder=place / "alone"
    )
    try:
        run_simulation(rounds, console)
        train_alone(single, console)
        loads_in_lerobot(place / "alone" / CHECKPOINT)
    except Zk0dError as error:
        return f"refused: `{_short(error.message, folder).partition(';')[0]}`"
    except Exception as error:  # a traceback is a fault of zk0d
        return f"FAILED: `{type(error).__name__}: {error}`"
    return TRAINED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.recordings", description=__doc__)
    parser.add_argument("names", nargs="*", help="shapes or datasets; all if none is named")
    parser.add_argument(
        "--keep", action="store_true", help="keep what becomes of published datasets, for the page"
    )
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    folders = os.environ.get("ZK0D_RECORDINGS")
    found = sorted(Path(folders).glob("*/meta/info.json")) if folders else []
    further = {path.parents[1].name: path.parents[1] for path in found}
    known = {name: page.expected(each) for name, each in SHAPES.items()}
    known |= {name: each.outcome for name, each in page.published().items()}
    strange = []
    for name in options.names or [*SHAPES, *further]:
        with tempfile.TemporaryDirectory(prefix="zk0d-recordings-") as place:
            started = time.monotonic()
            shape = SHAPES.get(name)
            about = shape.about if shape else f"`{name}`"
            folder = Path(place) / "dataset" if shape else further[name]
            if shape:
                shape.make(folder)
            before = fingerprint(folder)
            outcome = trial(folder, Path(place), known[name].says if name in known else "")
            line = outcome.row(about)
            expected = outcome == known[name] if name in known else "FAILED" not in line
            if not expected or fingerprint(folder) != before:
                strange.append(name)
            print(f"{time.monotonic() - started:5.0f} s  {line}", end="", flush=True)
            if options.keep and not shape and name in known:
                page.keep(name, outcome)
                page.write()
    if strange:
        print(f"not as expected: {', '.join(strange)}", file=sys.stderr)
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main())
