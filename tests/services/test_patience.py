"""A SuperNode that runs and is not online is restarted, each time after a longer wait."""

from __future__ import annotations

from typing import Any

import pytest

from zk0d.config.machine import ClientSettings
from zk0d.daemon.supervised import State
from zk0d.services.coordinator import Word
from zk0d.services.supernode import SupernodeService


class StandInChild:
    """Stands in for the SuperNode's process: it runs, and counts its restarts."""

    state, alive, waits, starts, pid = State.RUNNING, True, 0.0, 1, 7

    def __init__(self, clock: Any) -> None:
        self._clock, self._began = clock, clock()
        self.restarted: list[float] = []

    @property
    def running_seconds(self) -> float:
        return float(self._clock() - self._began)

    def look(self) -> None: ...

    def restart(self, reason: str) -> None:
        assert reason == "zombie"
        self._began = self._clock()
        self.restarted.append(self._began)


def test_each_restart_of_a_node_that_does_not_come_online_waits_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("zk0d.services.supernode.time.monotonic", lambda: now[0])
    service = SupernodeService(ClientSettings(name="left"))
    child = StandInChild(lambda: now[0])
    service._child = child  # type: ignore[assignment]
    word = Word(answer={"enrolled": True, "online": False})

    def pass_time(seconds: float, *, online: bool = False) -> list[float]:
        child.restarted.clear()
        for _ in range(int(seconds)):
            now[0] += 1.0
            service._take_part(word, online)
        return [
            round(later - earlier)
            for earlier, later in zip(child.restarted, child.restarted[1:], strict=False)
        ]

    waits = pass_time(3600.0)
    assert waits[:4] == [91, 181, 361, 601]
    assert set(waits[4:]) == {601}
    pass_time(5.0, online=True)
    assert pass_time(200.0) == [91], "once it was online a wait is short again"
