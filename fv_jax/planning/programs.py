"""What a run's programs are: lowered from shapes that know where they live, as the run itself would.

training   the step, and the VAE's encode for clips that come as video        the whole state stays in memory
sampling   the stage's sampler, the VAE's encode (stage 2) and decode         one network in its compute dtype
text       T5, on one device; let go before a stage runs
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fv_jax.core import axes
from fv_jax.core.abstract_module import abstract
from fv_jax.core.config import ConfigError
from fv_jax.core.parallel_context import Rules
from fv_jax.data.buckets import Bucket
from fv_jax.diffusion import guidance, samplers
from fv_jax.models import vae_chunking
from fv_jax.models.dit import DiTConfig
from fv_jax.models.t5 import T5, T5Config
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.models.vae_tiling import Tiling
from fv_jax.parallel import arrays, sharding
from fv_jax.parallel.rules import Placement
from fv_jax.planning import estimate, flops
from fv_jax.planning.flops import Flops, Sequence
from fv_jax.sampling import programs
from fv_jax.sampling.noise import SeededNoise
from fv_jax.sampling.programs import LoadedStage
from fv_jax.stages.frozen_vae import Chunk, JittedVAE, jit_vae
from fv_jax.stages.low_res import LowRes
from fv_jax.stages.super_res import SuperRes
from fv_jax.text import t5_encoder, tokenizer
from fv_jax.training.run.setup import Assembly, latents_shape
from fv_jax.training.step import train_step

Tree = Any
_GUIDED = 2  # evaluations of the network in one guided one


@dataclasses.dataclass(frozen=True)
class Executable:
    """runs: how often in a step, or for a batch of samples. flops: of one run, over all chips; again: what is computed
    besides (`flops.recomputed`). known: bytes a chip of its arguments that its phase counts as resident. guess: of its
    temporaries, by formula.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    runs: int
    flops: Flops
    again: Flops
    known: float
    guess: float


@dataclasses.dataclass(frozen=True)
class Phase:
    """What runs beside the same things in memory. resident: bytes a chip of each. rows: of a batch, all chips'."""

    name: str
    resident: dict[str, float]
    executables: tuple[Executable, ...]
    rows: int
    head_dim: int


