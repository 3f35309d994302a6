from __future__ import annotations

import pytest
import uvicorn
from flwr.server.superlink.linkstate import sql_linkstate
from flwr.supercore.corestate import sql_corestate
from flwr.superlink import extensions


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What our SuperLink changes in Flower is as before after the test."""
    for owner, name in (
        (extensions, "get_middleware"),
        (sql_linkstate.SqlLinkState, "get_message_res"),
        (sql_linkstate.SqlLinkState, "store_message_and_object_tree"),
        (sql_linkstate.SqlLinkState, "_check_and_tag_offline_nodes"),
        (sql_corestate.SqlCoreState, "_cleanup_expired_task_tokens"),
        (uvicorn.Server, "handle_exit"),
        (sql_linkstate, "check_node_availability_for_in_message"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))
