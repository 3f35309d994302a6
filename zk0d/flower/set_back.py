"""The coordinator's clock was set back: no deadline lies further ahead than Flower ever sets one.

The SuperLink's database has ends by the time of day. After the clock was set back by an hour (a
machine that booted with a wrong clock gets the right time), a node whose farewell was lost counts
as online for that hour, and its next SuperNode is refused that long; a ServerApp that died counts
as running. Here an end that is too far ahead is brought to where a sign of life of this moment
would put it. A clock that was set ahead needs nothing: who lives gives the next sign.

This and :mod:`zk0d.flower.replies` are the only places that reach into Flower's LinkState;
``tests/flower`` fails when Flower changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

#: A sign of life that came while this looked.
SLACK_SECONDS = 5.0


def install() -> None:
    """Have this process's SuperLink shorten what lies too far ahead, before it looks at ends."""
    from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE
    from flwr.server.superlink.linkstate import sql_linkstate as link
    from flwr.supercore.corestate import sql_corestate as core
    from sqlalchemy import select, update

    if getattr(link.SqlLinkState._check_and_tag_offline_nodes, "of_zk0d", False):
        return
    tag_offline = link.SqlLinkState._check_and_tag_offline_nodes
    end_tasks = core.SqlCoreState._cleanup_expired_task_tokens

    def check_and_tag_offline_nodes(self: Any, node_ids: Sequence[int] | None = None) -> None:
        node, now = link.NodeModel, link.now().timestamp()
        latest = now + HEARTBEAT_PATIENCE * node.heartbeat_interval
        beyond = (
            node.status == link.NodeStatus.ONLINE,
            node.online_until > latest + SLACK_SECONDS,
        )
        with self.session() as session:
            # A look takes no lock on the database, and nearly always finds none.
            if session.scalar(select(node.node_id).where(*beyond).limit(1)) is not None:
                session.execute(update(node).where(*beyond).values(online_until=latest))
        tag_offline(self, node_ids)

    def cleanup_expired_task_tokens(self: Any) -> None:
        task, now = core.TaskModel, core.now()
        latest = now + timedelta(seconds=HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL)
        beyond = task.active_until > latest + timedelta(seconds=SLACK_SECONDS)
        with self.session() as session:
            if session.scalar(select(task.task_id).where(beyond).limit(1)) is not None:
                session.execute(update(task).where(beyond).values(active_until=latest))
        end_tasks(self)

    check_and_tag_offline_nodes.of_zk0d = True  # type: ignore[attr-defined]
    link.SqlLinkState._check_and_tag_offline_nodes = check_and_tag_offline_nodes
    core.SqlCoreState._cleanup_expired_task_tokens = cleanup_expired_task_tokens
