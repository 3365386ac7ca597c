"""The VAE's convolutions and its group norm: references in numpy, causality, caches, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.models import conv
from fv_jax.models.conv import CausalConv3d, FrameConv, GroupNorm, LazyFrames, PointwiseConv


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def as_clip(x):
    return LazyFrames.from_array(jnp.asarray(x))


def causal_conv(dtype='float32', channels=(2, 3)):
    layer = CausalConv3d(*channels, dtype=dtype, rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.asarray(normal(channels[1], seed=1))
    return layer


def conv3d_in_numpy(x, kernel):
    """The definition, tap by tap: valid in time, zero-padded in space."""
    frames, (height, width) = x.shape[1] - len(kernel) + 1, x.shape[2:4]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float64)
    return sum(
        padded[:, t : t + frames, i : i + height, j : j + width] @ kernel[t, i, j]
        for t in range(len(kernel))
        for i in range(3)
        for j in range(3)
    )


# Convolutions.


def read(x):
    """A clip whose frames are made on reading: here doubled, and with what belongs to each frame, and to all, added."""
    each, shared = normal(2, 5, 1, 1, 3, seed=2), normal(2, 1, 1, 1, 3, seed=3)
    parts = tuple(jnp.asarray(part) for part in (x, each, shared))
    return LazyFrames(lambda x, each, shared: x + each + shared, parts).map(lambda x: 2 * x), 2 * (x + each + shared)


@pytest.mark.parametrize('narrow', [2, 32])
@pytest.mark.parametrize('taps', [1, 3])
@pytest.mark.parametrize('began', [True, False])
@pytest.mark.parametrize('form', [conv._conv_batched, conv._conv_scan_frames])
def test_conv_batched_and_scanned_equal_the_definition(form, began, taps, narrow, monkeypatch):
    monkeypatch.setattr(conv, 'NARROW', narrow)
    x, made = read(normal(2, 5, 4, 6, 3))
    kernel, bias = normal(taps, 3, 3, 3, 5, seed=1), normal(1, 1, 1, 5, seed=4)
    past = normal(2, taps - 1, 4, 6, 3, seed=5) if began else np.repeat(made[:, :1], taps - 1, axis=1)
    y, last = form(x, jnp.asarray(past) if began else None, jnp.asarray(kernel), jnp.asarray(bias), 1)
    seen = np.concatenate([past, made], axis=1)
    np.testing.assert_allclose(y, conv3d_in_numpy(seen, kernel) + bias, atol=1e-4)
    np.testing.assert_allclose(last, seen[:, 5:], atol=1e-6)


@pytest.mark.parametrize('stride', [1, 2])
def test_conv_batched_and_scanned_have_equal_gradients(stride):
    arrays = normal(2, 5, 4, 6, 3), normal(2, 5, 1, 1, 3, seed=1), normal(2, 2, 4, 6, 3, seed=2), normal(3, 3, 3, 3, 5)

    def loss(form, x, each, past, kernel):
        read = LazyFrames(lambda x, each: jnp.tanh(x * each), (x, each))
        y, last = form(read, past, kernel, jnp.zeros((1, 1, 1, 5)), stride)
        return jnp.sum(jnp.square(y)) + jnp.sum(last)

    found = [
        jax.grad(functools.partial(loss, form), range(4))(*map(jnp.asarray, arrays))
        for form in (conv._conv_batched, conv._conv_scan_frames)
    ]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())


def test_conv_pads_the_past_with_the_first_frame():
    layer, x = causal_conv(), normal(1, 4, 3, 5, 2)
    past = np.repeat(x[:, :1], 2, axis=1)
    expected = conv3d_in_numpy(np.concatenate([past, x], axis=1), np.asarray(layer.kernel[...]))
    y, _ = layer(as_clip(x), None)
    np.testing.assert_allclose(y, expected + np.asarray(layer.bias[...]), atol=1e-5)


def test_conv_of_an_image_is_that_of_a_still_clip():
    layer, x = causal_conv(), jnp.asarray(normal(1, 1, 3, 5, 2))
    image, cache = layer(as_clip(x), None)
    still, _ = layer(as_clip(jnp.repeat(x, 4, axis=1)), None)
    np.testing.assert_allclose(image, still[:, -1:], atol=1e-6)
    np.testing.assert_array_equal(cache, jnp.repeat(x, 2, axis=1))


@pytest.mark.parametrize('frame', [0, 1, 3])
def test_conv_is_causal(frame):
    """By gradients: of the output at one frame, to the input at every frame."""
    layer, x = causal_conv(), jnp.asarray(normal(1, 5, 3, 3, 2))
    gradient = jax.grad(lambda x: jnp.sum(jnp.square(layer(as_clip(x), None)[0][:, frame])))(x)
    seen = np.abs(np.asarray(gradient)).max((0, 2, 3, 4)) > 0
    assert seen.tolist() == [frame - 2 <= f <= frame for f in range(5)]


@pytest.mark.parametrize('chunks', [(3, 2, 4), (1, 1, 7), (8, 1)])
def test_conv_in_chunks_with_cache_equals_the_whole_clip(chunks):
    layer, x = causal_conv(), jnp.asarray(normal(2, 9, 3, 4, 2))
    whole, last = layer(as_clip(x), None)
    parts, cache, start = [], None, 0
    for size in chunks:
        part, cache = layer(as_clip(x[:, start : start + size]), cache)
        parts.append(part)
        start += size
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)
    np.testing.assert_array_equal(cache, last)
    np.testing.assert_array_equal(cache, x[:, -2:])


def test_conv_depends_on_the_cache():
    layer, x = causal_conv(), jnp.asarray(normal(1, 2, 3, 3, 2))
    fresh, _ = layer(as_clip(x), None)
    after, _ = layer(as_clip(x), jnp.asarray(normal(1, 2, 3, 3, 2, seed=3)))
    assert np.abs(fresh - after)[:, 0].max() > 0.1


def test_pointwise_conv_is_a_linear_map():
    layer, x = PointwiseConv(3, 4, dtype='float32', rngs=nnx.Rngs(0)), normal(1, 2, 3, 4, 3)
    np.testing.assert_allclose(layer(jnp.asarray(x)), x @ np.asarray(layer.kernel[...]), atol=1e-6)


def test_frame_conv_stride_2_pads_right_and_bottom_only():
    """Output (i, j) is made of rows 2i ... 2i + 2 and columns 2j ... 2j + 2; those that are outside are zeros."""
    layer, x = FrameConv(2, stride=2, dtype='float32', rngs=nnx.Rngs(0)), normal(1, 2, 4, 6, 2)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
    kernel = np.asarray(layer.kernel[...])
    expected = sum(padded[:, :, i : i + 3 : 2, j : j + 5 : 2] @ kernel[i, j] for i in range(3) for j in range(3))
    y = layer(as_clip(x))
    assert y.shape == (1, 2, 2, 3, 2)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_frame_conv_keeps_the_size_and_does_not_mix_frames():
    layer, x = FrameConv(2, dtype='float32', rngs=nnx.Rngs(0)), jnp.asarray(normal(1, 3, 4, 6, 2))
    y = layer(as_clip(x))
    assert y.shape == x.shape
    np.testing.assert_allclose(y[:, 1:2], layer(as_clip(x[:, 1:2])), atol=1e-6)


@pytest.mark.parametrize('shape', [(3, 3, 3, 16, 64), (3, 3, 64, 64), (256, 256)])
def test_conv_kernels_are_initialized_with_variance_one_over_fan_in(shape):
    kernel = np.asarray(conv.fan_in(jax.random.key(0), shape))
    fan_in = np.prod(shape[:-1])
    assert kernel.shape == shape
    assert np.var(kernel) * fan_in == pytest.approx(1, rel=0.05)
    assert abs(kernel.mean()) < 3 / np.sqrt(kernel.size * fan_in)


# The norm.


def group_norm_in_numpy(x, groups, eps):
    grouped = x.astype(np.float64).reshape(*x.shape[:-1], groups, -1)
    dims = (1, 2, 3, 5)
    normed = (grouped - grouped.mean(dims, keepdims=True)) / np.sqrt(grouped.var(dims, keepdims=True) + eps)
    return normed.reshape(x.shape)


def test_group_norm_statistics_are_over_all_frames():
    x, norm = 3 + 2 * normal(2, 3, 4, 5, 6), GroupNorm(6, 3)
    scale, bias = normal(6, seed=1), normal(6, seed=2)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    expected = group_norm_in_numpy(x, 3, 1e-6) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x)).materialize(), expected, atol=1e-5)


def test_group_norm_eps():
    """Of a signal +-d the norm is d / sqrt(d^2 + eps): at d = 0.001, 0.7071 with 1e-6 and 0.3015 with 1e-5."""
    d = 1e-3
    x = np.full((1, 2, 4, 4, 4), d, np.float32)
    x[:, :, ::2] *= -1
    normed = np.asarray(GroupNorm(4, 2)(jnp.asarray(x)).materialize())
    np.testing.assert_allclose(np.abs(normed), d / np.sqrt(d**2 + 1e-6), rtol=1e-4)
    np.testing.assert_array_equal(np.sign(normed), np.sign(x))


def test_group_norm_is_accurate_with_a_large_mean():
    """Centred first: the mean of squares minus the square of the mean would lose everything here."""
    x = 1000 + 0.1 * normal(1, 4, 8, 8, 4)
    np.testing.assert_allclose(
        GroupNorm(4, 2)(jnp.asarray(x)).materialize(), group_norm_in_numpy(x, 2, 1e-6), atol=0.02
    )


# Dtypes and axes.


def test_conv_computes_in_its_dtype_and_group_norm_in_float32():
    x = jnp.asarray(normal(1, 3, 4, 4, 2), jnp.bfloat16)
    y, cache = causal_conv('bfloat16')(as_clip(x), None)
    assert y.dtype == cache.dtype == jnp.bfloat16
    assert PointwiseConv(2, 3, dtype='bfloat16', rngs=nnx.Rngs(0))(x).dtype == jnp.bfloat16
    assert FrameConv(2, dtype='bfloat16', rngs=nnx.Rngs(0))(as_clip(x)).dtype == jnp.bfloat16
    normed = GroupNorm(2, 1)(x).materialize()
    assert normed.dtype == jnp.float32
    np.testing.assert_allclose(normed, group_norm_in_numpy(np.asarray(x, np.float32), 1, 1e-6), atol=1e-5)


def test_conv_parameters_are_float32():
    for layer in (causal_conv('bfloat16'), FrameConv(2, dtype='bfloat16', rngs=nnx.Rngs(0)), GroupNorm(2, 1)):
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype('float32')}
