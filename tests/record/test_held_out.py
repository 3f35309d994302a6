"""What nodes find on their own held-out episodes, together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from zk0d.record.held_out import Change, change
from zk0d.record.summary import NodePoint


def point(
    node: str, losses: Sequence[float], *, number: int = 1, mark: str = "a", frames: int = 0
) -> NodePoint:
    return NodePoint(
        round=number,
        node=node,
        loss=sum(losses) / len(losses),
        frames=frames or 10 * len(losses),
        losses=tuple(losses),
        mark=mark,
    )


def changed(**nodes: tuple[Sequence[float], Sequence[float]]) -> Change:
    found = change(
        {name: point(name, before) for name, (before, _) in nodes.items()},
        {name: point(name, after) for name, (_, after) in nodes.items()},
    )
    assert found is not None
    return found


def test_a_node_is_compared_with_itself_episode_by_episode() -> None:
    """Episodes differ by ten times what each gains, and the gain shows nevertheless."""
    found = changed(ann=([1.0, 2.0, 3.0], [0.9, 1.88, 2.9]))
    (ann,) = found.nodes
    assert (ann.before, ann.episodes) == (2.0, 3)
    assert ann.after == pytest.approx(5.68 / 3)
    assert ann.spread is not None
    assert ann.spread < 0.01 < -found.mean
    assert found.spread == ann.spread, "of one node it is that over its episodes"


def test_nodes_count_by_their_frames() -> None:
    before = {"ann": point("ann", [1.0, 1.0], frames=30), "bo": point("bo", [1.0, 1.0], frames=10)}
    after = {"ann": point("ann", [0.6, 0.6], frames=30), "bo": point("bo", [1.0, 1.0], frames=10)}
    found = change(before, after)
    assert found is not None
    assert found.mean == pytest.approx(-0.3)
    assert found.before == 1.0
    assert found.after == pytest.approx(0.7)


@pytest.mark.parametrize("claims", [0.1, 1.0, 1e6])
def test_of_nodes_that_count_alike_one_alone_gains_nothing_beyond_the_spread(claims: float) -> None:
    nothing: tuple[list[float], list[float]] = ([1.0, 1.0], [1.0, 1.0])
    for others in (1, 2, 5):
        honest = {f"n{n}": nothing for n in range(others)}
        found = changed(liar=([1.0, 1.0], [1.0 - claims, 1.0 - claims]), **honest)
        assert found.spread is not None
        assert -found.mean <= found.spread * (1 + 1e-9)


def test_nodes_that_agree_are_told_apart_from_noise() -> None:
    found = changed(ann=([1.0, 1.2], [0.8, 1.01]), bo=([2.0, 2.2], [1.81, 2.0]))
    assert found.spread is not None
    assert -found.mean > found.spread


def test_one_episode_of_one_node_has_no_spread() -> None:
    assert changed(ann=([1.0], [0.5])).spread is None


def test_only_the_same_frames_are_compared() -> None:
    before = {"ann": point("ann", [1.0]), "bo": point("bo", [1.0])}
    after = {
        "ann": point("ann", [0.5], mark="b"),
        "bo": point("bo", [0.5]),
        "cy": point("cy", [0.5]),
    }
    found = change(before, after)
    assert found is not None
    assert [each.node for each in found.nodes] == ["bo"]
    assert change(before, {"ann": after["ann"]}) is None
    no_mark = {"ann": point("ann", [1.0], mark="")}
    assert change(no_mark, no_mark) is None, "an older node's figures"
