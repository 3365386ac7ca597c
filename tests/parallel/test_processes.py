"""A run of two and of four processes, joined over gloo, is the run of one: same batches, same held-out metrics."""

import numpy as np
import pytest

from tests import runs
from tests.parallel import joined
from tests.sampling import tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('processes')


@pytest.fixture(scope='module')
def run(folder):
    tiny.save_vae(folder / 'vae.safetensors')

    def run(processes):
        workdir = folder / f'of_{processes}'
        output = joined.train(runs.superres(workdir, folder / 'vae.safetensors', *joined.RUN), processes)
        return workdir, output

    return run


@pytest.fixture(scope='module')
def one(run):
    return run(1)[0]


@pytest.mark.parametrize('processes', [2, 4])
def test_several_processes_train_like_one(one, run, processes):
    workdir, (first, *others) = run(processes)
    assert '4 cpu device(s) (data 2, context 2)' in first[2] and 'saved step 2' in first
    assert others == [[]] * (processes - 1)
    rows, expected = runs.rows(workdir), runs.rows(one)
    assert [row.keys() for row in rows] == [row.keys() for row in expected] and len(rows) == 4
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    numbers, expected = runs.arrays(workdir, 2), runs.arrays(one, 2)
    assert numbers.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max() or 1
        np.testing.assert_allclose(numbers[name] / scale, value / scale, atol=1e-5, err_msg=name)
