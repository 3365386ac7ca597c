"""Outputs that several processes do not share; sampling in them: tests/parallel/full_processes.py."""

import numpy as np
import pytest

from fv_jax.parallel import distributed


def test_processes_that_see_different_files_are_refused(monkeypatch):
    def gather(digest):
        return np.stack([digest, digest + 1])

    monkeypatch.setattr(distributed.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(distributed.multihost_utils, 'process_allgather', gather)
    with pytest.raises(ValueError, match='different'):
        distributed.check_same('files', 'different')
