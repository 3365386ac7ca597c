"""Held-out clips in batches of any size."""

import numpy as np
import pytest

from fv_jax.training.heldout import HeldoutBatch, heldout_indices


@pytest.mark.parametrize('batch_size', [1, 2, 3, 4, 6, 8, 16, 32, 256])
@pytest.mark.parametrize('num_clips', [1, 2, 3, 4, 5, 7, 8, 12, 17])
def test_heldout_clips_have_equal_weights_in_batches_of_any_size(num_clips, batch_size):
    weights = np.zeros(num_clips)
    for clips in heldout_indices(num_clips, batch_size):
        batch = HeldoutBatch({}, clips)
        assert clips.shape == (batch_size,)
        np.add.at(weights, clips, batch.num_clips / batch_size)  # as in a mean over clips of means over batches
        np.testing.assert_array_equal(np.unique(clips), np.sort(clips[: batch.num_clips]))
    np.testing.assert_allclose(weights, 1)


def test_heldout_clips_of_the_remainder_are_in_few_batches():
    assert [list(clips) for clips in heldout_indices(7, 4)] == [[0, 1, 2, 3], [4, 5, 4, 5], [6, 6, 6, 6]]
    assert len(heldout_indices(4, 256)) == 1 and heldout_indices(0, 8) == []
