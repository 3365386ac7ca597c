"""A run of two processes, joined over gloo, is the run of one: same batches, same held-out metrics."""

from tests.parallel import joined


def test_two_processes_train_like_one(tmp_path):
    """Four do too: tests/kills/test_processes.py."""
    joined.assert_trains_like_one(tmp_path, 2)
