"""How frames are cut into tiles and joined, with networks that say what they are given; and that no seam is seen."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax import weights
from fv_jax.core.config import ConfigError
from fv_jax.models import vae_chunking, vae_tiling
from fv_jax.models.vae import split_moments
from fv_jax.models.vae_tiling import Tiling
from fv_jax.stages.frozen_vae import jit_vae
from tests.models.recorder import Recorder
from tests.sampling import tiny

SEAM = 1.2  # a tile's edge may be so many times as steep as the steepest elsewhere


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize('size', [(64, 64), (72, 80), (200, 136), (8, 8), (104, 64)])
def test_tiling_covers_the_frame_with_overlap(size):
    tiling = Tiling((64, 48), 24, 8)
    for axis, (pixels, tile) in enumerate(zip(size, tiling.clamp_tile(*size), strict=True)):
        tile_ranges = tiling.tile_ranges(axis, pixels // 8, 8)
        total = np.zeros(pixels)
        for span in tile_ranges:
            assert 8 * span.length == tile and span.weights.shape == (tile,) and span.weights.min() > 0
            total[8 * span.start : 8 * span.start + tile] += span.weights
        np.testing.assert_allclose(total, 1, atol=1e-6)
        assert tile_ranges[0].start == 0 and 8 * tile_ranges[-1].start + tile == pixels
        shared = [8 * (a.start + a.length - b.start) for a, b in itertools.pairwise(tile_ranges)]
        assert all(pixels_shared >= 24 for pixels_shared in shared)
        # One fewer would not do.
        assert len(tile_ranges) == 1 or (len(tile_ranges) - 1) * tile - (len(tile_ranges) - 2) * 24 < pixels
    assert tiling.count(*size) == len(tiling.tile_ranges(0, size[0] // 8, 1)) * len(
        tiling.tile_ranges(1, size[1] // 8, 1)
    )


def test_tiling_weights_are_linear():
    first, second = Tiling((64, 64), 32, 8).tile_ranges(1, 12, 8)
    assert (first.start, second.start) == (0, 4)
    np.testing.assert_array_equal(first.weights[:32], 1)
    np.testing.assert_allclose(first.weights[32:], (31.5 - np.arange(32)) / 32, rtol=1e-6)
    np.testing.assert_allclose(second.weights, first.weights[::-1], rtol=1e-6)


def test_tiling_encodes_each_tile_separately():
    network, x = Recorder(), normal(1, 25, 16, 40, 3)
    z = vae_tiling.encode(network, x, Tiling((16, 24), 8, 8))
    assert network.sizes == [(17, 16, 24), (8, 16, 24)] * 2
    assert network.caches == [{}, {'chunks': 1}] * 2
    np.testing.assert_allclose(z, x[:, ::4, ::8, ::8], atol=1e-6)
    network = Recorder()
    video = vae_tiling.decode(network, z, Tiling((16, 24), 8, 8))
    assert network.sizes == [(3, 2, 3), (2, 2, 3), (2, 2, 3)] * 2
    assert network.caches == [{}, {'chunks': 1}, {'chunks': 2}] * 2
    np.testing.assert_allclose(video, vae_chunking.decode(network, z), atol=1e-6)


def test_tiling_with_one_tile_is_the_whole_frame():
    vae, x = jit_vae(tiny.vae()), normal(2, 9, 16, 24, 3)
    moments = vae.encode_moments(x)
    np.testing.assert_array_equal(vae.encode_moments(x, Tiling((16, 24), 8, 8)), moments)
    z = split_moments(moments)[0]
    np.testing.assert_array_equal(vae.decode(z, Tiling((64, 64), 8, 8)), vae.decode(z))


def test_tiling_has_no_seam_in_a_gradient():
    vae, (height, width) = jit_vae(weights.load_vae('embedded')), (64, 192)
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    image = jnp.asarray(np.stack([1.2 * x - 0.6, 1.2 * y - 0.6, 0.5 - (x + y) / 4], axis=-1), jnp.float32)

    def slopes(tiling):
        """Of each column to the next, without the frame's own rim."""
        z = split_moments(vae.encode_moments(image[None, None], tiling))[0]
        columns = np.asarray(vae.decode(z, tiling))[0, 0].mean(0)
        return np.abs(np.diff(columns, axis=0)).mean(-1)[16:-16]

    steepest = slopes(None).max()
    # The small VAE was trained on 192x192: tiles of 64x64 are too small for its group norms, and show (1.37).
    assert slopes(Tiling((64, 96), 32, 8)).max() < SEAM * steepest
    assert slopes(Tiling((64, 96), 0, 8)).max() > 2 * steepest  # without a crossfade there is one


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: Tiling((100, 96), 8, 8), 'tile_size: height=100: must be a multiple of 8; use 96 or 104'),
        (lambda: Tiling((96, 0), 8, 8), 'tile_size: width=0: must be a multiple of 8; use 8'),
        (lambda: Tiling((96, 96), 12, 8), 'tile_overlap=12: must be a multiple of 8; use 8 or 16'),
        (lambda: Tiling((96, 96), -8, 8), 'tile_overlap=-8'),
        (lambda: Tiling((64, 96), 64, 8), 'tile_overlap=64: must be less than both sides of a tile, 64x96; use 56'),
    ],
)
def test_tiling_refuses_invalid_values(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_tiling_refuses_sizes_that_the_vae_cannot_take():
    network = Recorder()
    with pytest.raises(ValueError, match='size 12x16: both sides must be multiples of 8'):
        vae_tiling.encode(network, normal(1, 1, 12, 16, 3), Tiling((16, 16), 8, 8))
    assert not network.sizes
