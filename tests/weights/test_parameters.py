"""Lazy parameters: layers read one by one, and computed from those of others."""

import numpy as np
import pytest

from fv_jax.weights.parameters import Parameter, map_layers, stacked_parameter

F32 = np.dtype(np.float32)


def stacked(start, read):
    def layer(i):
        read.append((start, i))
        return np.full(3, start + i, np.float16)

    return stacked_parameter(layer, (2, 3), F32)


def test_stacked_parameter_reads_layers_one_by_one():
    read = []
    parameter = stacked(10, read)
    np.testing.assert_array_equal(parameter.layer(1), np.full(3, 11))
    assert read == [(10, 1)] and parameter.nbytes == 24
    whole = parameter.numpy()
    np.testing.assert_array_equal(whole, [[10] * 3, [11] * 3])
    assert whole.dtype == F32 and read == [(10, 1), (10, 0), (10, 1)]


def test_map_layers_reads_the_layers_that_are_used():
    read = []
    total = map_layers(np.add, stacked(10, read), stacked(20, read))
    assert not read and (total.shape, total.dtype) == ((2, 3), F32)
    np.testing.assert_array_equal(total.layer(1), np.full(3, 32))
    assert read == [(10, 1), (20, 1)]
    np.testing.assert_array_equal(total.numpy(), [[30] * 3, [32] * 3])


@pytest.mark.parametrize('first', [True, False])
def test_map_layers_of_a_parameter_without_layers(first):
    """Of a checkpoint, for example: it is read in full, once."""
    read, counted = [], []
    whole = Parameter((2, 3), F32, lambda: counted.append(1) or np.ones((2, 3), np.float32))
    sources = (whole, stacked(10, read)) if first else (stacked(10, read), whole)
    total = map_layers(np.add, *sources)
    assert total.layer is None and not counted
    np.testing.assert_array_equal(total.numpy(), [[11] * 3, [12] * 3])
    assert len(counted) == 1 and read == [(10, 0), (10, 1)]
