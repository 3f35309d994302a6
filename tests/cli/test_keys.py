"""Questions that one key answers, at a real terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.terminal import Terminal

ASKS = """
import threading
from zk0d.cli.keys import Keys

keys = Keys()
print("got", keys.ask("sure? y/n", "yn"), flush=True)
stop = threading.Event()
with keys.watched(stop):
    print("moving", flush=True)
    print("stopped", stop.wait(300), flush=True)
with keys.watched(stop):
    pass
try:
    keys.ask("again?", "yn")
except KeyboardInterrupt:
    print("ended", flush=True)
print("typed", input(), flush=True)
"""


def test_a_key_answers_and_a_key_stops(tmp_path: Path) -> None:
    with Terminal([sys.executable, "-c", ASKS], os.environ, tmp_path) as terminal:
        terminal.expect("sure? y/n")
        terminal.press("x")
        terminal.press("Y")
        terminal.expect("got y")
        terminal.expect("moving")
        terminal.press(" ")
        terminal.expect("stopped True")
        terminal.expect("again?")
        terminal.interrupt()
        terminal.expect("ended")
        terminal.type("a line")
        terminal.expect("typed a line")
