from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0d.federation.streams import GATHERED_BYTES, GATHERED_SECONDS, gathered


class Source:
    """Parts of so many bytes, one in each second of its clock."""

    def __init__(self, sizes: list[int], seconds: float = 0.0) -> None:
        self.given = 0
        self.now = 0.0
        self._sizes = sizes
        self._seconds = seconds

    def __iter__(self) -> Iterator[bytes]:
        for number, size in enumerate(self._sizes):
            self.now += self._seconds
            self.given += 1
            yield bytes([number % 256]) * size


@given(st.lists(st.integers(1, 2 * GATHERED_BYTES), max_size=6))
def test_gathered_parts_hold_the_same_bytes(sizes: list[int]) -> None:
    source = Source(sizes)
    parts = list(gathered(iter(source), lambda: source.now))
    assert b"".join(parts) == b"".join(Source(sizes))
    assert all(len(part) >= GATHERED_BYTES for part in parts[:-1])


def test_small_parts_become_few() -> None:
    source = Source([16_384] * 640)
    assert len(list(gathered(iter(source), lambda: source.now))) == 640 * 16_384 // GATHERED_BYTES


def test_a_slow_source_is_heard_in_time() -> None:
    source = Source([100] * 5, seconds=0.6 * GATHERED_SECONDS)
    parts = gathered(iter(source), lambda: source.now)
    assert len(next(parts)) == 300
    assert source.given == 3


def test_the_bytes_before_a_break_are_not_lost() -> None:
    def breaks() -> Iterator[bytes]:
        yield b"came"
        raise ConnectionError("the network is gone")

    parts = gathered(breaks())
    assert next(parts) == b"came"
    with pytest.raises(ConnectionError, match="the network is gone"):
        next(parts)
