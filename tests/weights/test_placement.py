"""Parameters on one device. Over a mesh: tests/parallel/test_placement.py."""

import weakref

import jax
import numpy as np
import pytest

from fv_jax.weights import placement
from fv_jax.weights.parameters import Parameter, stacked_parameter

F32 = np.dtype(np.float32)
SHAPE = (3, 4, 2)


def layer(i):
    return np.arange(8, dtype=np.float32).reshape(4, 2) + i


def test_large_stacked_parameter_is_read_layer_by_layer(monkeypatch):
    """The host copy of a layer is freed before the next one is read."""
    monkeypatch.setattr(placement, 'SMALL_BYTES', 4 * 24 - 1)
    read = []

    def watched(i):
        assert all(array() is None for array in read)
        array = layer(i)
        read.append(weakref.ref(array))
        return array

    def whole():
        raise AssertionError('read in full')

    placed = placement.place_parameter(Parameter(SHAPE, F32, whole, watched), None)
    assert len(read) == 3 and placed.devices() == {jax.devices()[0]} and not placed.committed
    np.testing.assert_array_equal(placed, [layer(i) for i in range(3)])


@pytest.mark.parametrize('small', [4 * 24, 0])
def test_other_parameters_are_read_in_full(small, monkeypatch):
    """Small ones, and those without layers."""
    monkeypatch.setattr(placement, 'SMALL_BYTES', small)
    monkeypatch.delattr(placement, '_place_layers')
    parameter = stacked_parameter(layer, SHAPE, F32)
    parameter = parameter if small else Parameter(SHAPE, F32, parameter.numpy)
    placed = placement.place_parameter(parameter, None)
    np.testing.assert_array_equal(placed, parameter.numpy())
    assert placed.dtype == F32
