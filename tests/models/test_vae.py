"""The VAE's parts and sizes; agreement with the official one is in tests/parity."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.config import ConfigError, build, to_dict
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models import vae as vae_lib
from fv_jax.models import vae_chunking
from fv_jax.models.conv import GroupNorm, LazyFrames
from fv_jax.models.vae import OFFICIAL, VAE, SpatialNorm, VAEConfig
from tests.sampling import tiny

CONFIG = tiny.VAE_CONFIG


@pytest.fixture(scope='module')
def network():
    return tiny.vae()


@pytest.fixture(scope='module')
def official_size():
    return nnx.eval_shape(lambda: VAE(OFFICIAL, rngs=nnx.Rngs(0)))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Sizes.


def test_vae_official_number_of_parameters(official_size):
    def count(module):
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))

    assert count(official_size.encoder) == 92_215_456
    assert count(official_size.decoder) == 123_368_451
    assert count(official_size) == 215_583_907


def test_vae_parameters_have_logical_axes(official_size):
    known = {None, axes.CONV_IN, axes.CONV_OUT, axes.NORM}
    for path, param in nnx.to_flat_state(nnx.state(official_size)):
        names = param.get_metadata()['axes']
        assert len(names) == param.ndim and set(names) <= known, path
        if path[-1] == 'kernel':
            assert names[-2:] == (axes.CONV_IN, axes.CONV_OUT), path


def test_vae_sizes_of_latents_and_video(network):
    for frames, latent_frames in ((9, 3), (1, 1)):
        x = jax.ShapeDtypeStruct((2, frames, 16, 24, 3), jnp.float32)
        moments, _ = jax.eval_shape(network.encoder, x, {})
        assert moments.shape == (2, latent_frames, 2, 3, 2 * CONFIG.latent_channels)
        z = jax.ShapeDtypeStruct((*moments.shape[:-1], CONFIG.latent_channels), jnp.float32)
        assert jax.eval_shape(network.decoder, z, {})[0].shape == x.shape


@pytest.mark.parametrize(
    ('multipliers', 'temporal_levels', 'factors'),
    [((1, 1, 1, 1, 1), 2, (4, 16)), ((1, 1, 1, 1), 3, (8, 8)), ((1, 1), 0, (1, 2))],
)
def test_vae_factors_follow_from_the_levels(multipliers, temporal_levels, factors):
    """And a clip comes back in its size, whole or in chunks."""
    config = dataclasses.replace(CONFIG, multipliers=multipliers, temporal_levels=temporal_levels, latent_channels=3)
    spec = config.latent_spec
    assert spec == LatentSpec(3, *factors)
    graphdef, state = nnx.split(abstract_module(functools.partial(VAE, config)))

    def shape(half, x):
        return jax.eval_shape(lambda state, x: half(nnx.merge(graphdef, state), x), state, x).shape

    for frames in (1, 1 + 3 * spec.frame_step):
        video = jax.ShapeDtypeStruct((1, frames, 2 * spec.pixel_multiple, spec.pixel_multiple, 3), jnp.float32)
        latent_size = spec.latent_size(*video.shape[1:4])
        assert shape(vae_chunking.encode, video) == (1, *latent_size, 6)
        z = jax.ShapeDtypeStruct((1, *latent_size, 3), jnp.float32)
        assert shape(vae_chunking.decode, z) == video.shape


def test_vae_in_bfloat16():
    config = dataclasses.replace(CONFIG, dtype='bfloat16')
    x = jax.ShapeDtypeStruct((1, 9, 16, 16, 3), jnp.float32)
    moments, cache = jax.eval_shape(lambda x: VAE(config, rngs=nnx.Rngs(0)).encoder(x, {}), x)
    assert {leaf.dtype for leaf in jax.tree.leaves((moments, cache))} == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize(
    ('values', 'words'),
    [
        ({'multipliers': ()}, r'multipliers=\(\): give one for each level'),
        ({'multipliers': (1, 0)}, r'multipliers=\(1, 0\): .* all at least 1'),
        ({'multipliers': (1, 2)}, 'temporal_levels=2: must be from 0 to 1; .* more multipliers'),
        ({'temporal_levels': -1}, 'temporal_levels=-1: must be from 0 to 3'),
        ({'groups': 24}, 'does not divide the width 128'),
        ({'groups': 0}, 'groups=0: must be at least 1'),
        ({'num_res_blocks': 0}, 'num_res_blocks=0'),
        ({'dtype': 'float16'}, 'not a choice'),
    ],
)
def test_vae_config_refuses_invalid_values(values, words):
    with pytest.raises(ConfigError, match=words):
        build(VAEConfig, values)


def test_vae_config_round_trip_through_json():
    assert build(VAEConfig, to_dict(CONFIG)) == CONFIG


# Time and space.


@pytest.mark.parametrize(('frames', 'of'), [(1, 1), (2, 1), (4, 2), (4, 1), (5, 3), (9, 3), (17, 5), (3, 3)])
def test_vae_nearest_resize_uses_floor_indices(frames, of):
    z = normal(1, of, 2, 3, 1)
    got = vae_lib.resize_space_nearest(vae_lib.resize_time_nearest(jnp.asarray(z), frames), 4, 12)

    def indices(size, source):
        return np.arange(size) * source // size

    apart = frames > 1 and frames % 2
    time = np.concatenate([[0], 1 + indices(frames - 1, of - 1)]) if apart else indices(frames, of)
    expected = z[:, time][:, :, indices(4, 2)][:, :, :, indices(12, 3)]
    np.testing.assert_array_equal(got, expected)


def test_vae_average_pool_time_keeps_an_odd_first_frame():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1, 1)
    np.testing.assert_array_equal(vae_lib.average_pool_time(x).ravel(), [0, 1.5, 3.5])
    np.testing.assert_array_equal(vae_lib.average_pool_time(x[:, 1:]).ravel(), [1.5, 3.5])


def test_vae_upsample_keeps_an_odd_first_frame_single():
    x = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
    up = vae_lib.upsample_nearest(x, time=True).materialize()
    assert up.shape == (1, 5, 2, 2, 1)
    np.testing.assert_array_equal(up[0, :, 0, 1, 0], [0, 1, 1, 2, 2])
    np.testing.assert_array_equal(
        vae_lib.upsample_nearest(x[:, 1:], time=True).materialize()[0, :, 1, 0, 0], [1, 1, 2, 2]
    )
    assert vae_lib.upsample_nearest(x[:, :1], time=True).materialize().shape == (1, 1, 2, 2, 1)
    assert vae_lib.upsample_nearest(x, time=False).materialize().shape == (1, 3, 2, 2, 1)


# Norms of the decoder.


def test_vae_spatial_norm_is_a_group_norm_modulated_by_the_latents():
    """The official order, resize then map, is the definition; ours maps first."""
    norm = SpatialNorm(4, dataclasses.replace(CONFIG, latent_channels=3, groups=2), rngs=nnx.Rngs(0))
    for i, part in enumerate((norm.conv_y, norm.conv_b)):
        part.kernel[...] = jnp.asarray(normal(3, 4, seed=i))
        part.bias[...] = jnp.asarray(normal(4, seed=9 + i))
    x, z = jnp.asarray(normal(1, 5, 4, 6, 4)), jnp.asarray(normal(1, 3, 2, 3, 3, seed=1))
    large = vae_lib.resize_space_nearest(vae_lib.resize_time_nearest(z, 5), 4, 6)
    expected = norm.norm_layer(x).materialize() * norm.conv_y(large) + norm.conv_b(large)
    np.testing.assert_allclose(norm(x, z).materialize(), expected, atol=1e-5)


def test_vae_initialized_spatial_norm_is_a_group_norm():
    norm = SpatialNorm(8, CONFIG, rngs=nnx.Rngs(0))
    x, z = jnp.asarray(normal(1, 1, 4, 6, 8)), jnp.asarray(normal(1, 1, 2, 3, CONFIG.latent_channels))
    np.testing.assert_allclose(norm(x, z).materialize(), norm.norm_layer(x).materialize(), atol=1e-6)


# Causality: with norms whose statistics are fixed, the norms being what mixes frames.


class _Affine(nnx.Module):
    def __init__(self, scale, bias):
        self.scale, self.bias = nnx.Param(scale), nnx.Param(bias)

    def __call__(self, x):
        return LazyFrames.from_array(
            x * self.scale[...].reshape(1, 1, 1, 1, -1) + self.bias[...].reshape(1, 1, 1, 1, -1)
        )


def remove_statistics(module):
    for _, sub in list(nnx.iter_modules(module)):
        for name, value in list(vars(sub).items()):
            if isinstance(value, vae_lib.GroupNorm):
                setattr(sub, name, _Affine(value.scale[...], value.bias[...]))
    return module


def test_vae_is_causal():
    network = remove_statistics(tiny.vae())
    encode, decode = jax.jit(lambda x: network.encoder(x, {})[0]), jax.jit(lambda z: network.decoder(z, {})[0])
    x = normal(1, 9, 16, 16, 3)
    changed = x.copy()
    changed[:, 5:] += 1  # frames 5 ... 8 are latent frame 2
    moved = np.abs(encode(x) - encode(changed)).max((0, 2, 3, 4))
    assert moved[:2].max() == 0 and moved[2] > 1e-4
    z = normal(1, 3, 2, 2, CONFIG.latent_channels)
    changed = z.copy()
    changed[:, 2:] += 1
    moved = np.abs(decode(z) - decode(changed)).max((0, 2, 3, 4))
    assert moved[:5].max() == 0 and moved[5:].min() > 1e-4


def test_vae_chunks_equal_the_whole_clip_except_for_norm_statistics():
    """So the caches are exact, in both directions."""
    network = remove_statistics(tiny.vae())
    for run, x, sizes in (
        (network.encoder, normal(1, 9, 8, 16, 3), (5, 4)),
        (network.decoder, normal(1, 5, 1, 2, CONFIG.latent_channels), (3, 2)),
    ):
        run = jax.jit(run)
        first, cache = run(x[:, : sizes[0]], {})
        second, _ = run(x[:, sizes[0] :], cache)
        np.testing.assert_allclose(np.concatenate([first, second], axis=1), run(x, {})[0], atol=2e-5)


# Moments.


def test_vae_sample_latents_clips_the_deviation():
    mean, logvar = normal(1, 2, 2, 2, 3), np.float32([-100, 0, 100]) + np.zeros((1, 2, 2, 2, 3), np.float32)
    moments = jnp.asarray(np.concatenate([mean, logvar], axis=-1))
    got_mean, std = vae_lib.split_moments(moments)
    np.testing.assert_array_equal(got_mean, mean)
    np.testing.assert_allclose(std[0, 0, 0, 0], np.exp([-15, 0, 10]), rtol=1e-5)
    noise = normal(1, 2, 2, 2, 3, seed=1)
    np.testing.assert_allclose(vae_lib.sample_latents(moments, jnp.asarray(noise)), mean + std * noise, rtol=1e-5)
    assert vae_lib.split_moments(moments.astype(jnp.bfloat16))[1].dtype == jnp.float32


# In bfloat16.


@pytest.mark.parametrize('half', ['encoder', 'decoder'])
def test_vae_set_compute_dtype_keeps_parameters_and_norms(network, half):
    rounded = vae_lib.set_compute_dtype(tiny.vae(), 'bfloat16')
    assert rounded.config == dataclasses.replace(network.config, dtype='bfloat16')
    jax.tree.map(np.testing.assert_array_equal, nnx.state(rounded), nnx.state(network))
    x = normal(1, 5, 16, 24, 3) if half == 'encoder' else normal(1, 3, 2, 3, CONFIG.latent_channels)
    (exact, cache), (y, cache_y) = (jax.jit(getattr(vae, half))(x, {}) for vae in (network, rounded))
    # What a convolution keeps is what it was given.
    assert {leaf.dtype for leaf in jax.tree.leaves((y, cache_y))} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves((exact, cache))} == {jnp.dtype('float32')}
    error = np.std(np.float32(y) - exact) / np.std(exact)
    assert 1e-4 < error < 0.02, error
    norms = [module for _, module in nnx.iter_modules(rounded) if isinstance(module, GroupNorm)]
    given = jnp.asarray(normal(1, 2, 4, 4, norms[0].scale.shape[0]), jnp.bfloat16)
    assert norms[0](given).materialize().dtype == jnp.float32


# From images to clips.


def test_vae_collapse_temporal_kernels_keeps_images_and_separates_frames():
    vae = tiny.vae()
    clip = normal(1, 9, 16, 16, 3)
    image_before = vae.encoder(clip[:, :1], {})[0]
    _, history_before = vae.encoder.conv_in(LazyFrames.from_array(clip), None)
    vae_lib.collapse_temporal_kernels(vae)
    np.testing.assert_allclose(vae.encoder(clip[:, :1], {})[0], image_before, atol=1e-5)
    y, history = vae.encoder.conv_in(LazyFrames.from_array(clip), None)
    np.testing.assert_array_equal(history, history_before)
    changed = clip.copy()
    changed[:, 4] += 1
    difference = np.abs(vae.encoder.conv_in(LazyFrames.from_array(changed), None)[0] - y).max((0, 2, 3, 4))
    assert difference[4] > 0.01 and not np.delete(difference, 4).any()


def test_vae_norms_with_offsets_are_almost_independent_of_the_image():
    # 64 channels, so that the tiny network's groups hold several.
    config = dataclasses.replace(CONFIG, base_channels=16, groups=2)
    encoder = VAE(config, rngs=nnx.Rngs(0)).encoder
    faint, strong = (amplitude * normal(1, 1, 32, 32, 3) for amplitude in (0.1, 0.3))
    norm = encoder.down[0][0].norm1

    def gain():
        ys = [encoder.conv_in(LazyFrames.from_array(x), None)[0] for x in (faint, strong)]
        normed = [norm(y).materialize() for y in ys]
        return float(normed[1].std((1, 2, 3)).mean() / normed[0].std((1, 2, 3)).mean())

    assert gain() > 2.5  # three times the image, almost three times the features
    encoder.conv_in.bias[...] = 0.0
    assert gain() < 1.1
