"""Ways in which a file gets damaged, drawn from a generator."""

import numpy as np


def _truncate(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def _flip_bits(data: bytearray, rng: np.random.Generator) -> bytearray:
    for place in rng.integers(len(data), size=int(rng.choice([1, 3, 30]))):
        data[place] ^= 1 << rng.integers(8)
    return data


def _zero_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, length = rng.integers(len(data)), int(rng.integers(1, 5000))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _overwrite(data: bytearray, rng: np.random.Generator) -> bytearray:
    start, noise = rng.integers(len(data)), rng.bytes(int(rng.integers(1, 3000)))
    return data[:start] + noise[: len(data) - start] + data[start + len(noise) :]


def _remove_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = rng.integers(len(data))
    return data[:start] + data[start + int(rng.integers(1, 5000)) :]


def _insert_bytes(data: bytearray, rng: np.random.Generator) -> bytearray:
    start = rng.integers(len(data))
    return data[:start] + rng.bytes(int(rng.integers(1, 300))) + data[start:]


def _replace_content(data: bytearray, rng: np.random.Generator) -> bytearray:
    return bytearray([b'', b'text', rng.bytes(4000), data[:8], bytes(len(data))][rng.integers(5)])


KINDS = (_truncate, _flip_bits, _zero_bytes, _overwrite, _remove_bytes, _insert_bytes, _replace_content)


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Returns the data with one kind of damage; it always differs from `data`."""
    while True:
        out = bytes(KINDS[rng.integers(len(KINDS))](bytearray(data), rng))
        if out != data:
            return out
