"""Duplicates and near duplicates over a whole data set, by the perceptual hashes of its clips.

Two clips are near duplicates if their hashes of 192 bits differ in at most 18. Comparing all pairs of a million clips
would take hours: a hash is divided into 12 words of 16 bits, and only clips that have one of them in common, at the
same place, are compared. Hashes that differ in at most 11 bits always have one; of random differences in 18 bits, 98 %
do.

A clip is marked as a duplicate of the first clip, in the order of the records, that is like it and is no duplicate
itself. So clips that are added later do not change earlier marks. Clips of one file are not compared: parts of a still
shot are alike and are no copies.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from fv_jax.core.checks import require
from fv_jax.data.curation.hashing import FRAMES, parse_hashes

MAX_DISTANCE = 18  # bits
NONE = -1
DUPLICATE_OF = 'duplicate_of'  # the column of a manifest
_CHUNK = 2**22  # pairs that are compared at once


def find_duplicates(
    hashes: Sequence[str | None], sources: Sequence[str | None] | None = None, max_distance: int = MAX_DISTANCE
) -> np.ndarray:
    """Finds near duplicates.

    Args:
      hashes: of the clips (`hashing.perceptual_hash`); clips without one, None or '', are like no other.
      sources: the file of each clip; those of one file are not compared. None compares all.
      max_distance: bits in which hashes of near duplicates may differ.

    Returns:
      int64 (n,): the number of the clip that each is a duplicate of, -1 for others.

    Raises:
      ValueError: other lengths, or a hash that is none.
    """
    require(max_distance >= 0, f'max_distance={max_distance}: must be at least 0')
    require(sources is None or len(sources) == len(hashes), 'hashes and sources: must be of one length')
    given = np.array([i for i, text in enumerate(hashes) if text], np.int64)
    try:
        words = parse_hashes([hashes[i] for i in given])
        require(len(words) == len(given), '')
    except ValueError:
        raise ValueError('hashes: must be perceptual hashes of 48 hexadecimal digits') from None
    found = np.full(len(hashes), NONE, np.int64)
    if not len(given):
        return found
    files = (
        np.arange(len(given))
        if sources is None
        else np.unique([str(sources[i]) for i in given], return_inverse=True)[1]
    )
    # Equal hashes of one file are compared once: a still shot of an hour gives a thousand.
    keys = np.column_stack([words, files.astype(np.uint64)])
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first, kind='stable')  # unique keys in the order of their first records
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    first = first[order]
    marks = _mark(words[first], files[first], max_distance)
    of_unique = np.where(marks == NONE, NONE, given[first[marks]])
    found[given] = of_unique[rank[inverse.ravel()]]
    return found


def _mark(words: np.ndarray, files: np.ndarray, max_distance: int) -> np.ndarray:
    """Marks every hash (n, 3) that is like an earlier one which is not marked; int64 (n,)."""
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *_near_pairs(words, files, max_distance)])
    pairs = np.unique(pairs[:, ::-1], axis=0)  # by the later one, then by the earlier one
    marks = np.full(len(words), NONE, np.int64)
    for later, earlier in pairs:
        if marks[later] == NONE and marks[earlier] == NONE:
            marks[later] = earlier
    return marks


def _near_pairs(words: np.ndarray, files: np.ndarray, max_distance: int) -> Iterator[np.ndarray]:
    """Yields pairs (earlier, later), int64 (m, 2), that have 16 bits in common and are near; some repeatedly."""
    parts = np.ascontiguousarray(words).view(np.uint16).reshape(len(words), -1)
    for part in parts.T:
        order = np.argsort(part, kind='stable')
        values = part[order]
        ends = np.searchsorted(values, values, side='right')  # of the run of equal values that each is in
        for start in range(0, len(order), _CHUNK):
            here = np.arange(start, min(start + _CHUNK, len(order)))
            shift = 1
            while len(here := here[here + shift < ends[here]]):
                a, b = order[here], order[here + shift]
                near = _distance(words, a, b, max_distance) & (files[a] != files[b])
                if near.any():
                    yield np.column_stack([a[near], b[near]])
                shift += 1


def _distance(words: np.ndarray, a: np.ndarray, b: np.ndarray, max_distance: int) -> np.ndarray:
    """Returns which pairs of hashes differ in at most so many bits."""
    total = np.zeros(len(a), np.uint8)
    for frame in range(FRAMES):
        column = words[:, frame]
        total += np.bitwise_count(column[a] ^ column[b])
    return total <= max_distance
