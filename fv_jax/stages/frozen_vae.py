"""Executables: one per network and shape, dispatched one after the other.

Two VAE encodes inlined in one program compile for minutes and need gigabytes; one chunk is an executable of its own
here, shared by all later chunks of its shape.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from fv_jax.core import axes
from fv_jax.models import vae_chunking, vae_tiling
from fv_jax.models.vae import VAE, Cache, VAEConfig, split_moments
from fv_jax.models.vae_tiling import Tiling
from fv_jax.parallel import arrays
from fv_jax.parallel.rules import Names, Partitioner

Place = Callable[[jax.Array], jax.Array]
Where = Callable[[tuple[int, ...]], jax.sharding.Sharding]
ChunkFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


def _unplaced(x_BFHWC: jax.Array) -> jax.Array:
    return x_BFHWC


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """One half of a VAE. given, result: place what goes in and what comes out. cached: where an array of a cache lives,
    by its shape.
    """

    graphdef: nnx.GraphDef
    state: nnx.State
    given: Place = _unplaced
    result: Place = _unplaced
    cached: Where | None = None

    def __call__(self, x_BFHWC: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """A chunk and the cache of the one before, {} for none -> its result and the cache for the next."""
        return _chunk(self.graphdef, self.given, self.result, self.cached, self.state, x_BFHWC, cache)

    def lower(self, x_BFHWC: jax.ShapeDtypeStruct, cache: Cache) -> jax.stages.Lowered:
        """The executable that a call with such arguments runs."""
        return _chunk.lower(self.graphdef, self.given, self.result, self.cached, self.state, x_BFHWC, cache)

    def cache_after(self, x_BFHWC: jax.ShapeDtypeStruct) -> Cache:
        """The shapes that a clip's first chunk leaves for the next, where they live."""
        _, cache = jax.eval_shape(self, x_BFHWC, {})
        where = self.cached or (lambda shape: x_BFHWC.sharding)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x.shape)), cache)


class JittedVAE(NamedTuple):
    """A VAE's two halves, compiled per chunk shape; `vae_chunking` takes it in place of a VAE. config: its sizes."""

    encoder: ChunkFn
    decoder: ChunkFn
    config: VAEConfig

    def moments(self, video_BFHWC: jax.Array, tiling: Tiling | None = None) -> jax.Array:
        """A video's moments (mean | logvar), not scaled, with the official chunks. tiling: None for whole frames."""
        return (
            vae_chunking.encode(self, video_BFHWC) if tiling is None else vae_tiling.encode(self, video_BFHWC, tiling)
        )

    def latents(self, video_BFHWC: jax.Array) -> jax.Array:
        """The means of a video's latents, not scaled, with the official chunks."""
        return split_moments(self.moments(video_BFHWC))[0]

    def video(self, z_BFHWC: jax.Array, tiling: Tiling | None = None, *, width_slices: int = 1) -> jax.Array:
        """Latents, not scaled, to video nominally in [-1, 1], with the official chunks; see `vae_chunking.decode`.
        tiling: None for whole frames, or slices of them.
        """
        if tiling is None:
            return vae_chunking.decode(self, z_BFHWC, width_slices=width_slices)
        assert width_slices == 1, width_slices  # the settings refuse both
        return vae_tiling.decode(self, z_BFHWC, tiling)


def jit_vae(vae: VAE, partitioner: Partitioner | None = None) -> JittedVAE:
    """vae: a network, or the shapes of one, to be lowered.

    partitioner: a mesh over which pictures are spread by their columns, the network being whole on every chip; None for
    one device. Latents come out spread by rows of the batch alone.
    """
    if partitioner is None:
        return JittedVAE(Chunk(*nnx.split(vae.encoder)), Chunk(*nnx.split(vae.decoder)), vae.config)

    def place(x: jax.Array, names: Names, what: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, partitioner.sharding(names, x.shape, what))

    def pixels(x_BFHWC: jax.Array) -> jax.Array:
        stride = vae.config.latent_spec.spatial
        return place(x_BFHWC, arrays.video_axes(partitioner, x_BFHWC.shape, stride), 'a video')

    def columns(z_BFHWC: jax.Array) -> jax.Array:
        return place(z_BFHWC, arrays.video_axes(partitioner, z_BFHWC.shape, 1), 'latents')

    def rows(z_BFHWC: jax.Array) -> jax.Array:
        return place(z_BFHWC, (axes.ACT_BATCH, None, None, None, None), 'latents')

    def cached(shape: tuple[int, ...]) -> jax.sharding.Sharding:
        return partitioner.sharding(arrays.video_axes(partitioner, shape, 1), shape, 'a cache')

    encoder, decoder = (_replicated(half, partitioner) for half in (vae.encoder, vae.decoder))
    halves = Chunk(*encoder, pixels, rows, cached), Chunk(*decoder, columns, pixels, cached)
    return JittedVAE(*halves, vae.config)


def _replicated(module: nnx.Module, partitioner: Partitioner) -> tuple[nnx.GraphDef, nnx.State]:
    graphdef, state = nnx.split(module)
    return graphdef, arrays.put_sharded(state, jax.tree.map(lambda _: partitioner.replicated, state))


# Not each VAE's own: one that is read again compiles nothing.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _chunk(
    graphdef: nnx.GraphDef,
    given: Place,
    result: Place,
    cached: Where | None,
    state: nnx.State,
    x_BFHWC: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    y_BFHWC, cache = nnx.merge(graphdef, state)(given(x_BFHWC), cache)
    if cached is not None:
        cache = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, cached(x.shape)), cache)
    return result(y_BFHWC), cache
