"""The ServerApp: reads its settings and lets :class:`zk0d.federation.rounds.Run` do the work.

numpy only: importing torch and lerobot alone would cost it a gigabyte.
"""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from zk0d.config.machine import CONFIG_VARIABLE, DEFAULT_SERVER_CONFIG, ServerSettings
from zk0d.config.run import run_settings
from zk0d.federation.journal import Journal
from zk0d.federation.learner_client import LearnerClient
from zk0d.federation.rounds import Run

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Train one run."""
    server = ServerSettings.load(Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_SERVER_CONFIG)))
    settings = run_settings(context.run_config, where=f"run {context.run_id}")
    journal = Journal(server.runs / str(context.run_id), str(context.run_id))
    with LearnerClient(server.evaluator.socket) as evaluator:
        Run(grid, settings, server, journal, evaluator).run()
