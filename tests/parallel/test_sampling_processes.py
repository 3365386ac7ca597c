"""Sampling in two processes: a prompt of the batch on each; and outputs that they do not share."""

import numpy as np
import pytest

from fv_jax.parallel import distributed
from tests.parallel import joined_sampling


def test_two_processes_sample_like_one(tmp_path):
    """Four do too: tests/kills/test_four_processes.py."""
    joined_sampling.assert_samples_like_one(tmp_path, 2, '--parallel.data=2')


def test_processes_that_see_different_files_are_refused(monkeypatch):
    def gather(digest):
        return np.stack([digest, digest + 1])

    monkeypatch.setattr(distributed.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, 'process_allgather', gather)
    with pytest.raises(ValueError, match='different'):
        distributed.check_same('files', 'different')
