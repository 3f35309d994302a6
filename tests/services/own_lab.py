"""A contributor's folder as its services leave it, for its owner's page.

``python -m tests.services.own_lab`` draws docs/images/own-page-*.png; look at them before you
commit them.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from pathlib import Path

from tests.browser import PHONE, drawn
from zk0d.daemon.line import LineBook
from zk0d.daemon.own_rounds import OwnRound, RoundBook
from zk0d.machine.state import StateFile, write_json
from zk0d.services.own_page import OwnPage
from zk0d.services.standalone import SERVICES_FILE

PICTURES = Path(__file__).parents[2] / "docs/images"
DAY = 86400.0
SETTINGS = """\
name = "kitchen-arm"
[coordinator]
address = "hub:9443"
[supernode]
state = "{folder}/supernode"
[superexec]
state = "{folder}/apps"
[limits]
hours = "mon-fri 22:00-07:00, sat, sun"
priority = ["steam", "blender"]
bytes-per-day = "20 GB"
metered = true
"""


def own_folder(folder: Path, rounds: int = 12) -> Path:
    """Settings, and what a SuperNode's service and ClientApps noted yesterday and today."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "client.toml").write_text(SETTINGS.format(folder=folder))
    now = time.time()
    for seconds, days_rounds in ((now - DAY, range(1, 4)), (now, range(4, rounds + 1))):
        moment = time.localtime(seconds)
        line = LineBook(folder / "apps", lambda moment=moment: moment)  # type: ignore[misc]
        book = RoundBook(folder / "apps", lambda moment=moment: moment)  # type: ignore[misc]
        for number in days_rounds:
            line.add(down=300_000_000, up=200_000_000)
            book.add(
                OwnRound(
                    run="7",
                    round=number,
                    steps=40,
                    train_loss=0.5,
                    holdout_loss=0.3 + 1.7 * math.exp(-(number - 1) / 4),
                    seconds=600.0,
                    joules=9e4,
                )
            )
    tell(folder)
    return folder


def tell(folder: Path, **changes: object) -> None:
    """Write what the SuperNode's service tells, and the foreground's supervisor."""
    (folder / "supernode").mkdir(exist_ok=True)
    facts = {
        "online": True,
        "held": "",
        "left": False,
        "until": None,
        "key": "a" * 64,
        "run": {"run": "7", "state": "running", "round": 12, "rounds": 30, "goes_on": ""},
        "status": "online; round 12/30 is done",
        "todo": "",
    }
    told = {**facts, **changes}
    StateFile(folder / "supernode").tell(**told)
    services = [
        {"name": name, "state": "running", "restarts": 0, "status": status}
        for name, status in (
            ("supernode", told["status"]),
            ("client-superexec", "ready for work"),
            ("learner", "training step 12/40, 9 s left, loss 0.4100"),
            ("owner", "the owner does not need this machine"),
        )
    ]
    content = {"pid": os.getpid(), "since": "2026-11-30 09:00:00", "services": services}
    write_json(folder / "supernode" / SERVICES_FILE, content)


def main() -> None:
    """Draw the pictures anew."""
    for name, width, height in (("desktop", 1280, 1500), ("phone", PHONE, 1900)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = own_folder(Path(temporary) / "node")
            page = OwnPage(folder).render("/-/", "-").decode()
            page = page.replace(str(folder), "/home/ann/.config/zk0d")
            picture = drawn(page, Path(temporary), width, height)
            picture.quantize(64).save(PICTURES / f"own-page-{name}.png", optimize=True)


if __name__ == "__main__":
    main()
