from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zk0d.config.run import CodecName
from zk0d.federation.codec import (
    PIECE,
    NotFinite,
    decode,
    decode_all,
    encode,
    encoded_size,
)

CODECS: tuple[CodecName, ...] = get_args(CodecName)
#: Largest error, as a fraction of the block's largest value (of the value itself for bf16).
BOUNDS = {"fp32": 0.0, "bf16": 2.0**-8, "int8": 0.5 / 127, "int4": 0.5 / 7 * (1 + 2.0**-7)}
BLOCK = {"fp32": 1, "bf16": 1, "int8": 4096, "int4": 64}

finite = st.floats(-(2.0**50), 2.0**50, width=32, allow_subnormal=False)
values = arrays(np.float32, st.integers(0, 9000), elements=finite)


def random(count: int, scale: float = 1e-3) -> np.ndarray:
    return (np.random.default_rng(count).standard_normal(count) * scale).astype(np.float32)


def largest_of_block(given_values: np.ndarray, block: int) -> np.ndarray:
    """The bound's yardstick, made another way than the codec makes it."""
    return np.concatenate(
        [
            np.full(len(given_values[i : i + block]), np.abs(given_values[i : i + block]).max())
            for i in range(0, len(given_values), block)
        ]
    )


@pytest.mark.slow
@pytest.mark.parametrize("codec", CODECS)
@given(given_values=values)
@settings(max_examples=60)
@example(given_values=np.array([], np.float32))
@example(given_values=np.array([0.0, -0.0], np.float32))
@example(given_values=np.array([1e-36] * 3, np.float32))
@example(given_values=random(PIECE + 4097))
@example(given_values=random(2 * PIECE + 65))
def test_the_encoding_error_is_bounded(codec: CodecName, given_values: np.ndarray) -> None:
    lost = np.full_like(given_values, np.nan)
    data = encode(codec, given_values, lost)
    assert len(data) == encoded_size(codec, len(given_values))
    decoded = decode_all(codec, data, len(given_values))
    if not len(given_values):
        return
    bound = BOUNDS[codec] * largest_of_block(given_values, BLOCK[codec])
    # One rounding of the product, and scales so small that they count as nothing.
    slack = 1e-6 * np.abs(given_values) + 2e-35
    assert np.all(np.abs(decoded - given_values) <= bound + slack)
    assert np.array_equal(lost, given_values - decoded), "what is lost is said exactly"


@given(given_values=values)
@settings(max_examples=30)
def test_fp32_is_lossless(given_values: np.ndarray) -> None:
    data = encode("fp32", given_values)
    assert decode_all("fp32", data, len(given_values)).tobytes() == given_values.tobytes()


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_decoded_values_are_encoded_without_loss(codec: CodecName) -> None:
    once = decode_all(codec, encode(codec, random(10_000)), 10_000)
    lost = np.empty_like(once)
    encode(codec, once, lost)
    assert np.abs(lost).max() <= 1e-6 * np.abs(once).max()


def test_bf16_rounds_as_torch_does() -> None:
    import torch

    halfway = np.array([1.00390625, 0.0], np.float32)
    given_values = np.concatenate([random(5000), random(5000, 1e15), halfway])
    expected = torch.from_numpy(given_values).to(torch.bfloat16).float().numpy()
    assert np.array_equal(
        decode_all("bf16", encode("bf16", given_values), len(given_values)), expected
    )


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_values_that_are_not_finite_are_not_encoded(codec: CodecName, bad: float) -> None:
    given_values = random(5000)
    given_values[4321] = bad
    with pytest.raises(NotFinite):
        encode(codec, given_values)


@pytest.mark.parametrize("codec", CODECS)
def test_a_piece_can_be_read_alone(codec: CodecName) -> None:
    count = 2 * PIECE + 777
    data = encode(codec, random(count))
    whole = decode_all(codec, data, count)
    for start in range(0, count, PIECE):
        out = np.empty(min(PIECE, count - start), np.float32)
        decode(codec, data, count, start, out)
        assert np.array_equal(out, whole[start : start + PIECE])


def test_the_sizes_of_smolvla() -> None:
    parameters = 99_880_992
    assert encoded_size("int8", parameters) <= 101e6
    assert encoded_size("int4", parameters) <= 57e6
    assert encoded_size("bf16", parameters) == 2 * parameters


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_error_feedback_loses_nothing_in_the_long_run(codec: CodecName) -> None:
    """The sum of what arrived differs from the sum of what was meant by the last residual."""
    rng = np.random.default_rng(0)
    meant, arrived = np.zeros(4096), np.zeros(4096)
    residual = np.zeros(4096, np.float32)
    for _ in range(200):
        delta = (rng.standard_normal(4096) * 1e-4).astype(np.float32)
        delta[0] = 0.05  # one large value makes the scale coarse for all others
        meant += delta
        delta = delta + residual
        arrived += decode_all(codec, encode(codec, delta, residual), 4096)
    assert np.abs(meant - arrived - residual).max() < 1e-5
    assert np.abs(residual).max() <= 0.05 * (0.08 if codec == "int4" else 0.005)
