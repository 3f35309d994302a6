from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from zk0d.config.run import CodecName
from zk0d.federation.codec import NotFinite
from zk0d.federation.streams import CHUNK_BYTES
from zk0d.federation.update import Manifest, Payload, PayloadEncoder, UpdateError

names = st.text("abcdef._", min_size=1, max_size=8)
tensors = st.dictionaries(
    names,
    arrays(
        np.float32,
        array_shapes(min_dims=0, max_dims=3, max_side=9),
        elements=st.floats(-(2.0**50), 2.0**50, width=32),
    ),
    min_size=1,
    max_size=6,
)


ONES = np.ones(2, np.float32)


def example() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        "a.weight": random.normal(size=(3, 4)).astype(np.float32),
        "b.weight": random.normal(size=(1_300_000,)).astype(np.float32),
        "c.bias": np.array([1.0], np.float32),
    }


@pytest.mark.slow
@given(tensors)
def test_an_encoded_update_is_decoded(given_tensors: dict[str, np.ndarray]) -> None:
    payload = Payload.of(given_tensors, "weights")
    decoded = payload.arrays()
    assert list(decoded) == sorted(given_tensors)
    for name, tensor in given_tensors.items():
        assert decoded[name].tobytes() == tensor.tobytes(), "bit by bit"
        assert decoded[name].shape == tensor.shape
    assert payload.manifest.size == sum(len(chunk) for chunk in payload.chunks)


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_encoded_tensors_come_back_in_their_shapes(codec: CodecName) -> None:
    payload = Payload.of(example(), "delta", codec)
    decoded = payload.arrays()
    for name, tensor in example().items():
        assert decoded[name].shape == tensor.shape
        largest = np.abs(tensor).max()
        assert np.abs(decoded[name] - tensor).max() <= largest * 0.08
    assert payload.manifest.codec == codec
    assert Manifest.from_json(payload.manifest.to_json()) == payload.manifest


def test_a_tensor_that_cannot_be_encoded_is_named() -> None:
    with pytest.raises(NotFinite, match=r"tensor 'b' holds NaN"):
        Payload.of({"a": ONES, "b": ONES * np.nan}, "delta", "int8")


def test_chunks_are_bounded_and_filled() -> None:
    payload = Payload.of(example(), "weights")
    assert [len(chunk) for chunk in payload.chunks[:-1]] == [CHUNK_BYTES]
    assert max(len(chunk) for chunk in payload.chunks) <= CHUNK_BYTES
    assert payload.manifest.parameters == 1_300_013


def test_decoding_frees_chunk_by_chunk() -> None:
    payload = Payload.of(example(), "delta")
    left = [sum(len(chunk) for chunk in payload.chunks) for _ in payload.decode(consume=True)]
    assert left == sorted(left, reverse=True)
    assert left[1] < CHUNK_BYTES
    assert payload.chunks == []


def test_the_manifest_survives_json() -> None:
    manifest = Payload.of(example(), "delta").manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(manifest.to_json()).sha256 == manifest.sha256


@pytest.mark.slow
@given(tensors, tensors)
def test_the_hash_names_the_content(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> None:
    same = list(first) == list(second) and all(
        first[n].shape == second[n].shape and first[n].tobytes() == second[n].tobytes()
        for n in first
    )
    equal = (
        Payload.of(first, "delta").manifest.sha256 == Payload.of(second, "delta").manifest.sha256
    )
    if same:
        assert equal
    elif {n: a.tobytes() for n, a in first.items()} != {n: a.tobytes() for n, a in second.items()}:
        assert not equal


def test_a_flipped_bit_names_its_tensor() -> None:
    payload = Payload.of(example(), "delta")
    damaged = bytearray(payload.chunks[1])
    damaged[100] ^= 1
    payload.chunks[1] = bytes(damaged)
    with pytest.raises(UpdateError, match=r"tensor 'b\.weight': its content is not what was sent"):
        payload.arrays()


def test_a_truncated_payload_names_its_tensor() -> None:
    payload = Payload.of(example(), "delta")
    payload.chunks[-1] = payload.chunks[-1][:-8]
    with pytest.raises(UpdateError, match="ends before it does"):
        payload.arrays()


def test_bytes_after_the_last_tensor() -> None:
    payload = Payload.of(example(), "delta")
    payload.chunks.append(b"more")
    with pytest.raises(UpdateError, match="has bytes after its last tensor"):
        payload.arrays()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("c.bias"), "tensor 'c.bias' is missing"),
        (
            lambda t: t.update(extra=ONES),
            "'extra' does not belong to the model",
        ),
        (
            lambda t: t.update({"a.weight": t["a.weight"].reshape(4, 3)}),
            r"'a.weight' is float32 \[4, 3\], the model's is float32 \[3, 4\]",
        ),
        (lambda t: t.update({"z.bias": t.pop("c.bias")}), "'c.bias' is missing"),
    ],
)
def test_other_tensors_than_the_models_are_named(change: object, said: str) -> None:
    model = Payload.of(example(), "weights").manifest
    changed = example()
    change(changed)  # type: ignore[operator]
    with pytest.raises(UpdateError, match=said):
        model.check_same_tensors(Payload.of(changed, "delta").manifest)


def test_tensors_out_of_order_are_refused() -> None:
    model = Payload.of(example(), "weights").manifest
    encoder = PayloadEncoder("delta", "fp32")
    for name, tensor in sorted(example().items(), reverse=True):
        encoder.add(name, tensor)
    shuffled = encoder.finish().manifest
    with pytest.raises(UpdateError, match="not in the order"):
        model.check_same_tensors(shuffled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"kind":"delta","tensors":[],"evil":1}',
        '{"kind":"delta","tensors":[{"name":"a","shape":[2],"size":4,"sha256":""}]}',
        '{"kind":"delta","tensors":[{"name":"a","shape":[-1],"size":-4,"sha256":""}]}',
        '{"kind":"delta","codec":"pickle","tensors":[]}',
    ],
)
def test_a_manifest_from_the_network_is_checked(text: str) -> None:
    with pytest.raises(UpdateError):
        Manifest.from_json(text)
