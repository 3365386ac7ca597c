"""The convolution in blocks, which TPUs run, on the CPU: beside the definition, and its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.models import conv
from fv_jax.models.blocked_conv import conv_blocks
from fv_jax.models.lazy_frames import LazyFrames


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def read(*shape):
    """A clip whose frames are made on reading from one part for each frame and one for all."""
    return LazyFrames(lambda x, scale: jnp.tanh(x * scale), (normal(*shape), normal(1, 1, 1, 1, shape[-1], seed=1)))


# (B, F, H, W), shards of columns, stride, taps in time, whether there is a past.
CASES = [
    ((2, 5, 4, 6), 2, 1, 3, True),  # fewer rows than blocks
    ((1, 5, 20, 12), 4, 1, 3, False),  # 20 rows do not divide among the blocks
    ((1, 1, 16, 8), 8, 1, 3, True),  # fewer frames than the past has; one column for each shard
    ((1, 2, 9, 7), 2, 1, 3, False),  # 7 columns do not divide by the shards
    ((2, 3, 16, 6), 3, 1, 1, False),
    ((2, 4, 18, 16), 4, 2, 1, False),
    ((1, 4, 32, 8), 1, 2, 3, True),
]


@pytest.mark.parametrize(('shape', 'shards', 'stride', 'taps', 'began'), CASES, ids=str)
def test_conv_in_blocks_equals_that_of_whole_frames(shape, shards, stride, taps, began):
    x, kernel, bias = read(*shape, 3), normal(taps, 3, 3, 3, 5, seed=2), normal(1, 1, 1, 5, seed=3)
    past = normal(shape[0], taps - 1, *shape[2:], 3, seed=4) if began else None
    expected, expected_last = conv._conv_batched(x, past, kernel, bias, stride)
    y, last = conv_blocks(x, past, kernel, bias, stride, shards)
    assert y.shape == expected.shape
    assert last.shape == expected_last.shape
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(last, expected_last, atol=1e-6)


def test_conv_in_blocks_rounds_once():
    """In bfloat16 the taps are summed in float32: no further from float32 than the rounding of the result."""
    x, kernel = LazyFrames.from_array(normal(1, 3, 16, 8, 64).astype('bfloat16')), normal(3, 3, 3, 64, 32, seed=1) / 40
    kernel, bias = kernel.astype('bfloat16'), jnp.zeros((1, 1, 1, 32))
    exact, _ = conv_blocks(x.map(lambda x: x.astype('float32')), None, kernel.astype('float32'), bias, 1, 2)
    y, _ = conv_blocks(x, None, kernel, bias.astype('bfloat16'), 1, 2)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype('float32'), exact, rtol=2.0**-8, atol=1e-5)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('began', [True, False])
def test_gradient_of_conv_in_blocks_is_that_of_whole_frames(began, stride):
    arrays = [normal(2, 5, 4, 6, 3), normal(2, 5, 1, 1, 3, seed=1), normal(3, 3, 3, 3, 5, seed=2)]
    arrays += [normal(2, 2, 4, 6, 3, seed=3)] if began else []

    def make(x, each):
        return jnp.tanh(x * each)

    def loss(form, x, each, kernel, past=None):
        y, last = form((x, each), past, kernel, jnp.zeros((1, 1, 1, 5)))
        return jnp.sum(jnp.square(y)) + jnp.sum(last)

    forms = (
        functools.partial(conv._conv_blocks, make, stride, 2),
        lambda parts, *others: conv._conv_batched(LazyFrames(make, parts), *others, stride),
    )
    found = [jax.grad(functools.partial(loss, form), range(len(arrays)))(*arrays) for form in forms]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())
