"""The one place that reaches into Flower's loop, and what it relies on."""

from __future__ import annotations

import ast
import inspect

from flwr.supernode import start_client_internal

from zk0d.flower.supernode import (
    FIRST_WAIT,
    IDLE_WAIT,
    REPLY_WAIT,
    SHORT_REPLY_WAIT,
    Pacing,
)


def sleeps() -> list[float]:
    """The arguments of every ``time.sleep`` in Flower's loop."""
    tree = ast.parse(inspect.getsource(start_client_internal))
    return sorted(
        ast.literal_eval(node.args[0])
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
    )


def test_flowers_loop_is_as_the_wrapper_expects() -> None:
    assert sleeps() == [REPLY_WAIT, REPLY_WAIT, IDLE_WAIT]
    tree = ast.parse(inspect.getsource(start_client_internal))
    uses = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "time"
    }
    assert uses == {"time.sleep"}, "the module's name 'time' can be replaced"
    assert start_client_internal.time.__name__ == "time"


def test_the_wait_grows_when_idle_and_shrinks_with_work() -> None:
    waited: list[float] = []
    pacing = Pacing(waited.append)
    for _ in range(40):
        pacing.sleep(IDLE_WAIT)
    assert waited[0] == FIRST_WAIT
    assert waited == sorted(waited)
    assert waited[-1] == IDLE_WAIT, "an idle node costs no more than Flower's"
    pacing.sleep(REPLY_WAIT)
    pacing.sleep(IDLE_WAIT)
    assert waited[-2:] == [SHORT_REPLY_WAIT, FIRST_WAIT]


def test_an_answer_that_takes_long_is_looked_for_less_often() -> None:
    now, waited = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        now[0] += seconds

    pacing = Pacing(sleep, clock=lambda: now[0])
    now[0] = 500.0  # of waiting for a message
    pacing.sleep(IDLE_WAIT)
    began = now[0]
    while now[0] - began < 60.0:
        pacing.sleep(REPLY_WAIT)
    looks = waited[1:]
    assert looks[0] == SHORT_REPLY_WAIT, "the wait for the message does not count"
    assert looks == sorted(looks)
    assert looks[-1] == REPLY_WAIT, "and never less often than Flower looks"
    pacing.sleep(IDLE_WAIT)
    pacing.sleep(REPLY_WAIT)
    assert waited[-1] == SHORT_REPLY_WAIT, "the next message's answer may come at once"


def test_a_node_leaves_only_between_messages() -> None:
    told: list[object] = []
    pacing = Pacing(told.append, end=lambda: told.append("end"))
    pacing.leave()
    pacing.sleep(REPLY_WAIT)
    assert told == [SHORT_REPLY_WAIT], "a reply is still to be sent"
    pacing.sleep(IDLE_WAIT)
    assert told == [SHORT_REPLY_WAIT, "end", FIRST_WAIT]


def test_other_waits_and_functions_pass() -> None:
    waited: list[float] = []
    pacing = Pacing(waited.append)
    pacing.sleep(1.25)
    assert waited == [1.25]
    assert pacing.time() > 0
