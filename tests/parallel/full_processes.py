"""Two and four processes, joined over gloo, train and sample like one: same batches, same held-out metrics."""

import pytest

from tests.parallel import joined, joined_sampling


@pytest.mark.parametrize('count', [2, 4])
def test_processes_train_like_one(tmp_path, count):
    joined.assert_trains_like_one(tmp_path, count)


def test_two_processes_sample_a_prompt_each(tmp_path):
    joined_sampling.assert_samples_like_one(tmp_path, 2, '--parallel.data=2')


def test_four_processes_sample_like_one(tmp_path):
    arguments = joined_sampling.assert_samples_like_one(tmp_path, 4)
    joined_sampling.assert_continues(tmp_path, arguments, 4)
