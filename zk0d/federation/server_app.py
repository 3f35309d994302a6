"""The ServerApp: reads its settings and lets :class:`zk0d.federation.run.Run` do the work.

numpy only: importing torch and lerobot alone would cost it a gigabyte.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from zk0d.config.machine import CONFIG_VARIABLE, DEFAULT_SERVER_CONFIG, ServerSettings
from zk0d.federation.learner_client import LearnerClient
from zk0d.federation.run import Run
from zk0d.federation.transport import BesideMessages, InMessages, Transport
from zk0d.record.journal import Journal, settings_of

#: In the context of a simulation's ServerApp: no node can come that is not there at the start.
CLOSED = "closed"

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Train one run, or what is left of one."""
    server = ServerSettings.load(Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_SERVER_CONFIG)))
    settings = server.run_settings(context.run_config, where=f"run {context.run_id}")
    run, resumed_by = str(context.run_id), ""
    if settings.resume:
        run, resumed_by = settings.resume, run
        settings = settings_of(server.runs / run)
    journal = Journal(server.runs / run, run)
    with LearnerClient(server.evaluator.socket) as evaluator:
        closed = CLOSED in context.node_config
        transport: Transport = InMessages()
        if not closed:
            transport = BesideMessages(server.transfers, journal.folder, run)
        run_of = Run(
            grid,
            settings,
            server,
            journal,
            evaluator,
            transport=transport,
            resumed_by=resumed_by,
            closed=closed,
            # A simulation may have a time of its own.
            clock=getattr(grid, "clock", time.monotonic),
            sleep=getattr(grid, "sleep", time.sleep),
        )
        run_of.run()
