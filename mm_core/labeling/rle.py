"""Run-length code of brush masks (thi.ng/rle-pack), which stores a soft 8-bit matte losslessly.

The stream starts with 32 bits for the number of values, 5 bits for word size − 1, and four times 4 bits for
run size − 1. Blocks follow: 1 bit (run or literals), 2 bits (index of the run size), that many bits for length − 1,
and one word for a run or `length` words for literals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mm_core.core.errors import InputError

CHANNELS = 4
"""Brush masks are RGBA; the matte is the last channel."""
_RUN_BITS = (3, 4, 8, 16)
_HEADER = np.array([int(bit) for bit in f"{7:05b}" + "".join(f"{bits - 1:04b}" for bits in _RUN_BITS)], np.uint8)


class BadRle(InputError):
    """The list of bytes is not a brush mask of this photo; the text is the reason."""


def encode_rle(alpha: np.ndarray) -> list[int]:
    """Encode a matte uint8 (H, W): the same bytes as the SDK's `mask2rle`, without its loop over runs.

    The SDK's `image2rle` thresholds at 128 and therefore loses soft alpha.
    """
    flat = np.ascontiguousarray(alpha, np.uint8).ravel()
    # Each value is repeated for the four channels.
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] ^ 1))
    lengths = CHANNELS * np.diff(starts, append=flat.size)
    values = flat[starts]
    # Runs are multiples of four and never literals; a run longer than one block is split.
    whole = (lengths - 1) >> _RUN_BITS[-1]
    values = np.repeat(values, whole + 1)
    pieces = np.full(values.size, 1 << _RUN_BITS[-1])
    last = np.cumsum(whole + 1) - 1
    pieces[last] = lengths - (whole << _RUN_BITS[-1])
    # Use the smallest run size that fits each piece.
    sizes = np.searchsorted([1 << bits for bits in _RUN_BITS], pieces)
    bits = np.array(_RUN_BITS)[sizes]
    words = ((4 | sizes) << bits | pieces - 1) << 8 | values
    return _packed(words, bits + 11, CHANNELS * flat.size)


def _packed(words: np.ndarray, widths: np.ndarray, count: int) -> list[int]:
    """Return header and words of 14 to 27 bits, concatenated, as bytes."""
    first = 32 + _HEADER.size + np.cumsum(widths) - widths
    stream = np.zeros(first[-1] + widths[-1], np.uint8)
    stream[:32] = np.unpackbits(np.array([count], ">u4").view(np.uint8))
    stream[32 : 32 + _HEADER.size] = _HEADER
    # Write all words of one width together, bit by bit.
    for width in np.unique(widths):
        chosen = widths == width
        shifts = np.arange(width - 1, -1, -1)
        stream[first[chosen, None] + np.arange(width)] = words[chosen, None] >> shifts & 1
    return np.packbits(stream).tolist()


def decode_rle(rle: object, width: int, height: int) -> np.ndarray:
    """Decode the matte uint8 (H, W) of a brush region of the given size.

    Memory is allocated only after the header has been found to match the photo's size.

    Raises:
        BadRle: The code is malformed or belongs to a photo of another size.
    """
    # The largest code has a block head per literal value.
    count = width * height * CHANNELS
    if not isinstance(rle, list) or not 8 <= len(rle) <= 3 * count + 64:
        raise BadRle("rle is not a list of bytes of a plausible length")
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise BadRle("rle is not a list of bytes") from None
    claimed = int.from_bytes(data[:4], "big")
    if claimed != count:
        raise BadRle(f"rle claims {claimed} values, the photo of {width}x{height} needs {count}")
    header = int.from_bytes(data[4:8], "big")
    if header >> 27 != 7:
        raise BadRle(f"rle has words of {(header >> 27) + 1} bits, not 8")
    run_bits = [(header >> shift & 15) + 1 for shift in (23, 19, 15, 11)]
    # The channels are equal, so the last one is the matte.
    values, lengths = _blocks(data, run_bits, count)
    return np.repeat(values, lengths).reshape(height, width, CHANNELS)[:, :, CHANNELS - 1].copy()


def _blocks(data: bytes, run_bits: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values uint8 and their repetitions, `count` in total. The loop runs per block, not per pixel."""
    # Padding allows reading 8 bytes at any position.
    padded = data + bytes(8)
    end = 8 * len(data)
    values, lengths = bytearray(), []
    position, done = 53, 0
    while done < count:
        # The longest block head has 1 + 2 + 16 + 8 bits, so 8 bytes contain it at any bit offset.
        start = position >> 3
        window = int.from_bytes(padded[start : start + 8], "big") << (position & 7) & 0xFFFFFFFFFFFFFFFF
        bits = run_bits[window >> 61 & 3]
        length = (window >> (61 - bits) & ((1 << bits) - 1)) + 1
        position += 3 + bits
        done += length
        # The first bit distinguishes a run from literals.
        if window >> 63:
            values.append(window >> (53 - bits) & 255)
            lengths.append(length)
            position += 8
        else:
            if position + 8 * length > end:
                raise BadRle("rle ends before the picture is full")
            first, last = position >> 3, (position + 8 * length + 7) >> 3
            literal = np.unpackbits(np.frombuffer(padded, np.uint8, last - first, first))
            values += np.packbits(literal[position & 7 :][: 8 * length]).tobytes()
            lengths += [1] * length
            position += 8 * length
        if position > end or done > count:
            raise BadRle("rle ends before the picture is full" if position > end else "rle overruns the picture")
    return np.frombuffer(bytes(values), np.uint8), np.array(lengths, np.int64)
