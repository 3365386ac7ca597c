"""How clips are cut into chunks, with networks that say what they are given."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models import vae_chunking
from fv_jax.models.vae import OFFICIAL
from fv_jax.models.vae_chunking import DECODE_CHUNKS, chunk_sizes, decode, encode, encode_chunks
from tests.models.recorder import Recorder

SPEC = OFFICIAL.latent_spec
ENCODE_CHUNKS = encode_chunks(SPEC)


@pytest.fixture
def network():
    return Recorder()


def video(frames, height=8, width=8):
    return jnp.broadcast_to(
        jnp.arange(frames, dtype=jnp.float32)[None, :, None, None, None], (1, frames, height, width, 3)
    )


@pytest.mark.parametrize(
    ('length', 'pattern', 'sizes'),
    [
        (49, ENCODE_CHUNKS, (17, 16, 16)),
        (17, ENCODE_CHUNKS, (17,)),
        (9, ENCODE_CHUNKS, (9,)),
        (25, ENCODE_CHUNKS, (17, 8)),
        (1, ENCODE_CHUNKS, (1,)),
        (13, DECODE_CHUNKS, (3, 2, 2, 2, 2, 2)),
        (1, DECODE_CHUNKS, (1,)),
        (3, DECODE_CHUNKS, (3,)),
    ],
)
def test_vae_chunk_sizes_are_official(length, pattern, sizes):
    assert chunk_sizes(length, pattern) == sizes


@pytest.mark.parametrize('frames', [1, 9, 17, 25, 49])
def test_vae_chunks_encode_and_decode(network, frames):
    z = encode(network, video(frames))
    assert network.chunks == list(chunk_sizes(frames, ENCODE_CHUNKS))
    assert network.caches == [{'chunks': i} if i else {} for i in range(len(network.chunks))]
    assert z.shape[1] == 1 + (frames - 1) // 4
    np.testing.assert_array_equal(z[0, :, 0, 0, 0], np.arange(0, frames, 4))
    network.sizes.clear()
    back = decode(network, z)
    assert network.chunks == list(chunk_sizes(z.shape[1], DECODE_CHUNKS))
    assert back.shape == (1, frames, 8, 8, 3)
    np.testing.assert_array_equal(back[0, :, 0, 0, 0], [-(-f // 4) * 4 for f in range(frames)])


@pytest.mark.parametrize('chunks', [(49,), (13, 12, 12, 12), (1, 48), (5, 4, 40)])
def test_vae_chunks_are_configurable(network, chunks):
    z = encode(network, video(49), chunks)
    assert network.chunks == list(chunks)
    np.testing.assert_array_equal(z[0, :, 0, 0, 0], np.arange(0, 49, 4))


def test_vae_pads_clips_with_the_last_frame():
    for frames, padded in ((1, 1), (2, 9), (8, 9), (9, 9), (10, 17), (23, 25)):
        x = vae_chunking.pad_to_valid(video(frames), SPEC)
        assert x.shape[1] == padded and SPEC.is_valid_length(padded)
        np.testing.assert_array_equal(x[0, :, 0, 0, 0], np.minimum(np.arange(padded), frames - 1))


def test_vae_chunks_depend_on_the_temporal_factor():
    assert ENCODE_CHUNKS == (17, 16)
    assert encode_chunks(LatentSpec(16, 8, 8)) == (33, 32) and encode_chunks(LatentSpec(48, 4, 16)) == (17, 16)


@pytest.mark.parametrize(
    ('shape', 'chunks', 'words'),
    [
        ((1, 8, 8, 8, 3), None, '8 frames: the VAE takes 1 or 8k [+] 1 frames'),
        ((1, 5, 8, 8, 3), None, '5 frames'),
        ((1, 9, 12, 8, 3), None, 'size 12x8.*multiples of 8'),
        ((1, 9, 8, 20, 3), None, 'size 8x20'),
        ((1, 17, 8, 8, 3), (9, 4), 'add up to 13, the clip has 17'),
        ((1, 17, 8, 8, 3), (17, 0), 'chunks'),
        ((1, 17, 8, 8, 3), (21, -4), 'chunks'),
        ((1, 17, 8, 8, 3), (15, 2), 'multiples of 4'),
        ((1, 17, 8, 8, 3), (), 'add up to 0'),
    ],
)
def test_vae_encode_refuses_invalid_sizes(network, shape, chunks, words):
    with pytest.raises(ValueError, match=words):
        encode(network, jnp.zeros(shape), chunks)
    assert network.chunks == []


@pytest.mark.parametrize(
    ('frames', 'chunks', 'slices', 'words'),
    [
        (4, None, 1, r'\(3, 1\): all but the first must be multiples of 2'),
        (5, (3, 1, 1), 1, 'multiples of 2'),
        (5, (3, 4), 1, 'add up to 7, the clip has 5'),
        (3, None, 0, 'width_slices=0'),
        (3, None, 5, 'width_slices=5: must be from 1 to 4'),
    ],
)
def test_vae_decode_refuses_invalid_chunks(network, frames, chunks, slices, words):
    with pytest.raises(ValueError, match=words):
        decode(network, jnp.zeros((1, frames, 2, 4, 3)), chunks, width_slices=slices)
    assert network.chunks == []


@pytest.mark.parametrize(
    ('width', 'slices', 'widths'),
    [(32, 2, [32, 32]), (34, 2, [33, 33]), (240, 2, [136, 136]), (31, 2, [15, 16]), (48, 3, [32, 48, 32])],
)
def test_vae_width_slices_overlap(network, width, slices, widths):
    z = jnp.broadcast_to(jnp.arange(width, dtype=jnp.float32)[None, None, None, :, None], (1, 3, 1, width, 3))
    got = decode(network, z, width_slices=slices)
    assert network.widths == widths
    np.testing.assert_array_equal(got[0, 0, 0, :, 0], np.arange(width).repeat(8))


def test_vae_width_slices_start_without_a_cache(network):
    decode(network, jnp.zeros((1, 5, 1, 4, 3)), width_slices=2)
    assert network.caches == [{}, {'chunks': 1}] * 2


def test_vae_chunking_accepts_any_encoder():
    seen = SimpleNamespace(encoder=lambda x, cache: (x[:, ::4], cache), config=OFFICIAL)
    assert encode(seen, video(9)).shape == (1, 3, 8, 8, 3)
