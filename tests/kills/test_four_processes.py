"""A run of four processes, joined over gloo, is the run of one; two are in tests/parallel."""

from tests.parallel import joined


def test_four_processes_train_like_one(tmp_path):
    joined.assert_trains_like_one(tmp_path, 4)
