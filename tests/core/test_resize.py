"""Bilinear resizing: properties of the filter."""

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core import resize


@pytest.mark.parametrize(('size_in', 'size_out'), [(5, 5), (5, 13), (13, 5), (16, 64), (270, 17), (1, 4), (4, 1)])
def test_resize_matrix_rows_sum_to_one_and_are_symmetric(size_in, size_out):
    matrix = resize.resize_matrix(size_in, size_out)
    assert matrix.shape == (size_out, size_in) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-7 * max(size_in, size_out))  # float32 centres
    assert matrix.min() >= 0


def test_resize_matrix_by_hand():
    # Doubling: centres at 1/4, 3/4 ... of a pixel; at the edge only one pixel exists.
    np.testing.assert_allclose(resize.resize_matrix(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], atol=1e-7)
    # Halving: the triangle is four pixels wide, so neighbours on both sides count.
    np.testing.assert_allclose(resize.resize_matrix(6, 3)[1], [0, 0.125, 0.375, 0.375, 0.125, 0], atol=1e-7)


def test_resize_to_the_same_size_is_the_identity_and_keeps_a_ramp():
    image = np.random.default_rng(0).normal(size=(2, 6, 7, 3)).astype(np.float32)
    np.testing.assert_array_equal(resize.resize(image, 6, 7), image)
    ramp = np.broadcast_to(np.arange(12, dtype=np.float32)[None, :, None] + 0.5, (4, 12, 1))
    wide = np.asarray(resize.resize(ramp, 8, 36))
    expected = (np.arange(36) + 0.5) / 3
    np.testing.assert_allclose(wide[3, 2:-2, 0], expected[2:-2], rtol=1e-6)  # away from the clamped edges


def test_resize_does_not_mix_axes_and_keeps_the_dtype():
    image = jnp.zeros((2, 3, 4, 6, 5), jnp.bfloat16)
    out = resize.resize(image, 8, 3)
    assert out.shape == (2, 3, 8, 3, 5) and out.dtype == jnp.bfloat16
    rows = jnp.arange(4.0)[:, None, None] * jnp.ones((1, 6, 1))
    out = resize.resize(rows, 4, 9)
    np.testing.assert_allclose(out[..., 0], np.broadcast_to(np.arange(4.0)[:, None], (4, 9)), atol=1e-6)


def test_resize_with_an_explicit_ratio():
    ramp = np.broadcast_to(np.arange(16, dtype=np.float32)[:, None, None], (16, 4, 1))
    out = resize.resize(ramp, 6, 1, ratio=2.5)
    assert out.shape == (6, 1, 1)
    # The centre of output 2 is 2.5 (2 + 1/2) = 6.25, the triangle is 2.5 wide: pixels 4 to 8 count.
    weights = np.array([0.3, 0.7, 0.9, 0.5, 0.1]) / 2.5
    np.testing.assert_allclose(resize.resize_matrix(16, 6, 2.5)[2, 4:9], weights, rtol=1e-6)
    np.testing.assert_allclose(out[2, 0, 0], (weights * np.arange(4, 9)).sum(), rtol=1e-6)
    # Without the ratio the centres are spread over the whole input: 16/6 (2 + 1/2) = 6.67.
    assert resize.resize(ramp, 6, 1)[2, 0, 0] > 6


def test_resize_refuses_invalid_inputs():
    with pytest.raises(ValueError, match='got shape'):
        resize.resize(jnp.zeros((4, 4)), 2, 2)
    with pytest.raises(ValueError, match='uint8; convert'):
        resize.resize(jnp.zeros((4, 4, 3), jnp.uint8), 2, 2)
    with pytest.raises(ValueError, match='4 pixels to 0'):
        resize.resize_matrix(4, 0)
    with pytest.raises(ValueError, match='outside'):
        resize.resize_matrix(4, 4, ratio=3.0)
