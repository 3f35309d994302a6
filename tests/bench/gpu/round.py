"""Whole rounds of SmolVLA at its real size: a coordinator and contributors that share one GPU.

Real Flower processes, TLS, a database on disk. The peer is Flower's stock FedAvg with weights of
the same size and no training. Then a batch that the GPU cannot hold, and a run after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.bench.gpu import real
from tests.bench.lab import PeakMemory, _finish, run_stock, stock_nodes
from tests.record.lines import read_lines
from zk0d.config.run import RunSettings
from zk0d.demo import federation as demo
from zk0d.demo.layout import Layout
from zk0d.errors import Zk0dError
from zk0d.machine.setup import merged, set_up_client
from zk0d.record.journal import JournalTail

TRAINABLE = 99_880_992
SERVER_APP, SUPERLINK = "serverapp", "zk0d.flower.superlink"
#: What is told of a journal's line.
TOLD = ("round", "node", "reason", "message", "refused", "lost", "deadline_seconds", "seconds")
VARIANTS = {"int8 up": "int8", "bf16 both ways": "bf16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--too-large", type=int, default=8192, help="a batch for out of memory")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of the codecs; may be ''")
    parser.add_argument("--peer-rounds", type=int, default=2, help="of Flower's FedAvg; may be 0")
    parser.add_argument("--values", type=int, default=TRAINABLE, help="that Flower's FedAvg sends")
    parser.add_argument("--lr", type=float, default=1e-4, help="the peak rate")
    parser.add_argument("--round-minutes", type=float, default=0.0, help="steps by pace")
    parser.add_argument("--power-share", type=float, default=1.0, help="of the last contributor")
    parser.add_argument("--tiny", action="store_true", help="the demo's policy: to try this file")
    parser.add_argument("--folder", help="where the lab's logs stay; a temporary one otherwise")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or temporary
        model = None if chosen.tiny else real.save_policy(Path(folder) / "model")
        layout = Layout.make(Path(folder) / "lab", chosen.nodes)
        recordings = real.record(Path(folder) / "recordings", 3, 60)
        print("ready to start", flush=True)
        server, client = settings_with(model, recordings)
        with (
            _last_one_limited(layout, chosen.power_share),
            demo.federation(
                layout,
                cpu_threads=2,
                device=chosen.device,
                open_control=True,  # Flower's own program starts the peer's run
                server=server,
                client=client,
            ) as running,
        ):
            for name in filter(None, chosen.variants.split(",")):
                codec = VARIANTS[name]
                with PeakMemory((SERVER_APP, SUPERLINK)) as memory:
                    lines = _run(running, chosen, {"uplink-codec": codec})
                _tell(name, lines, memory.peaks)
            if chosen.peer_rounds:
                with stock_nodes(running), PeakMemory((SERVER_APP, SUPERLINK)) as memory:
                    ends = run_stock(running, chosen.peer_rounds, chosen.nodes, chosen.values)
                seconds = [end - begin for begin, end in pairwise(ends)]
                line = {"Flower's FedAvg, no training": seconds, "peak": memory.peaks}
                print(json.dumps(line), flush=True)
            if chosen.too_large:
                began = time.monotonic()
                try:
                    _run(running, chosen, {"batch-size": chosen.too_large, "num-server-rounds": 1})
                except (SystemExit, Zk0dError) as error:
                    said = {"too large a batch": str(error)[:600], "s": time.monotonic() - began}
                    print(json.dumps(said), flush=True)
                lines = _run(running, chosen, {"num-server-rounds": 1})
                _tell("after it", lines, {})


def settings_with(model: Path | None, recordings: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The coordinator's and each contributor's settings with this model and these recordings."""
    uri = f"local:{recordings}"
    models = {"models": {"real": str(model)}} if model else {}
    held_out = {"evaluation": [{"name": "held-out", "dataset-uri": uri}]}
    # The site's own limit would refuse a batch that is too large before the GPU does.
    own = {"dataset-uri": uri, "limits": {"max-batch-size": 1_000_000_000}}
    return held_out | models, own | models


@contextlib.contextmanager
def _last_one_limited(layout: Layout, share: float) -> Iterator[None]:
    """Within it, the last contributor is set up to lend only that share of its power."""
    plain, limited = set_up_client, layout.contributors[-1].name

    def set_up(folder: Path, name: str, address: str, ca: bytes, own: Mapping[str, Any]) -> None:
        if name == limited:
            own = merged(own, {"limits": {"power-share": share}})
        plain(folder, name, address, ca, own)

    with patch.object(demo, "set_up_client", set_up):
        yield


def _run(
    running: demo.Federation, chosen: argparse.Namespace, more: Mapping[str, Any]
) -> list[dict[str, Any]]:
    settings = {
        "model-name": "tiny" if chosen.tiny else "real",
        "num-server-rounds": chosen.rounds,
        "min-fit-clients": chosen.nodes,
        "local-steps": chosen.steps,
        "batch-size": chosen.batch,
        "initial-lr": chosen.lr,
        "round-minutes": chosen.round_minutes,
        "eval-frequency": 1,
        "eval-frames": 64,
        "keep-rounds": 1,
        **more,
    }
    run_id = running.start_run(RunSettings.parse(settings, where="this bench's run"))
    journal = running.layout.runs / str(run_id)
    over = threading.Event()
    following = threading.Thread(target=follow, args=(journal, over))
    following.start()
    try:
        _finish(running, run_id)
    finally:
        over.set()
        following.join()
    return list(read_lines(journal))


def follow(journal: Path, over: threading.Event) -> None:
    """Say what the run's journal says, as it comes: a bench that is cut off has told its story."""
    began, tail = time.monotonic(), JournalTail(journal)
    while True:
        last = over.wait(0.5)
        for event in tail.new_events():
            facts = {k: v for k, v in event.model_dump().items() if k in TOLD and v}
            said = {"at": round(time.monotonic() - began, 1), "kind": event.kind, **facts}
            print(json.dumps(said)[:700], flush=True)
        if last:
            return


def _tell(name: str, lines: list[dict[str, Any]], peaks: dict[str, float]) -> None:
    committed = [line for line in lines if line["kind"] == "round.committed"]
    trained = [line for line in committed if line["nodes"]]
    ends = [line["time"] for line in committed]
    last = committed[-1]
    print(
        json.dumps(
            {
                "variant": name,
                "seconds a round": [end - begin for begin, end in pairwise(ends)],
                "phases of the last": last["seconds"],
                "nodes": [node["seconds"] for node in last["nodes"]],
                "steps by round": [_by_node(line, "steps") for line in trained],
                "seconds of training by round": [
                    {name: seconds["train"] for name, seconds in _by_node(line, "seconds").items()}
                    for line in trained
                ],
                "loss": (last.get("evaluation") or {}).get("loss"),
                "bytes up": last["bytes_up"],
                "bytes down": last["bytes_down"],
                "peak MB": peaks,
            }
        ),
        flush=True,
    )


def _by_node(line: dict[str, Any], figure: str) -> dict[str, Any]:
    return {node["node"]: node[figure] for node in line["nodes"]}


if __name__ == "__main__":
    main()
