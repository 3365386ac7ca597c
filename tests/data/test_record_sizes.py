"""Sizes of many records in few bytes."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from fv_jax.data import record_sizes
from fv_jax.data.record_sizes import RecordSizes

SIZES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2**21 - 1)), max_size=40)


@hypothesis.given(st.lists(SIZES, max_size=4))
def test_sizes_are_collected_and_concatenated(chunks: list[list[tuple[int, int, int]]]) -> None:
    arrays = [np.array(chunk, int).reshape(-1, 3) for chunk in chunks]
    expected = np.concatenate([np.zeros((0, 3), int), *arrays])
    found = RecordSizes.collect(arrays)
    np.testing.assert_array_equal(found.to_array(), expected)
    np.testing.assert_array_equal(found.kinds, np.unique(expected, axis=0))
    assert len(found) == len(expected)
    assert found.count().tolist() == [(found.index == k).sum() for k in range(len(found.kinds))]
    if chunks:
        together = RecordSizes.concatenate([RecordSizes.from_array(array) for array in arrays])
        np.testing.assert_array_equal(together.index, found.index)
        np.testing.assert_array_equal(together.kinds, found.kinds)


def test_sizes_take_a_byte_a_record_up_to_256_kinds() -> None:
    assert RecordSizes.from_array(np.tile([[49, 8, 8]], (1000, 1))).index.nbytes == 1000
    sizes = np.stack([np.arange(300) % 256 + 1] * 3, axis=1)
    assert RecordSizes.from_array(sizes).index.dtype == np.uint8
    assert RecordSizes.from_array(np.stack([np.arange(257)] * 3, axis=1)).index.dtype == np.uint16


def test_sizes_of_some_kinds_are_selected_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_sizes, '_CHUNK', 7)
    sizes = RecordSizes.from_array(np.random.default_rng(0).integers(0, 3, (100, 3)))
    chosen = sizes.kinds[:, 0] == 1
    found = sizes.select(chosen)
    assert found.dtype == np.uint32 and found.tolist() == np.flatnonzero(sizes.to_array()[:, 0] == 1).tolist()
    assert sizes.select(np.zeros(len(chosen), bool)).tolist() == []


def test_sizes_are_mapped_and_equal_ones_united() -> None:
    sizes = RecordSizes.from_array(np.array([[9, 4, 6], [5, 4, 6], [0, 1, 1]]))
    first_frames = sizes.map(lambda kinds: np.column_stack([np.minimum(kinds[:, 0], 1), kinds[:, 1:]]))
    assert first_frames.to_array().tolist() == [[1, 4, 6], [1, 4, 6], [0, 1, 1]] and len(first_frames.kinds) == 2


@pytest.mark.parametrize('size', [-1, 2**21])
def test_impossible_sizes_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f'a size of {size} '):
        RecordSizes.from_array(np.array([[9, 4, size]]))
