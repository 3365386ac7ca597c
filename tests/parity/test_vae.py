"""The VAE against the official one: video, image, long clips in chunks, sampled latents, two slices (model guide 4)."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fv_jax.models import vae_chunking
from fv_jax.models.vae import sample_latents, split_moments
from fv_jax.stages.frozen_vae import jit_vae
from fv_jax.weights import load_official
from tests.sampling import tiny

TOLERANCE = 1e-4  # maximum absolute, of latents, moments and video in [-1, 1]
SCALE = 1.15258426  # of the latents that stage 2 works on (model guide 4.1)


def close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=0, atol=tolerance)


def bfhwc(x_BCFHW):
    return jnp.asarray(x_BCFHW.transpose(0, 2, 3, 4, 1))


@pytest.fixture(scope='module', autouse=True)
def fast_compiling():
    with tiny.fast_compiling():
        yield


@pytest.fixture(scope='module')
def network(official):
    return load_official(official / '3d-vae.pt')


@pytest.fixture(scope='module')
def vae(network):
    """One executable per chunk shape."""
    return jit_vae(network)


@pytest.fixture(scope='module')
def io(official):
    with np.load(official / 'vae_io.npz') as file:
        return dict(file)


@pytest.fixture(scope='module')
def long_moments(vae, io):
    return vae_chunking.encode(vae, bfhwc(io['long_x']))


def test_vae_parity_of_inferred_sizes(official, network):
    expected = json.loads((official / 'vae_config.json').read_text())
    config = network.config
    assert config.widths == tuple(expected['ch'] * m for m in expected['ch_mult'])
    assert config.num_res_blocks == expected['num_res_blocks']
    assert config.latent_channels == expected['z_channels']
    assert config.groups == expected['groups']


@pytest.mark.parametrize('kind', ['vid', 'img'])
def test_vae_parity_of_one_chunk(vae, io, kind):
    x = bfhwc(io[f'{kind}_x'])
    moments = vae_chunking.encode(vae, x, (x.shape[1],))
    close(moments, bfhwc(io[f'{kind}_moments']))
    mean, _ = split_moments(moments)
    close(mean, bfhwc(io[f'{kind}_mode']))
    close(sample_latents(moments, bfhwc(io[f'{kind}_noise'])), bfhwc(io[f'{kind}_encode_returned']))
    mode = bfhwc(io[f'{kind}_mode'])
    close(vae_chunking.decode(vae, mode, (mode.shape[1],)), bfhwc(io[f'{kind}_decode_of_mode']))


def test_vae_parity_of_encoding_in_official_chunks(long_moments, io):
    """17, 16 and 16 frames are the default."""
    close(long_moments, bfhwc(io['long_moments_chunked_17_16_16']))


def test_vae_parity_of_encoding_in_other_chunks(vae, io):
    x = bfhwc(io['long_x'])
    close(vae_chunking.encode(vae, x, (13, 12, 12, 12)), bfhwc(io['long_moments_chunked_13_12_12_12']))


def test_vae_parity_of_encoding_in_one_chunk(vae, io):
    x = bfhwc(io['long_x'])
    close(vae_chunking.encode(vae, x, (x.shape[1],)), bfhwc(io['long_moments_unchunked']))


def test_vae_parity_of_sampled_latents(long_moments, io):
    """The official noise is drawn chunk by chunk; the fixture holds it one after the other."""
    sampled = SCALE * sample_latents(long_moments, bfhwc(io['long_noise']))
    close(sampled, bfhwc(io['long_save_memory_encode_returned']))


def test_vae_parity_of_decoding_in_official_chunks(vae, io):
    """3 latent frames, then 2 and 2, are the default."""
    close(vae_chunking.decode(vae, bfhwc(io['long_latent'])), bfhwc(io['long_decode_chunked']))


def test_vae_parity_of_decoding_in_one_chunk(vae, io):
    z = bfhwc(io['long_latent'])
    close(vae_chunking.decode(vae, z, (z.shape[1],)), bfhwc(io['long_decode_unchunked']))


def test_vae_parity_of_an_even_number_of_latent_frames(vae, io):
    """What the official decoder does with two frames when its own wrapper does not split them."""
    z = bfhwc(io['q_latent4'])[:, :2]
    close(vae_chunking.decode(vae, z, (2,)), bfhwc(io['q_decode_T2_plain']))


def test_vae_parity_of_width_slices(vae, io):
    """0 ... 255, clamped and not rounded, laid out as the official function returns it."""
    video = vae_chunking.decode(vae, bfhwc(io['mem_latent']), width_slices=2)
    pixels = np.clip((np.asarray(video[0]) + 1) / 2, 0, 1) * 255
    close(pixels, io['mem_save_mem_decode'], TOLERANCE * 127.5)
