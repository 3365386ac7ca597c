"""Ways in which a file gets damaged, drawn from a generator."""

import numpy as np


def _cut_off(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def _flipped_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(len(data), size=int(rng.choice([1, 3, 30]))):
        data[place] ^= 1 << rng.integers(8)
    return data


def _zeroed(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, length = rng.integers(len(data)), int(rng.integers(1, 5000))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _overwritten(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, noise = rng.integers(len(data)), rng.bytes(int(rng.integers(1, 3000)))
    return data[:start] + noise[: len(data) - start] + data[start + len(noise) :]


def _lost(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = rng.integers(len(data))
    return data[:start] + data[start + int(rng.integers(1, 5000)) :]


def _inserted(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = rng.integers(len(data))
    return data[:start] + rng.bytes(int(rng.integers(1, 300))) + data[start:]


def _something_else(data: bytearray, rng: np.random.Generator) -> bytearray:
    return bytearray([b'', b'text', rng.bytes(4000), data[:8], bytes(len(data))][rng.integers(5)])


KINDS = (_cut_off, _flipped_bits, _zeroed, _overwritten, _lost, _inserted, _something_else)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """The data with one kind of damage; never equal to what it was."""
    while True:
        out = bytes(KINDS[rng.integers(len(KINDS))](bytearray(data), rng))
        if out != data:
            return out
