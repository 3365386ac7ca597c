"""The frozen VAE, compiled chunk by chunk: one executable per network and chunk shape.

Two VAE encodes inlined in one program take minutes and gigabytes to compile. Here each chunk is an executable of its
own, shared by all later chunks of the same shape; chunks are dispatched one after the other.
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

Constrain = Callable[[jax.Array], jax.Array]
CacheSharding = Callable[[tuple[int, ...]], jax.sharding.Sharding]
ChunkFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


def _unconstrained(x_BFHWC: jax.Array) -> jax.Array:
    return x_BFHWC


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """The encoder or the decoder of a VAE, applied to one chunk of frames.

    Attributes:
      graphdef, state: of the network.
      constrain_input, constrain_output: add sharding constraints.
      cache_sharding: shape -> sharding, of an array of the cache; None for one device.
    """

    graphdef: nnx.GraphDef
    state: nnx.State
    constrain_input: Constrain = _unconstrained
    constrain_output: Constrain = _unconstrained
    cache_sharding: CacheSharding | None = None

    def __call__(self, x_BFHWC: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Applies the network to one chunk.

        Args:
          x_BFHWC: the chunk, video or latents.
          cache: of the chunk before; {} for the first.

        Returns:
          (latents' moments or video, the cache for the next chunk).
        """
        return _run_chunk(
            self.graphdef, self.constrain_input, self.constrain_output, self.cache_sharding, self.state, x_BFHWC, cache
        )

    def lower(self, x_BFHWC: jax.ShapeDtypeStruct, cache: Cache) -> jax.stages.Lowered:
        """Lowers the program that a call with these arguments runs."""
        return _run_chunk.lower(
            self.graphdef, self.constrain_input, self.constrain_output, self.cache_sharding, self.state, x_BFHWC, cache
        )

    def abstract_cache(self, x_BFHWC: jax.ShapeDtypeStruct) -> Cache:
        """Returns ShapeDtypeStructs with shardings of the cache that a clip's first chunk leaves for the next."""
        _, cache = jax.eval_shape(self, x_BFHWC, {})
        sharding_of = self.cache_sharding or (lambda shape: x_BFHWC.sharding)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding_of(x.shape)), cache)


class JittedVAE(NamedTuple):
    """A VAE whose encoder and decoder are compiled per chunk shape; `vae_chunking` accepts it in place of a VAE.

    Attributes:
      encoder, decoder: (chunk, cache) -> (result, cache).
      config: of the VAE.
    """

    encoder: ChunkFn
    decoder: ChunkFn
    config: VAEConfig

    def encode_moments(self, video_BFHWC: jax.Array, tiling: Tiling | None = None) -> jax.Array:
        """Encodes a video in the official chunks.

        Args:
          video_BFHWC: in [-1, 1].
          tiling: of the frames; None for whole frames.

        Returns:
          Moments (B, F', H', W', 2C), mean | logvar, unscaled.
        """
        return (
            vae_chunking.encode(self, video_BFHWC) if tiling is None else vae_tiling.encode(self, video_BFHWC, tiling)
        )

    def encode(self, video_BFHWC: jax.Array) -> jax.Array:
        """Encodes video_BFHWC in [-1, 1] in the official chunks.

        Returns:
          The means of its latents (B, F', H', W', C), unscaled.
        """
        return split_moments(self.encode_moments(video_BFHWC))[0]

    def decode(self, z_BFHWC: jax.Array, tiling: Tiling | None = None, *, width_slices: int = 1) -> jax.Array:
        """Decodes latents in the official chunks (`vae_chunking.decode`).

        Args:
          z_BFHWC: unscaled latents.
          tiling: of the frames; None for whole frames.
          width_slices: decodes whole frames in so many slices of their width; 1 with tiles.

        Returns:
          Video (B, F, H, W, 3), nominally in [-1, 1].
        """
        if tiling is None:
            return vae_chunking.decode(self, z_BFHWC, width_slices=width_slices)
        assert width_slices == 1, width_slices  # the settings refuse both together
        return vae_tiling.decode(self, z_BFHWC, tiling)


def jit_vae(vae: VAE, partitioner: Partitioner | None = None) -> JittedVAE:
    """Compiles a VAE chunk by chunk.

    Args:
      vae: the network; ShapeDtypeStructs in place of parameters can be lowered only.
      partitioner: of a mesh over which frames are split by columns, with the parameters replicated; None for one
        device. Encoded latents are split by examples alone.
    """
    if partitioner is None:
        return JittedVAE(Chunk(*nnx.split(vae.encoder)), Chunk(*nnx.split(vae.decoder)), vae.config)

    def constrain(x: jax.Array, names: Names, what: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, partitioner.sharding(names, x.shape, what))

    def constrain_video(x_BFHWC: jax.Array) -> jax.Array:
        stride = vae.config.latent_spec.spatial
        return constrain(x_BFHWC, arrays.video_axes(partitioner, x_BFHWC.shape, stride), 'a video')

    def constrain_latents_by_column(z_BFHWC: jax.Array) -> jax.Array:
        return constrain(z_BFHWC, arrays.video_axes(partitioner, z_BFHWC.shape, 1), 'latents')

    def constrain_latents_by_example(z_BFHWC: jax.Array) -> jax.Array:
        return constrain(z_BFHWC, (axes.ACT_BATCH, None, None, None, None), 'latents')

    def cache_sharding(shape: tuple[int, ...]) -> jax.sharding.Sharding:
        return partitioner.sharding(arrays.video_axes(partitioner, shape, 1), shape, 'a cache')

    encoder, decoder = (_replicate(half, partitioner) for half in (vae.encoder, vae.decoder))
    return JittedVAE(
        Chunk(*encoder, constrain_video, constrain_latents_by_example, cache_sharding),
        Chunk(*decoder, constrain_latents_by_column, constrain_video, cache_sharding),
        vae.config,
    )


def _replicate(module: nnx.Module, partitioner: Partitioner) -> tuple[nnx.GraphDef, nnx.State]:
    graphdef, state = nnx.split(module)
    return graphdef, arrays.put_sharded(state, jax.tree.map(lambda _: partitioner.replicated, state))


# A function of the module, not of each VAE: a VAE that is loaded again does not compile again.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run_chunk(
    graphdef: nnx.GraphDef,
    constrain_input: Constrain,
    constrain_output: Constrain,
    cache_sharding: CacheSharding | None,
    state: nnx.State,
    x_BFHWC: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    y_BFHWC, cache = nnx.merge(graphdef, state)(constrain_input(x_BFHWC), cache)
    if cache_sharding is not None:
        cache = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, cache_sharding(x.shape)), cache)
    return constrain_output(y_BFHWC), cache
