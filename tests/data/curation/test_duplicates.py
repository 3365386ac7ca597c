"""Near duplicates, against a comparison of all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fv_jax.data.curation.duplicates import MAX_DISTANCE, find_duplicates

RNG = np.random.default_rng(0)


def to_text(words):
    return words.astype('>u8').tobytes().hex()


def flip(words, bits):
    changed = words.copy()
    for bit in bits:
        changed[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    return changed


def compare_all(words, sources, limit):
    """The definition: the first earlier clip that is near, of another file, and no duplicate itself."""
    marks = []
    for j, word in enumerate(words):
        near = [
            i
            for i in range(j)
            if marks[i] < 0 and sources[i] != sources[j] and np.bitwise_count(words[i] ^ word).sum() <= limit
        ]
        marks.append(near[0] if near else -1)
    return marks


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(0, 11))
def test_find_duplicates_agrees_with_a_comparison_of_all_pairs(seed, files, limit):
    rng = np.random.default_rng(seed)
    seeds = rng.integers(0, 2**64, (4, 3), dtype=np.uint64)
    words = [flip(seeds[rng.integers(4)], rng.choice(192, rng.integers(0, 8), replace=False)) for _ in range(30)]
    sources = [f'{rng.integers(files)}.mp4' for _ in words]
    assert find_duplicates(list(map(to_text, words)), sources, limit).tolist() == compare_all(words, sources, limit)


def test_planted_near_duplicates_are_found_and_nothing_else():
    words = RNG.integers(0, 2**64, (3000, 3), dtype=np.uint64)
    copies = RNG.choice(2000, 300, replace=False)
    for place, source in enumerate(copies, 2000):
        words[place] = flip(words[source], RNG.choice(192, 12, replace=False))
    found = find_duplicates(list(map(to_text, words)))
    planted = np.full(3000, -1)
    planted[2000:2300] = copies
    assert np.mean(found == planted) == 1


def test_clips_without_a_hash_and_of_one_file_are_not_compared():
    a, b = (to_text(word) for word in RNG.integers(0, 2**64, (2, 3), dtype=np.uint64))
    assert find_duplicates([a, '', None, a, b, ''], None).tolist() == [-1, -1, -1, 0, -1, -1]
    assert find_duplicates([a, a, a, b], ['1', '1', '2', '2']).tolist() == [-1, -1, 0, -1]
    assert find_duplicates([]).tolist() == [] and find_duplicates(['', None]).tolist() == [-1, -1]


def test_added_clips_do_not_change_earlier_marks():
    words = RNG.integers(0, 2**64, (50, 3), dtype=np.uint64)
    words = np.concatenate([words, [flip(word, range(i % 20)) for i, word in enumerate(words)], words])
    hashes = list(map(to_text, words))
    whole = find_duplicates(hashes)
    for count in (0, 1, 60, 120):
        assert find_duplicates(hashes[:count]).tolist() == whole[:count].tolist()
    assert (whole[50:] < 50).all() and MAX_DISTANCE == 18


@pytest.mark.parametrize(
    ('hashes', 'sources'), [(['12'], None), (['x' * 48], None), (['0' * 48], []), (['0' * 47], [''])]
)
def test_find_duplicates_refuses(hashes, sources):
    with pytest.raises(ValueError, match='hashes'):
        find_duplicates(hashes, sources)
