"""Executables: one per network and shape, dispatched one after the other.

Two VAE encodes inlined in one program compile for minutes and need gigabytes; one chunk is an executable of its own
here, shared by all later chunks of its shape.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from fv_jax.core import axes
from fv_jax.models import vae_chunking
from fv_jax.models.vae import SPATIAL_FACTOR, VAE, Cache, split_moments
from fv_jax.parallel import arrays
from fv_jax.parallel.rules import Names, Placement

Place = Callable[[jax.Array], jax.Array]
ChunkFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


class JittedVAE(NamedTuple):
    """A VAE's two halves, compiled per chunk shape; `vae_chunking` takes it in place of a VAE."""

    encoder: ChunkFn
    decoder: ChunkFn

    def moments(self, video_BFHWC: jax.Array) -> jax.Array:
        """A video's moments (mean | logvar), not scaled, with the official chunks."""
        return vae_chunking.encode(self, video_BFHWC)

    def latents(self, video_BFHWC: jax.Array) -> jax.Array:
        """The means of a video's latents, not scaled, with the official chunks."""
        return split_moments(self.moments(video_BFHWC))[0]

    def video(self, z_BFHWC: jax.Array, *, width_slices: int = 1) -> jax.Array:
        """Latents, not scaled, to video nominally in [-1, 1], with the official chunks; see `vae_chunking.decode`."""
        return vae_chunking.decode(self, z_BFHWC, width_slices=width_slices)


def jit_vae(vae: VAE, placement: Placement | None = None) -> JittedVAE:
    """placement: a mesh over which pictures are spread by their columns, the network being whole on every chip; None
    for one device. Latents come out spread by rows of the batch alone.
    """
    if placement is None:
        return JittedVAE(_jit_chunk(vae.encoder), _jit_chunk(vae.decoder))

    def place(x: jax.Array, names: Names, what: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, placement.sharding(names, x.shape, what))

    def pixels(x_BFHWC: jax.Array) -> jax.Array:
        return place(x_BFHWC, arrays.picture_axes(placement, x_BFHWC.shape, SPATIAL_FACTOR), 'a video')

    def columns(z_BFHWC: jax.Array) -> jax.Array:
        return place(z_BFHWC, arrays.picture_axes(placement, z_BFHWC.shape, 1), 'latents')

    def rows(z_BFHWC: jax.Array) -> jax.Array:
        return place(z_BFHWC, (axes.ACT_BATCH, None, None, None, None), 'latents')

    encoder, decoder = (_replicated(half, placement) for half in (vae.encoder, vae.decoder))
    return JittedVAE(_jit_chunk(encoder, pixels, rows), _jit_chunk(decoder, columns, pixels))


def _replicated(module: nnx.Module, placement: Placement) -> nnx.Module:
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, arrays.place(state, jax.tree.map(lambda _: placement.replicated, state)))


def _unplaced(x_BFHWC: jax.Array) -> jax.Array:
    return x_BFHWC


def _jit_chunk(module: nnx.Module, given: Place = _unplaced, result: Place = _unplaced) -> ChunkFn:
    """given, result: place what goes in and what comes out."""
    graphdef, state = nnx.split(module)
    return lambda x_BFHWC, cache: _chunk(graphdef, given, result, state, x_BFHWC, cache)


# Not each VAE's own: one that is read again compiles nothing.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _chunk(
    graphdef: nnx.GraphDef, given: Place, result: Place, state: nnx.State, x_BFHWC: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    y_BFHWC, cache = nnx.merge(graphdef, state)(given(x_BFHWC), cache)
    return result(y_BFHWC), cache
