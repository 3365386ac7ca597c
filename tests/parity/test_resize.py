"""Resizing against the official one (model guide 5.4). Official layout (T, C, H, W); ours (T, H, W, C)."""

import numpy as np
import pytest

from fv_jax.core import resize


@pytest.fixture(scope='module')
def data(official):
    with np.load(official / 'resize_io.npz') as file:
        return dict(file)


def ours(x):
    return np.moveaxis(x, 1, -1)


def assert_close(got, expected):
    np.testing.assert_allclose(got, ours(expected), rtol=0, atol=2e-6 * np.abs(expected).max())


def test_resize_parity_of_upscaling(data):
    keys = [key for key in data if key.startswith('resized_')]
    assert keys
    for key in keys:
        height, width = map(int, key.removeprefix('resized_').split('x'))
        assert_close(resize.resize(ours(data['x']), height, width), data[key])


def test_resize_parity_of_normalized_frames(data):
    np.testing.assert_allclose((data['frames'] / 255 - 0.5) / 0.5, ours(data['x']), atol=1e-6)


def test_resize_parity_of_down_and_upscaling(data):
    (key,) = [key for key in data if key.startswith('pr12_down_factor')]
    factor = float(key.removeprefix('pr12_down_factor').replace('_', '.'))
    height, width = (int(size / factor) for size in ours(data['x']).shape[-3:-1])
    small = resize.resize(ours(data['x']), height, width, ratio=factor)
    assert_close(small, data[key])
    height, width = data['pr12_down_up'].shape[-2:]
    assert_close(resize.resize(small, height, width), data['pr12_down_up'])
