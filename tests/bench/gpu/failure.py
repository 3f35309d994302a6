"""A GPU that fails under a learner in the midst of a round, in a whole run of real processes.

One contributor's learner is the real service but for one kernel in its step, which reads past the
end of a table once some steps are done: the driver ends the process's use of the GPU. It does so in
the first such process only. That one must say so and end, what plays systemd starts the next, and
the round that it failed in must come through with all nodes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path

from tests.bench.gpu import real
from tests.bench.gpu.round import follow, settings_with
from tests.record.lines import read_lines
from zk0d.config.run import RunSettings
from zk0d.daemon.child import wait_until
from zk0d.demo import federation as demo
from zk0d.demo.layout import Layout
from zk0d.flower.control import COMPLETED, FINISHED
from zk0d.services.foreground import Program

RUN_SECONDS = 400.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="'cpu' to try this file")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--after", type=int, default=30, help="steps, then the GPU fails")
    parser.add_argument("--tiny", action="store_true", help="the demo's policy: to try this file")
    parser.add_argument("--folder", help="where the lab's logs stay; a temporary one otherwise")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(chosen.folder or temporary)
        model = None if chosen.tiny else real.save_policy(folder / "model")
        layout = Layout.make(folder / "lab", chosen.nodes)
        recordings = real.record(folder / "recordings", 3, 60)
        server, client = settings_with(model, recordings)
        with demo.federation(
            layout, cpu_threads=2, device=chosen.device, server=server, client=client
        ) as running:
            _run(running, layout, chosen)


def _run(running: demo.Federation, layout: Layout, chosen: argparse.Namespace) -> None:
    contributor = layout.contributors[-1]
    name, config = f"{contributor.name}-learner", layout.client_config(contributor)
    services = running.services
    services.stop(name)
    services.start([_failing(name, config, chosen)])
    services.wait_until_ready(name)
    services._restart = True  # from here on it plays systemd
    settings = {
        "model-name": "tiny" if chosen.tiny else "real",
        "num-server-rounds": chosen.rounds,
        "min-fit-clients": chosen.nodes,
        "local-steps": chosen.steps,
        "batch-size": 8,
        "eval-frequency": 1,
        "eval-frames": 64,
    }
    run_id = running.start_run(RunSettings.parse(settings, where="this bench's run"))
    journal, over = layout.runs / str(run_id), threading.Event()
    following = threading.Thread(target=follow, args=(journal, over))
    following.start()

    def over_yet() -> bool:
        services.look()
        return running.state(run_id).status == FINISHED

    try:
        wait_until(over_yet, "the run's end", RUN_SECONDS)
    finally:
        over.set()
        following.join()
        end = services.processes[name].child.last_end
        print(f"the learner's end: {end}", flush=True)
    for line in (layout.logs / f"{name}.log").read_text().splitlines():
        if any(word in line for word in ("CUDA error", "GPU failed", "assert", "ready")):
            print(line[:300])
    for each in services.seen():
        print(f"{each.name}: {each.state}, restarts {each.restarts}, {each.status}")
    state = running.state(run_id)
    committed = [line for line in read_lines(journal) if line["kind"] == "round.committed"][1:]
    counts = [len(line["nodes"]) for line in committed]
    print(f"the run {state.outcome}; updates by round: {counts}")
    if state.outcome != COMPLETED or counts != [chosen.nodes] * chosen.rounds or end is None:
        raise SystemExit(f"failure: it did not come about; {state.details}")


def _failing(name: str, config: Path, chosen: argparse.Namespace) -> Program:
    program = Path(__file__).with_name("failing_learner.py")
    return Program(name, (sys.executable, str(program), str(config), str(chosen.after)))


if __name__ == "__main__":
    main()