def bytes_per_chip(tree: Tree) -> float:
    """Of arrays, or shapes, that know where they live: what one chip holds of them."""

    def of(x: Any) -> float:
        sharding = getattr(x, 'sharding', None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        dtype = jnp.uint32 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype
        return math.prod(shape) * jnp.dtype(dtype).itemsize

    return float(sum(of(leaf) for leaf in jax.tree.leaves(tree)))


def largest(parts: Assembly) -> Bucket:
    """The size whose batch has the most work."""
    data, latent_spec = parts.config.data, parts.latent_spec

    def work(bucket: Bucket) -> int:
        return data.batch_size(bucket, latent_spec) * latent_spec.num_tokens(*bucket.size) ** 2

    return max(data.sizes, key=work)


# --- training ---


def training(parts: Assembly, vae: VAEConfig, bucket: Bucket) -> Phase:
    """A step of training at this size."""
    config, state = parts.config, parts.abstract_state
    resident = {
        'parameters': bytes_per_chip((state.trainable, state.frozen)),
        'optimizer': bytes_per_chip(state.opt_state),
        'average': bytes_per_chip(state.ema),
    }
    resident = {name: size for name, size in resident.items() if size}
    rows, known = config.data.batch_size(bucket, parts.latent_spec), sum(resident.values())
    row, dit, microbatches = _row(parts, bucket), config.stage.dit, config.loop.microbatches
    step = Executable(
        'training step',
        functools.partial(_lower_step, parts, bucket),
        1,
        flops.dit_training(dit, row) * rows,
        flops.recomputed(dit, row) * rows,
        known,
        bytes_per_chip(state.trainable) * (1 if microbatches == 1 else 2)
        + _layer(dit, row, rows / microbatches, parts.placement, training=True),
    )
    if config.data.cache is not None:
        return Phase('training', resident, (step,), rows, dit.head_dim)
    placement, twins = parts.placement, 2 if config.stage.kind == 'superres' else 1
    video = _shape(parts, 'high_res_BFHWC', (rows, *bucket.size, 3))
    jitted = _abstract_vae(vae, placement)
    # The next batch is made, and waits, while a step runs.
    resident |= {"VAE's encoder": bytes_per_chip(jitted.encoder.state), 'next batch': twins * bytes_per_chip(video)}
    encode = _encodes(jitted, vae, video, placement, twins)
    return Phase('training', resident, (step, *encode), rows, dit.head_dim)


def _lower_step(parts: Assembly, bucket: Bucket) -> jax.stages.Lowered:
    config, placement = parts.config, parts.placement
    latents = latents_shape(config, bucket, parts.latent_spec)
    shapes = {'z_high_BFHWC': latents}
    if config.stage.kind == 'superres':
        shapes['z_low_BFHWC'] = latents
    if config.stage.text.encoder:
        shapes['text_BLD'] = (latents[0], _text_length(parts), config.stage.dit.text_dim)
    batch = {name: _shape(parts, name, shape) for name, shape in shapes.items()}
    num_steps, microbatches, where = config.loop.num_steps, config.loop.microbatches, (parts.rules, parts.shardings)
    step = train_step(parts.stage, parts.network, parts.tx, config.optim, num_steps, *where, microbatches)
    return step.lower(parts.abstract_state, batch, _key(placement))


# --- sampling ---


def sampling_phase(parts: Assembly, vae: VAEConfig, bucket: Bucket, tiling: Tiling | None = None) -> Phase:
    """Samples of this size from a network in its compute dtype, its LoRA merged, as an official file is opened.

    tiling: of the VAE, for stage 2 on one device. Raises ConfigError for others.
    """
    config, placement = parts.config, parts.placement
    dit = dataclasses.replace(config.stage.dit, param_dtype=config.stage.dit.dtype, lora=None)
    stage = dataclasses.replace(parts.stage, dit=dit)
    loaded = _loaded(stage, placement)
    rows = placement.shards(axes.ACT_BATCH)
    row, known = _row(parts, bucket), bytes_per_chip(loaded.state)
    choice = sharding.ContextChoice(config.parallel.context_heads, config.parallel.context_ring, training=False)
    rules = sharding.rules_on(placement, choice)
    sampler = Executable(
        'sampler',
        functools.partial(_lower_sampler, parts, loaded, rules, rows, bucket),
        1,
        flops.dit_forward(dit, row) * (rows * evaluations(stage)),
        Flops(),
        known,
        _layer(dit, row, rows * (_GUIDED if stage.config.guidance_batched else 1), placement, training=False),
    )
    jitted = _abstract_vae(vae, placement)
    halves = [jitted.decoder.state] + ([jitted.encoder.state] if config.stage.kind == 'superres' else [])
    resident = {'parameters': known, 'VAE': bytes_per_chip(halves)}
    whole = _shape(parts, 'low_res_BFHWC', (rows, *bucket.size, 3))
    (height, width), tiles = (bucket.height, bucket.width), 1
    if tiling is not None:
        _check_tiles(parts)
        tiles, (height, width) = tiling.count(height, width), tiling.tile_of(height, width)
        resident['video'] = bytes_per_chip(whole)  # that tiles are cut from, or joined to
    video = _shape(parts, 'low_res_BFHWC', (rows, bucket.frames, height, width, 3))
    encodes = _encodes(jitted, vae, video, placement, tiles) if config.stage.kind == 'superres' else ()
    latent_size = vae.latent_spec.latent_size(bucket.frames, height, width)
    z = _shape(parts, 'z_BFHWC', (rows, *latent_size, vae.latent_channels))
    decodes = _decodes(jitted, vae, z, placement, tiles)
    return Phase('sampling', resident, (sampler, *encodes, *decodes), rows, dit.head_dim)


def _check_tiles(parts: Assembly) -> None:
    if parts.config.stage.kind != 'superres':
        raise ConfigError('--tile-size: previews are decoded in whole frames; leave it out')
    if parts.placement.mesh.size > 1:
        raise ConfigError(
            f'--tile-size: tiles are for one device; over {parts.placement.mesh.size}, frames are spread by columns'
        )


def evaluations(stage: LowRes | SuperRes) -> int:
    """Of the network, for one sample."""
    config, is_second = stage.config, isinstance(stage, SuperRes)
    guided = not guidance.is_off(config.guidance_scale) or not is_second
    return config.num_steps * samplers.SAMPLERS[config.sampler].evaluations * (_GUIDED if guided else 1)


def _lower_sampler(parts: Assembly, loaded: LoadedStage, rules: Rules, rows: int, bucket: Bucket) -> jax.stages.Lowered:
    config, latent_size = loaded.stage.config, parts.latent_spec.latent_size(*bucket.size)
    text = _shape(parts, 'text_BLD', (rows, config.text_length, loaded.stage.dit.text_dim))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    noise = SeededNoise(jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=parts.placement.replicated))

    def generate(state: nnx.State, text: jax.Array, noise: SeededNoise) -> jax.Array:
        return programs.generate(dataclasses.replace(loaded, state=state), text, noise, latent_size, rules=rules)

    def transport(state: nnx.State, text: jax.Array, noise: SeededNoise, z_low: jax.Array) -> jax.Array:
        return programs.enhance_latents(dataclasses.replace(loaded, state=state), z_low, text, noise, rules=rules)

    if isinstance(loaded.stage, LowRes):
        return jax.jit(generate).lower(loaded.state, text, noise)
    z_low = _shape(parts, 'z_low_BFHWC', (rows, *latent_size, loaded.stage.dit.latent_channels))
    return jax.jit(transport).lower(loaded.state, text, noise, z_low)


def _loaded(stage: LowRes | SuperRes, placement: Placement) -> LoadedStage:
    model = abstract(stage.init)
    graphdef, state = nnx.split(model)
    return LoadedStage(dataclasses.replace(stage, encoder=None), graphdef, _placed(placement, state))


