"""``zk0d evaluator``: the coordinator's evaluator, which is served as a learner is."""

from __future__ import annotations

from pathlib import Path

from zk0d.config.machine import ServerSettings
from zk0d.learner.tasks import Learner
from zk0d.services.learner import LearnerService, look_first


def run(config: Path) -> None:
    """Run the service; errors as of :func:`zk0d.services.learner.run`."""
    settings = ServerSettings.load(config)
    look_first(settings.evaluator.socket, [each.dataset_uri for each in settings.evaluation])

    def make() -> tuple[Learner, Path]:
        from zk0d.learner.evaluator import CoordinatorEvaluator

        made = CoordinatorEvaluator(settings)
        made.open()
        return made, settings.evaluator.socket

    LearnerService("evaluator", make, settings.evaluator.cache).run()
