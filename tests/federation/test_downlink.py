"""Weights that go down as a difference: the same bits for everybody, and no error that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.federation.test_aggregate import task
from zk0d.federation.codec import PIECE, encoded_size
from zk0d.federation.downlink import HELD, HELD_MANIFEST, Downlink
from zk0d.federation.messages import Train
from zk0d.federation.update import Payload, UpdateError
from zk0d.learner.held import HeldWeights
from zk0d.record.journal import Journal

SHAPES: dict[str, tuple[int, ...]] = {"a": (PIECE + 4099,), "b": (3, 5), "c": ()}
#: Of a bfloat16 value: half of its last place.
HALF_PLACE = 2.0**-8


class Server:
    """Weights that move by chance, and what goes down of them."""

    def __init__(self, folder: Path, codec: Any = "int8-delta") -> None:
        self.journal = Journal(folder, "1")
        self.codec = codec
        self.downlink = Downlink(folder / "down", codec)
        self.round = 0
        self.random = np.random.default_rng(0)
        self.weights = {n: self._normal(s) for n, s in SHAPES.items()}

    def _normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(self.random.standard_normal(shape), np.float32)

    def send(self) -> tuple[Train, Payload]:
        payload = self.downlink.payload(self.weights)
        about = {
            "round": self.round + 1,
            "base": payload.manifest.sha256,
            "hold": self.downlink.is_held,
            "difference_to": self.downlink.held,
        }
        return task(**about), payload

    def commit(self) -> None:
        self.round += 1
        for name, array in self.weights.items():
            array += 0.01 * self._normal(array.shape)
            assert array.shape == SHAPES[name]
        self.downlink.moved(self.journal.commit(self.round, self.downlink.files()))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def difference_of(payload: Payload) -> Payload:
    found = payload.companion("delta")
    assert found is not None
    return found


def test_all_have_the_same_bits_and_the_error_does_not_grow(server: Server) -> None:
    """A node that was always there, and one that missed rounds."""
    steady, newcomer = HeldWeights(), HeldWeights()
    for number in range(12):
        given, payload = server.send()
        whole = payload.arrays()
        if number == 0:
            assert payload.beside == ()
            came, weights = steady.take(given, payload)
        else:
            came, weights = steady.take(given, difference_of(payload))
        assert came == ("difference" if number else "whole")
        if number in (3, 7):
            newcomer.take(given, payload)
        assert weights.manifest == payload.manifest
        for name, array in weights.arrays().items():
            assert array.tobytes() == whole[name].tobytes()
            meant = server.weights[name]
            step = 0.01 * 6  # no value of a difference is larger
            bound = HALF_PLACE * np.abs(meant) + 2 * step / 254
            assert np.all(np.abs(array - meant) <= bound)
        server.commit()
    given, payload = server.send()
    with pytest.raises(UpdateError, match="does not hold the weights") as error:
        newcomer.take(given, difference_of(payload))
    assert error.value.reason == "base_lost"


def test_a_difference_of_smolvla_has_a_byte_a_value() -> None:
    assert encoded_size("int8", 99_880_992) <= 101e6


def test_a_round_that_is_sent_again_or_resumed_sends_the_same(
    server: Server, tmp_path: Path
) -> None:
    for _ in range(2):
        server.send()
        server.commit()
    _, payload = server.send()
    _, again = server.send()
    resumed = Downlink(tmp_path / "down", "int8-delta")
    resumed.load(server.journal.round_folder(2))
    third = resumed.payload(server.weights)
    for other in (again, third):
        assert other.manifest == payload.manifest
        assert difference_of(other).manifest == difference_of(payload).manifest
    assert resumed.held == server.downlink.held


def test_weights_that_went_back_are_sent_whole(server: Server) -> None:
    server.send()
    server.commit()
    server.send()
    server.downlink.clear()
    assert server.downlink.files() == {}, "what this round sent is not what the next is to"
    given, payload = server.send()
    assert given.difference_to == ""
    assert payload.beside == ()


@pytest.mark.parametrize("codec", ["bf16", "fp32"])
def test_other_codecs_keep_nothing(tmp_path: Path, codec: str) -> None:
    server = Server(tmp_path, codec)
    node = HeldWeights()
    for _ in range(2):
        given, payload = server.send()
        assert (given.hold, given.difference_to, payload.beside) == (False, "", ())
        assert server.downlink.files() == {}
        assert node.take(given, payload)[0] == "whole"
        assert node.sha256 == ""
    assert not (tmp_path / "down").exists()


def test_a_committed_round_has_what_its_nodes_hold(server: Server) -> None:
    given, payload = server.send()
    server.commit()
    folder = server.journal.round_folder(1)
    assert (folder / HELD).read_bytes() == b"".join(payload.stream())
    assert (folder / HELD_MANIFEST).read_text(encoding="utf-8") == payload.manifest.to_json()
    assert server.downlink.held == given.base
    assert not list((server.journal.folder / "down").iterdir())


# --- a node ---------------------------------------------------------------------------------------


def nothing() -> Payload:
    return Payload.of({}, "delta", "int8")


def test_a_node_that_holds_a_rounds_weights_needs_none_of_them(server: Server) -> None:
    node = HeldWeights()
    given, payload = server.send()
    node.take(given, payload)
    came, weights = node.take(given, nothing())
    assert (came, weights.manifest) == ("held", payload.manifest)
    server.commit()
    given, payload = server.send()
    node.take(given, difference_of(payload))
    came, weights = node.take(given, nothing())
    assert (came, weights.manifest) == ("held", payload.manifest)


@pytest.mark.parametrize("difference", [False, True])
def test_a_node_that_holds_nothing_says_so(server: Server, difference: bool) -> None:
    server.send()
    server.commit()
    given, payload = server.send()
    with pytest.raises(UpdateError) as error:
        HeldWeights().take(given, difference_of(payload) if difference else nothing())
    assert error.value.reason == "base_lost"


def test_a_difference_that_does_not_lead_to_the_rounds_weights_is_known(server: Server) -> None:
    """And what the node held is still there: the whole weights come next."""
    node = HeldWeights()
    given, payload = server.send()
    node.take(given, payload)
    held = node.sha256
    server.commit()
    given, payload = server.send()
    arrays = difference_of(payload).arrays()
    arrays["b"] = arrays["b"] + np.float32(0.5)
    with pytest.raises(UpdateError, match="does not lead to the weights") as error:
        node.take(given, Payload.of(arrays, "delta", "int8"))
    assert error.value.reason == "base_lost"
    assert node.sha256 == held
    assert node.take(given, payload)[0] == "whole"
    assert node.sha256 == given.base


def test_a_difference_of_other_tensors_is_refused_by_name(server: Server) -> None:
    node = HeldWeights()
    node.take(*server.send())
    server.commit()
    given, payload = server.send()
    arrays = difference_of(payload).arrays()
    del arrays["b"]
    with pytest.raises(UpdateError, match="'b' is missing"):
        node.take(given, Payload.of(arrays, "delta", "int8"))


def test_whole_weights_that_the_round_does_not_name_are_refused(server: Server) -> None:
    given, payload = server.send()
    other = Payload.of({n: a + 1 for n, a in payload.arrays().items()}, "weights", "bf16")
    with pytest.raises(UpdateError, match="not those that the round names") as error:
        HeldWeights().take(given, other)
    assert error.value.reason == "manifest_mismatch"
