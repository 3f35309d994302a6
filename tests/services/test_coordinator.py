"""How often a node asks whether it is online."""

from __future__ import annotations

import pytest

from zk0d.services.coordinator import QUIET_FACTOR, Word, next_wait


def test_a_node_that_waits_asks_more_rarely() -> None:
    waits = [0.0]
    for _ in range(9):
        waits.append(next_wait(Word(answer={"online": True, "run": None}), 10.0, waits[-1]))
    assert waits[1] == 10.0
    assert waits == sorted(waits)
    assert waits[-1] == QUIET_FACTOR * 10.0


@pytest.mark.parametrize(
    "word",
    [
        Word(failure="connection refused"),
        Word(answer={"enrolled": True, "online": False}),
        Word(answer={"online": True, "run": {"state": "running"}}),
        Word(answer={"online": True, "run": {"state": "starting"}}),
    ],
)
def test_a_node_with_something_to_see_asks_at_once_again(word: Word) -> None:
    assert next_wait(word, 10.0, 30.0) == 10.0
