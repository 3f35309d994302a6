"""The coordinator's clock is set back by an hour: nobody counts as alive for that hour."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
from flwr.server.superlink.linkstate import LinkStateFactory, sql_linkstate
from flwr.server.superlink.linkstate.linkstate import LinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.corestate import sql_corestate
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from zk0d.flower import set_back

HOUR = 3600.0
INTERVAL = 30.0
PATIENCE = HEARTBEAT_PATIENCE * INTERVAL

Set = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Set:
    """Set the SuperLink's clock so many seconds ahead of the true time."""
    real = sql_linkstate.now

    def to(ahead: float) -> None:
        for module in (sql_linkstate, sql_corestate):
            monkeypatch.setattr(module, "now", lambda: real() + timedelta(seconds=ahead))

    return to


@pytest.fixture
def installed(kept: None) -> None:
    set_back.install()
    set_back.install()  # a second time changes nothing


@pytest.fixture
def state() -> LinkState:
    return LinkStateFactory(":memory:", NoOpFederationManager(), ObjectStoreFactory()).state()


@pytest.fixture
def node(state: LinkState, set_clock: Set) -> int:
    """A node whose last sign of life came while the clock was an hour ahead."""
    set_clock(HOUR)
    made = state.create_node("owner", "owner", b"key", INTERVAL)
    assert state.activate_node(made, INTERVAL)
    set_clock(0)
    return made


def test_a_node_whose_farewell_was_lost_is_let_in_again(
    state: LinkState, node: int, set_clock: Set, installed: None
) -> None:
    assert not state.activate_node(node, INTERVAL), "it may be online still"
    set_clock(PATIENCE + 1)
    assert state.activate_node(node, INTERVAL)


def test_a_node_that_sends_signs_of_life_stays_online(
    state: LinkState, node: int, set_clock: Set, installed: None
) -> None:
    (info,) = state.get_node_info(statuses=["online"])
    assert info.node_id == node
    set_clock(PATIENCE - 1)
    assert state.acknowledge_node_heartbeat(node, INTERVAL)
    set_clock(PATIENCE + INTERVAL)
    assert len(state.get_node_info(statuses=["online"])) == 1
    set_clock(3 * PATIENCE)
    assert state.get_node_info(statuses=["online"]) == []


def test_a_task_that_died_ends(
    state: LinkState, set_clock: Set, installed: None, kept: None
) -> None:
    run = state.create_run(
        None, None, "hash", {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP
    )
    set_clock(HOUR)
    (task,) = state.get_tasks(run_ids=[run])
    token = state.claim_task(task.task_id)
    assert token
    assert state.activate_task(task.task_id)
    set_clock(0)
    assert not state.acknowledge_task_heartbeat(1), "another one's sign of life is a look"
    assert state.get_task_by_token(token) is not None, "it may live"
    set_clock(HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL + 1)
    assert not state.acknowledge_task_heartbeat(task.task_id)
    assert state.get_task_by_token(token) is None


def test_flower_alone_refuses_such_a_node_for_the_hour(
    state: LinkState, node: int, set_clock: Set
) -> None:
    """When this fails, Flower has mended it and set_back can go."""
    set_clock(HOUR - 1)
    assert not state.activate_node(node, INTERVAL)
