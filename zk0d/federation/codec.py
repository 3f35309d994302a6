"""How float32 values become fewer bytes, and back.

==== ====================================== ============================
name bytes a value                          largest error
==== ====================================== ============================
fp32 4                                      none
bf16 2                                      2^-8 of the value
int8 1, and a float32 scale per 4096        1/254 of the block's largest
int4 1/2, and a bfloat16 scale per 64       1/14 of the block's largest
==== ====================================== ============================

A tensor is encoded by itself: first its scales, then its values, little-endian. A byte of int4
holds two values of one piece of :data:`PIECE` values, in its lower bits one of the first half.
Blockwise scales follow Dettmers et al. 2022 (8-bit optimizers), here linear and symmetric. What an
encoding loses is returned to the caller, which adds it to the next update (error feedback, Seide et
al. 2014, Karimireddy et al. 2019).

Work goes piece by piece, small enough for a core's cache.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from zk0d.config.run import CodecName
from zk0d.errors import Zk0dError

Values = NDArray[np.float32]

#: Values per scale.
BLOCK = {"int8": 4096, "int4": 64}
_LEVELS = {"int8": 127, "int4": 7}
_SCALE_BYTES = {"int8": 4, "int4": 2}
#: Values worked on at once; a multiple of every block. Part of int4's format.
PIECE = 32 * 4096


class NotFinite(Zk0dError):
    """Values hold NaN or infinity, or are so large that their squares overflow."""

    default_reason = "not_finite"


def encoded_size(codec: CodecName, count: int) -> int:
    """Bytes that ``count`` values take."""
    if codec == "fp32":
        return 4 * count
    if codec == "bf16":
        return 2 * count
    scales = -(-count // BLOCK[codec]) * _SCALE_BYTES[codec]
    return scales + (count if codec == "int8" else -(-count // 2))


def encode(codec: CodecName, values: Values, lost: Values | None = None) -> bytearray:
    """The values' bytes.

    Parameters
    ----------
    values
        Any shape; C-contiguous.
    lost
        Same shape; receives what the other end will be short of, ``values - decoded``.

    Raises
    ------
    NotFinite
        If they cannot be encoded.
    """
    flat = values.reshape(-1)
    left = None if lost is None else lost.reshape(-1)
    data = bytearray(encoded_size(codec, flat.size))
    scratch = np.empty(min(PIECE, flat.size), np.float32)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        _check_finite(piece)
        short = None if left is None else left[start : start + PIECE]
        if codec == "fp32":
            np.frombuffer(data, "<f4")[start : start + PIECE] = piece
            if short is not None:
                short[...] = 0.0
        elif codec == "bf16":
            halves = _to_bf16(piece)
            np.frombuffer(data, "<u2")[start : start + PIECE] = halves
            if short is not None:
                np.subtract(piece, _from_bf16(halves), out=short)
        else:
            _encode_blocks(codec, data, flat.size, start, piece, scratch[: piece.size])
            if short is not None:
                # scratch holds what the other end will read
                np.subtract(piece, scratch[: piece.size], out=short)
    return data


def encoded(codec: CodecName, values: Values) -> memoryview:
    """As :func:`encode`; the values' own memory where those are their bytes.

    Raises
    ------
    NotFinite
        If they cannot be encoded.
    """
    if codec != "fp32" or sys.byteorder != "little":
        return memoryview(encode(codec, values))
    flat = values.reshape(-1)
    for start in range(0, flat.size, PIECE):
        _check_finite(flat[start : start + PIECE])
    return flat.view(np.uint8).data


def decode(
    codec: CodecName, data: memoryview | bytes | bytearray, count: int, start: int, out: Values
) -> None:
    """Read the values from ``start`` on into ``out``, one-dimensional.

    ``data`` is one tensor's bytes, ``count`` its number of values, ``start`` a multiple of
    :data:`PIECE`. Does not judge the values: a scale that is NaN gives NaN.
    """
    view = memoryview(data)
    ranges = piece_range(codec, count, start, out.size)
    decode_piece(codec, [view[at : at + length] for at, length in ranges], out)


def decode_all(codec: CodecName, data: memoryview | bytes | bytearray, count: int) -> Values:
    """All values of one tensor, in an array of their own."""
    out = np.empty(count, np.float32)
    for start in range(0, count, PIECE):
        decode(codec, data, count, start, out[start : start + PIECE])
    return out


def piece_range(codec: CodecName, count: int, start: int, size: int) -> list[tuple[int, int]]:
    """Where the bytes of values ``start .. start+size`` lie: (offset, length), scales first."""
    if codec in ("fp32", "bf16"):
        width = 4 if codec == "fp32" else 2
        return [(width * start, width * size)]
    block, scale = BLOCK[codec], _SCALE_BYTES[codec]
    scales = -(-count // block) * scale
    first = (start // block * scale, -(-size // block) * scale)
    if codec == "int8":
        return [first, (scales + start, size)]
    return [first, (scales + start // 2, -(-size // 2))]


def decode_piece(codec: CodecName, parts: list[memoryview], out: Values) -> None:
    """Values of one piece out of the bytes that :func:`piece_range` names."""
    if codec == "fp32":
        out[...] = np.frombuffer(parts[0], "<f4")
    elif codec == "bf16":
        # The value is the upper half of a float32.
        whole = out.view(np.uint32)
        whole[...] = np.frombuffer(parts[0], "<u2")
        np.left_shift(whole, 16, out=whole)
    elif codec == "int8":
        # A cast of its own: a product of mixed types goes through numpy's slow buffer.
        out[...] = np.frombuffer(parts[1], np.int8)
        _times_scales(out, np.frombuffer(parts[0], "<f4"), BLOCK["int8"])
    else:
        packed = np.frombuffer(parts[1], np.uint8)
        out[: packed.size] = packed & 15
        out[packed.size :] = (packed >> 4)[: out.size - packed.size]
        out -= np.float32(8.0)
        _times_scales(out, _from_bf16(np.frombuffer(parts[0], "<u2")), BLOCK["int4"])


def _check_finite(piece: Values) -> None:
    # The sum of squares can also overflow; such values are as little use.
    if not np.isfinite(np.dot(piece, piece)):
        raise NotFinite("the values hold NaN or infinity.")


def _encode_blocks(
    codec: CodecName, data: bytearray, count: int, start: int, piece: Values, scratch: Values
) -> None:
    """Write one piece's scales and values; leaves in ``scratch`` what they stand for."""
    block, levels = BLOCK[codec], _LEVELS[codec]
    largest = _largest(piece, block)
    scales = largest / np.float32(levels)
    if codec == "int4":
        # Rounded up, or the largest value would not fit.
        halves = _to_bf16(scales)
        halves += (_from_bf16(halves) < scales).astype(np.uint16)
        scales = _from_bf16(halves)
    inverse = np.zeros_like(scales)
    # A subnormal scale's inverse overflows; such a block is nothing beside any other.
    np.divide(np.float32(1.0), scales, out=inverse, where=scales > np.float32(1e-37))
    scales[inverse == 0.0] = 0.0
    np.copyto(scratch, piece)
    _times_scales(scratch, inverse, block)
    np.rint(scratch, out=scratch)
    (at, length), (values_at, values_length) = piece_range(codec, count, start, piece.size)
    if codec == "int8":
        np.frombuffer(data, np.uint8)[at : at + length] = scales.astype("<f4").view(np.uint8)
        target = np.frombuffer(data, np.int8)[values_at : values_at + values_length]
        np.copyto(target, scratch, casting="unsafe")
    else:
        halves = _to_bf16(scales)
        np.frombuffer(data, np.uint8)[at : at + length] = halves.astype("<u2").view(np.uint8)
        nibbles = scratch.astype(np.int8)
        nibbles += 8
        low, high = nibbles[:values_length], nibbles[values_length:]
        target = np.frombuffer(data, np.int8)[values_at : values_at + values_length]
        target[...] = low
        target[: high.size] |= high << 4
    _times_scales(scratch, scales, block)


def _largest(piece: Values, block: int) -> Values:
    """Largest magnitude of each block, the last one perhaps short."""
    whole = piece.size // block
    rows = piece[: whole * block].reshape(whole, block)
    largest = np.empty(-(-piece.size // block), np.float32)
    if whole:
        np.maximum(rows.max(axis=1), -rows.min(axis=1), out=largest[:whole])
    if whole < largest.size:
        rest = piece[whole * block :]
        largest[whole] = max(rest.max(), -rest.min())
    return largest


def _times_scales(values: Values, scales: Values, block: int) -> None:
    whole = values.size // block
    if whole:
        rows = values[: whole * block].reshape(whole, block)
        rows *= scales[:whole, None]
    if whole < scales.size:
        values[whole * block :] *= scales[whole]


def _to_bf16(values: Values) -> NDArray[np.uint16]:
    """To the nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def _from_bf16(halves: NDArray[np.uint16]) -> Values:
    return (halves.astype(np.uint32) << 16).view(np.float32)