def _placed(placement: Placement, state: nnx.State) -> nnx.State:
    """A network's shapes, each where the table says."""

    def place(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value()
        where = placement.sharding(variable.get_metadata('axes'), shape.shape, '/'.join(map(str, path)))
        return variable.replace(jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where))

    return nnx.map_state(place, state)


# --- the VAE ---


def _abstract_vae(config: VAEConfig, placement: Placement) -> JittedVAE:
    return jit_vae(abstract(functools.partial(VAE, config)), placement)


def _encodes(
    jitted: JittedVAE, config: VAEConfig, video: jax.ShapeDtypeStruct, placement: Placement, clips: int
) -> Iterator[Executable]:
    """Of so many clips a row."""
    sizes = vae_chunking.chunk_sizes(video.shape[1], vae_chunking.encode_chunks(config.latent_spec))
    rows, _, height, width, _ = video.shape

    def work(frames: int, first: bool) -> tuple[Flops, float]:
        done = flops.vae_encode(config, frames, height, width, first=first) * rows
        return done, estimate.vae_chunk(config, (rows, frames, height, width), _picture_shards(placement))

    return _chunks('VAE encode', jitted.encoder, video, sizes, work, clips)


def _decodes(
    jitted: JittedVAE, config: VAEConfig, z: jax.ShapeDtypeStruct, placement: Placement, clips: int
) -> Iterator[Executable]:
    """Of so many clips a row."""
    sizes = vae_chunking.chunk_sizes(z.shape[1], vae_chunking.DECODE_CHUNKS)
    rows, _, height, width, _ = z.shape
    spec = config.latent_spec

    def work(frames: int, first: bool) -> tuple[Flops, float]:
        done = flops.vae_decode(config, frames, height, width, first=first) * rows
        made = rows, spec.temporal * frames, spec.spatial * height, spec.spatial * width
        return done, estimate.vae_chunk(config, made, _picture_shards(placement))

    return _chunks('VAE decode', jitted.decoder, z, sizes, work, clips)


def _picture_shards(placement: Placement) -> int:
    return placement.shards(axes.ACT_BATCH) * placement.shards(axes.ACT_WIDTH)


def _chunks(
    name: str,
    half: Chunk,
    clip: jax.ShapeDtypeStruct,
    sizes: tuple[int, ...],
    work: Callable[[int, bool], tuple[Flops, float]],
    clips: int,
) -> Iterator[Executable]:
    """An executable for each shape of chunk: the first of a clip, and those that later chunks have."""

    def shape(frames: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clip.shape[0], frames, *clip.shape[2:]), clip.dtype, sharding=clip.sharding)

    def later(size: int) -> jax.stages.Lowered:
        return half.lower(shape(size), half.cache_after(shape(sizes[0])))

    known = bytes_per_chip(half.state)
    done, guess = work(sizes[0], True)
    first = functools.partial(half.lower, shape(sizes[0]), {})
    yield Executable(f'{name}, {sizes[0]} frames', first, clips, done, Flops(), known, guess)
    for size in sorted(set(sizes[1:]), reverse=True):
        done, guess = work(size, False)
        lower, runs = functools.partial(later, size), clips * sizes[1:].count(size)
        yield Executable(f'{name}, {size} more', lower, runs, done, Flops(), known, guess)


# --- T5 ---


def text(config: T5Config, length: int | None, placement: Placement) -> Phase:
    """A batch of texts, on one device. length: tokens; None for the official number."""
    tokens = length or tokenizer.OFFICIAL_LENGTH
    graphdef, state = nnx.split(abstract(functools.partial(T5, config)))
    state = arrays.place(state, jax.tree.map(lambda _: placement.replicated, state))
    rows = t5_encoder.BATCH
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=placement.replicated)
    known = bytes_per_chip(state)
    encode = Executable(
        'T5',
        lambda: t5_encoder.embed_ids.lower(state, ids, graphdef, False),
        1,
        flops.t5_forward(config, tokens) * rows,
        Flops(),
        known,
        rows * tokens * 4 * (2 * config.mlp_dim + config.num_heads * tokens),
    )
    return Phase('text', {'parameters': known}, (encode,), rows, config.head_dim)


# --- shapes ---


def _layer(dit: DiTConfig, row: Sequence, rows: float, placement: Placement, *, training: bool) -> float:
    """What a chip needs for a pass through the DiT, by formula."""
    tokens = row.tokens * rows / placement.shards(axes.ACT_BATCH)
    here = tokens / placement.shards(axes.ACT_TOKENS)
    work = estimate.dit_layer(dit, here, tokens)
    return work + estimate.kept(dit, here) if training else work


def _row(parts: Assembly, bucket: Bucket) -> Sequence:
    return Sequence(_text_length(parts), parts.latent_spec.num_tokens(*bucket.size))


def _text_length(parts: Assembly) -> int:
    return parts.stage.config.text_length


def _shape(parts: Assembly, name: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    placement = parts.placement
    where = placement.sharding(arrays.batch_axes(placement, name, shape, parts.latent_spec), shape, name)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)


def _key(placement: Placement) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=placement.replicated)
