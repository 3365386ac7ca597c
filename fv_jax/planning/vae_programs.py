"""The programs of the frozen VAE: one for each shape of a chunk of frames, as `stages/frozen_vae` compiles them."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax

from fv_jax import weights
from fv_jax.core.abstract_module import abstract_module
from fv_jax.models import vae as vae_lib
from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import estimate, flops
from fv_jax.planning.flops import Flops
from fv_jax.planning.programs import PlannedProgram, bytes_per_chip, count_shards
from fv_jax.stages.frozen_vae import Chunk, JittedVAE, jit_vae
from fv_jax.stages.registry import StageConfig


def vae_config(config: StageConfig) -> VAEConfig:
    """Reads the configuration of the VAE of a stage; the official one where it does not exist."""
    sizes = weights.vae_config(config.vae) if vae_exists(config) else vae_lib.OFFICIAL
    return dataclasses.replace(sizes, dtype=config.vae_dtype)


def vae_exists(config: StageConfig) -> bool:
    """Returns whether the VAE that a stage names exists."""
    return weights.vae_path(config.vae).exists()


def abstract_vae(config: VAEConfig, partitioner: Partitioner) -> JittedVAE:
    """Returns a VAE that can be lowered only."""
    return jit_vae(abstract_module(functools.partial(VAE, config)), partitioner)


def encode_programs(vae: JittedVAE, video: jax.ShapeDtypeStruct, clips: int = 1) -> Iterator[PlannedProgram]:
    """Plans the encoding of `clips` batches of clips, of the shape of `video`."""
    spec = vae.config.latent_spec
    sizes = vae_chunking.chunk_sizes(video.shape[1], vae_chunking.encode_chunks(spec))
    batch_size, _, height, width, _ = video.shape
    shards = count_shards(vae.video_sharding(video.shape), video.shape)

    def cost(frames: int, first: bool) -> tuple[Flops, float]:
        work = flops.vae_encode(vae.config, frames, height, width, first=first) * batch_size
        return work, estimate.vae_chunk(vae.config, (batch_size, frames, height, width), shards)

    return _chunk_programs('VAE encode', vae.encoder, video, sizes, cost, clips, shards)


def decode_programs(vae: JittedVAE, z: jax.ShapeDtypeStruct, clips: int = 1) -> Iterator[PlannedProgram]:
    """Plans the decoding of `clips` batches of latents, of the shape of `z`."""
    spec = vae.config.latent_spec
    sizes = vae_chunking.chunk_sizes(z.shape[1], vae_chunking.DECODE_CHUNKS)
    batch_size, _, height, width, _ = z.shape
    video = (batch_size, *spec.video_size(*z.shape[1:4]), 3)
    shards = count_shards(vae.video_sharding(video), video)

    def cost(frames: int, first: bool) -> tuple[Flops, float]:
        work = flops.vae_decode(vae.config, frames, height, width, first=first) * batch_size
        video_BFHW = batch_size, spec.temporal * frames, spec.spatial * height, spec.spatial * width
        return work, estimate.vae_chunk(vae.config, video_BFHW, shards)

    return _chunk_programs('VAE decode', vae.decoder, z, sizes, cost, clips, shards)


def _chunk_programs(
    name: str,
    half: Chunk,
    clip: jax.ShapeDtypeStruct,
    sizes: tuple[int, ...],
    cost: Callable[[int, bool], tuple[Flops, float]],
    clips: int,
    shards: int,
) -> Iterator[PlannedProgram]:
    """Yields a program for each shape of a chunk: the first of a clip, and each of the later ones."""

    def abstract_chunk(frames: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clip.shape[0], frames, *clip.shape[2:]), clip.dtype)

    def lower(size: int, first: bool) -> jax.stages.Lowered:
        cache = {} if first else half.abstract_cache(abstract_chunk(sizes[0]))
        return half.lower(abstract_chunk(size), cache)

    later = [(size, False, sizes[1:].count(size)) for size in sorted(set(sizes[1:]), reverse=True)]
    for size, first, count in [(sizes[0], True, 1), *later]:
        work, estimated_bytes = cost(size, first)
        yield PlannedProgram(
            name=f'{name}, {size} frames' if first else f'{name}, {size} more',
            lower=functools.partial(lower, size, first),
            runs=clips * count,
            flops=work,
            devices=shards,
            resident_argument_bytes=bytes_per_chip(half.state),
            estimated_bytes=estimated_bytes,
        )
