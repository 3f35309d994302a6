"""A run as ``zk0bot run -f``, the coordinator's log and a simulation's view show it."""

from __future__ import annotations

import pytest

from tests.federation.fakes import SPEC
from zk0d.cli.run import _show
from zk0d.config.families import NEW
from zk0d.demo.progress import RoundsView
from zk0d.record.events import Event, ModelReady, NodeRefused
from zk0d.services.run_watch import log_event


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (NodeRefused(node="left", reason="data_error", message="It is torn."), "It is torn."),
        (ModelReady(spec=SPEC.model_copy(update={"model_name": NEW})), "resnet18 of random"),
    ],
)
def test_a_refusal_and_a_models_notice_are_shown_at_once(
    event: Event, said: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _show(event)
    assert said in capsys.readouterr().out
    with caplog.at_level("WARNING"):
        log_event(event)
    assert said in caplog.text
    view = RoundsView(1, 1)
    assert view.apply(event)
    assert any(said in notice for notice in view.notices)
