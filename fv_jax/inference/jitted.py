"""Executables: one per network and shape, dispatched one after the other.

Two VAE encodes inlined in one program compile for minutes and need gigabytes; one chunk is an executable of its own
here, shared by all later chunks of its shape.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAE, Cache, split_moments

ChunkFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class JittedVAE(NamedTuple):
    """A VAE's two halves, compiled per chunk shape; `vae_chunking` takes it in place of a VAE."""

    encoder: ChunkFn
    decoder: ChunkFn

    def latents(self, video_BFHWC: jax.Array) -> jax.Array:
        """The means of a video's latents, not scaled, with the official chunks."""
        return split_moments(vae_chunking.encode(self, video_BFHWC))[0]

    def video(self, z_BFHWC: jax.Array) -> jax.Array:
        """Latents, not scaled, to video nominally in [-1, 1], with the official chunks."""
        return vae_chunking.decode(self, z_BFHWC)


def jit_vae(vae: VAE) -> JittedVAE:
    return JittedVAE(_jit_chunk(vae.encoder), _jit_chunk(vae.decoder))


def _jit_chunk(module: nnx.Module) -> ChunkFn:
    graphdef, state = nnx.split(module)

    @jax.jit
    def run(state, x_BFHWC, cache):
        return nnx.merge(graphdef, state)(x_BFHWC, cache)

    return lambda x_BFHWC, cache: run(state, x_BFHWC, cache)
