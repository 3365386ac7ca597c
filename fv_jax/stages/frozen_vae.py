"""The frozen VAE, compiled chunk by chunk: one executable per network and chunk shape.

Two VAE encodes inlined in one program take minutes and gigabytes to compile. Here each chunk is an executable of its
own, shared by all later chunks of the same shape; chunks are dispatched one after the other.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fv_jax.models import vae_chunking, vae_tiling
from fv_jax.models.vae import VAE, Cache, VAEConfig, set_column_shards, split_moments
from fv_jax.models.vae_tiling import Tiling
from fv_jax.parallel import arrays
from fv_jax.parallel.rules import Partitioner

ChunkFn = Callable[[jax.Array, Cache], tuple[jax.Array, Cache]]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _take_examples(x: jax.Array, first: int, step: int, sharding: jax.sharding.NamedSharding | None) -> jax.Array:
    """Takes every `step`-th example of a batch, from `first` on."""
    part = x.reshape(-1, step, *x.shape[1:])[:, first]
    return part if sharding is None else jax.lax.with_sharding_constraint(part, sharding)


@dataclasses.dataclass(frozen=True)
class ChunkLayout:
    """How the arrays of an encoder or a decoder are sharded: by examples, and frames by their columns.

    Attributes:
      partitioner: of the mesh.
      stride: columns of the input to a column of latents, which is not divided.
      splits_output: whether the output is split by columns as well.
    """

    partitioner: Partitioner
    stride: int
    splits_output: bool

    def latent_columns(self, x_BFHWC: jax.Array) -> int:
        """Returns the columns of latents that an input belongs to."""
        return x_BFHWC.shape[3] // self.stride

    def sharding(self, shape_BFHWC: tuple[int, ...], latent_columns: int) -> jax.sharding.Sharding:
        """Returns the sharding of frames that belong to so many columns of latents; 1 does not split them."""
        return _frames_sharding(self.partitioner, shape_BFHWC, latent_columns)


def _frames_sharding(
    partitioner: Partitioner, shape_BFHWC: tuple[int, ...], latent_columns: int
) -> jax.sharding.NamedSharding:
    return partitioner.fold_batch(shape_BFHWC[0]).frames_sharding(shape_BFHWC, latent_columns, 'frames')


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """The encoder or the decoder of a VAE, applied to one chunk of frames.

    Attributes:
      graphdef, state: of the network.
      layout: its sharding; None for one device.
    """

    graphdef: nnx.GraphDef
    state: nnx.State
    layout: ChunkLayout | None = None

    def __call__(self, x_BFHWC: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Applies the network to one chunk.

        Args:
          x_BFHWC: the chunk, video or latents.
          cache: of the chunk before, whose memory is reused; {} for the first.

        Returns:
          (latents' moments or video, the cache for the next chunk).
        """
        if self.layout is not None:
            # The shardings of results are expressed by the mesh of the first argument.
            x_BFHWC = jax.device_put(x_BFHWC, self.layout.sharding(x_BFHWC.shape, self.layout.latent_columns(x_BFHWC)))
        return _run_chunk(x_BFHWC, cache, self.state, self.graphdef, self.layout)

    def lower(self, x_BFHWC: jax.ShapeDtypeStruct, cache: Cache) -> jax.stages.Lowered:
        """Lowers the program that a call with arrays of these shapes runs."""
        if self.layout is not None:
            sharding = self.layout.sharding(x_BFHWC.shape, self.layout.latent_columns(x_BFHWC))
            x_BFHWC = arrays.put_sharded(x_BFHWC, sharding)
        return _run_chunk.lower(x_BFHWC, cache, self.state, self.graphdef, self.layout)

    def abstract_cache(self, x_BFHWC: jax.ShapeDtypeStruct) -> Cache:
        """Returns ShapeDtypeStructs with shardings of the cache that a clip's first chunk leaves for the next."""
        _, cache = jax.eval_shape(self, x_BFHWC, {})

        def add_sharding(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = x_BFHWC.sharding
            if self.layout is not None:
                sharding = self.layout.sharding(x.shape, self.layout.latent_columns(x_BFHWC))
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        return jax.tree.map(add_sharding, cache)


class JittedVAE(NamedTuple):
    """A VAE whose encoder and decoder are compiled per chunk shape; `vae_chunking` accepts it in place of a VAE.

    Attributes:
      encoder, decoder: (chunk, cache) -> (result, cache).
      config: of the VAE.
      partitioner: as in `jit_vae`.
    """

    encoder: ChunkFn
    decoder: ChunkFn
    config: VAEConfig
    partitioner: Partitioner | None = None

    def video_sharding(self, shape_BFHWC: tuple[int, ...]) -> jax.sharding.NamedSharding | None:
        """Returns the sharding of a video that is encoded or was decoded; None on one device."""
        if self.partitioner is None:
            return None
        return _frames_sharding(self.partitioner, shape_BFHWC, shape_BFHWC[3] // self.config.latent_spec.spatial)

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

    def encode(self, video_BFHWC: jax.Array, microbatches: int = 1) -> jax.Array:
        """Encodes videos in the official chunks.

        Args:
          video_BFHWC: in [-1, 1].
          microbatches: encodes the batch in so many parts, one after the other, if that divides it; a part has every
            `microbatches`-th example, as those of a training step.

        Returns:
          The means of the latents (B, F', H', W', C), unscaled.
        """
        count = math.gcd(len(video_BFHWC), microbatches)
        if count == 1:
            return split_moments(self.encode_moments(video_BFHWC))[0]
        sharding = self.video_sharding((len(video_BFHWC) // count, *video_BFHWC.shape[1:]))
        parts = [self.encode(_take_examples(video_BFHWC, i, count, sharding)) for i in range(count)]
        z = jnp.stack(parts, axis=1)
        return z.reshape(-1, *z.shape[2:])

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
      partitioner: of a mesh over which frames are split by examples and by as many columns as divide, with the
        parameters replicated; None for one device. Encoded latents are split by examples alone.
    """
    if partitioner is None:
        return JittedVAE(Chunk(*nnx.split(vae.encoder)), Chunk(*nnx.split(vae.decoder)), vae.config)

    encoder, decoder = (_replicate(half, partitioner) for half in (vae.encoder, vae.decoder))
    encoder_layout = ChunkLayout(partitioner, vae.config.latent_spec.spatial, splits_output=False)
    decoder_layout = ChunkLayout(partitioner, 1, splits_output=True)
    return JittedVAE(Chunk(*encoder, encoder_layout), Chunk(*decoder, decoder_layout), vae.config, partitioner)


def _replicate(module: nnx.Module, partitioner: Partitioner) -> tuple[nnx.GraphDef, nnx.State]:
    graphdef, state = nnx.split(module)
    return graphdef, arrays.put_sharded(state, jax.tree.map(lambda _: partitioner.replicated, state))


# A function of the module, not of each VAE: a VAE that is loaded again does not compile again. The cache is donated: of
# 1072x1920 pixels it takes 2.6 GiB on each of eight chips, and no chunk but the next needs it.
@functools.partial(jax.jit, static_argnums=(3, 4), donate_argnums=1)
def _run_chunk(
    x_BFHWC: jax.Array, cache: Cache, state: nnx.State, graphdef: nnx.GraphDef, layout: ChunkLayout | None
) -> tuple[jax.Array, Cache]:
    if layout is None:
        return nnx.merge(graphdef, state)(x_BFHWC, cache)
    columns = layout.latent_columns(x_BFHWC)

    def constrain(x: jax.Array, latent_columns: int) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, layout.sharding(x.shape, latent_columns))

    network = nnx.merge(graphdef, state)
    sharding = layout.sharding(x_BFHWC.shape, columns)
    set_column_shards(network, x_BFHWC.shape[3] // sharding.shard_shape(x_BFHWC.shape)[3])
    y_BFHWC, cache = network(constrain(x_BFHWC, columns), cache)
    cache = jax.tree.map(lambda x: constrain(x, columns), cache)
    return constrain(y_BFHWC, columns if layout.splits_output else 1), cache
