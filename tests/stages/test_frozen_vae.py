"""The compiled VAE is the VAE, and is compiled once for each shape of chunk."""

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.models import vae_chunking
from fv_jax.models.vae import split_moments
from fv_jax.stages import frozen_vae
from tests.sampling import tiny


def test_frozen_vae_encodes_means_in_chunks():
    """25 frames are encoded as 17 and 8 and decoded as 3, 2 and 2."""
    network, traces = tiny.vae(), []

    class Recorded:
        """A half of the network that notes the chunks that it is traced for."""

        def __init__(self, name, module):
            self.name, self.module = name, module

        def __call__(self, x, cache):
            traces.append((self.name, x.shape[1], bool(cache)))
            return self.module(x, cache)

    halves = {name: Recorded(name, getattr(network, name)) for name in ('encoder', 'decoder')}
    vae = frozen_vae.JittedVAE(*(jax.jit(half) for half in halves.values()), network.config)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 25, 8, 16, 3)), jnp.float32)
    z = vae.encode(x)
    assert z.shape == (1, 7, 1, 2, tiny.VAE_CONFIG.latent_channels)
    video = vae.decode(z)
    assert video.shape == x.shape
    assert traces == [('encoder', 17, False), ('encoder', 8, True), ('decoder', 3, False), ('decoder', 2, True)]
    compiled = frozen_vae.jit_vae(network)
    np.testing.assert_allclose(compiled.encode(x), split_moments(vae_chunking.encode(vae, x))[0], atol=1e-5)
    np.testing.assert_allclose(compiled.decode(z), video, atol=1e-4)
    assert len(traces) == 4  # none again, for the same shapes


def test_frozen_vae_decodes_in_two_slices():
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 1, 2, 4)), jnp.float32)
    compiled = frozen_vae.jit_vae(tiny.vae())
    two = vae_chunking.decode(compiled, z, width_slices=2)
    np.testing.assert_array_equal(compiled.decode(z, width_slices=2), two)
    assert not np.allclose(compiled.decode(z), two, atol=1e-3)


def test_cache_of_a_chunk_is_donated_to_the_next():
    x = jnp.zeros((1, 4, 8, 16, 3), jnp.float32)
    vae = frozen_vae.jit_vae(tiny.vae())
    _, first = vae.encoder(x, {})
    _, second = vae.encoder(x, first)
    assert all(array.is_deleted() for array in jax.tree.leaves(first))
    assert not any(array.is_deleted() for array in jax.tree.leaves(second))


def test_encoding_in_microbatches_equals_the_whole_batch():
    vae = frozen_vae.jit_vae(tiny.vae())
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 1, 8, 16, 3)), jnp.float32)
    whole = vae.encode(video)
    for microbatches in (2, 4, 8):  # of 8 there are at most 4
        np.testing.assert_allclose(vae.encode(video, microbatches), whole, atol=1e-5)
    order = np.asarray(vae.encode(video[::-1], 2))[::-1]
    np.testing.assert_allclose(order, whole, atol=1e-5)
