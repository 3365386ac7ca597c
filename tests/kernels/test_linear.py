"""x W and its gradients, on the path that a CPU takes and on the one that others take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.kernels import linear as module
from fv_jax.kernels.linear import project

SHAPES = [((6, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (4, 3, 5)), ((2, 3, 2, 4), (4, 1))]


def random(*shape, seed=0, dtype='float32'):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def plain(x, kernel):
    return jnp.tensordot(x, kernel, axes=1)


@pytest.mark.parametrize('shapes', SHAPES)
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_linear_and_gradients_equal_the_plain_product(shapes, dtype):
    x, kernel = random(*shapes[0], dtype=dtype), random(*shapes[1], seed=1, dtype=dtype)
    y, vjp = jax.vjp(project, x, kernel)
    expected, expected_vjp = jax.vjp(plain, x, kernel)
    np.testing.assert_allclose(np.float32(y), np.float32(expected), rtol=1e-5, atol=1e-6)
    dy = random(*y.shape, seed=2, dtype=dtype)
    tolerance = 1e-5 if dtype == 'float32' else 2e-2
    for actual, wanted in zip(vjp(dy), expected_vjp(dy), strict=True):
        assert actual.dtype == wanted.dtype
        np.testing.assert_allclose(np.float32(actual), np.float32(wanted), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('shapes', SHAPES)
def test_linear_kernel_gradients_agree(shapes):
    x, kernel = random(*shapes[0]), random(*shapes[1])
    dy = random(*project(x, kernel).shape, seed=1)
    flat, direct = module._kernel_gradient_flat(x, dy), module._kernel_gradient(x, dy)
    assert flat.shape == direct.shape == kernel.shape
    np.testing.assert_allclose(flat, direct, rtol=1e-5, atol=1e-6)
