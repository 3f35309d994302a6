"""An offline node may answer yet: it slept, was cut off, or left just after its answer.

Flower looks at a message's node before it looks for the reply. Once a node is offline, the
ServerApp hears that it is unavailable, and its reply is thrown away: one that is there already (of
a node that leaves after its update), and one that comes later (of a laptop whose lid was closed for
some minutes in a round). Here such a node counts as present for the messages that it was sent. Who
is online, the ServerApp asks for itself. A node that the operator removed gets no such grace.

A ServerApp asks for the replies to all of its messages at once. It gets a page of them, and the
rest when it asks again, because each of them lies in its memory.

This and :mod:`zk0d.flower.set_back` are the only places that reach into Flower's LinkState;
``tests/flower`` fails when Flower changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: A reply has at most ``transfer.message-kib``, and its files beside it.
PAGE = 8


def install() -> None:
    """Have this process's SuperLink deliver every reply that it has."""
    from flwr.server.superlink.linkstate import sql_linkstate as flower
    from sqlalchemy import select

    if getattr(flower.SqlLinkState.get_message_res, "of_zk0d", False):
        return
    fetch = flower.SqlLinkState.get_message_res
    check = flower.check_node_availability_for_in_message

    def get_message_res(self: Any, message_ids: set[str], run_id: int) -> Any:
        reply = flower.MessageResModel
        column = reply.reply_to_message_id
        answered = select(column).where(column.in_(message_ids))
        undelivered = answered.where(reply.delivered_at == "")
        with self.session() as session:
            page = session.scalars(undelivered.order_by(reply.created_at).limit(PAGE + 1)).all()
        if len(page) > PAGE:
            # Of the others nothing is said before these are taken.
            message_ids = set(page[:PAGE])
        return fetch(self, message_ids, run_id)

    def check_availability(
        inquired_in_message_ids: set[str],
        found_in_message_dict: Mapping[str, Any],
        node_id_to_online_until: Mapping[int, float],
        *rest: Any,
        **named: Any,
    ) -> Any:
        kept = {
            each
            for each in inquired_in_message_ids
            if found_in_message_dict[each].metadata.dst_node_id in node_id_to_online_until
        }
        inquired_in_message_ids -= kept
        try:
            return check(
                inquired_in_message_ids,
                found_in_message_dict,
                node_id_to_online_until,
                *rest,
                **named,
            )
        finally:
            inquired_in_message_ids |= kept

    get_message_res.of_zk0d = True  # type: ignore[attr-defined]
    flower.SqlLinkState.get_message_res = get_message_res
    flower.check_node_availability_for_in_message = check_availability
