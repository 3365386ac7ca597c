"""What a run's programs are: lowered from shapes that know where they live, as the run itself would.

training   the step, and the VAE's encode for clips that come as video        the whole state stays in memory
sampling   the stage's sampler, the VAE's encode and decode                   one network in its compute dtype
text       T5, on one device; let go before a stage runs

The stage describes the first two (`Stage.programs`).
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
from fv_jax.core.abstract_module import abstract_module
from fv_jax.core.config import ConfigError
from fv_jax.data.buckets import Bucket
from fv_jax.models import vae_chunking
from fv_jax.models.dit import DiTConfig
from fv_jax.models.t5 import T5, T5Config
from fv_jax.models.vae import VAE, VAEConfig
from fv_jax.models.vae_tiling import Tiling
from fv_jax.parallel import arrays, sharding
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import estimate, flops
from fv_jax.planning.flops import Flops, Sequence
from fv_jax.sampling.noise import SeededNoise
from fv_jax.stages.frozen_vae import Chunk, JittedVAE, jit_vae
from fv_jax.stages.protocol import Batch, BatchSize, Program, Stage
from fv_jax.text import t5_encoder, tokenizer
from fv_jax.training.run.setup import TrainSetup, latents_shape
from fv_jax.training.step import train_step

Tree = Any


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


def largest(setup: TrainSetup) -> Bucket:
    """The size whose batch has the most work."""
    data, latent_spec = setup.config.data, setup.latent_spec

    def work(bucket: Bucket) -> int:
        return data.batch_size(bucket, latent_spec) * latent_spec.num_tokens(*bucket.size) ** 2

    return max(data.sizes, key=work)


# --- training ---


def training(setup: TrainSetup, vae: VAEConfig, bucket: Bucket) -> Phase:
    """A step of training at this size."""
    config, state = setup.config, setup.abstract_state
    resident = {
        'parameters': bytes_per_chip((state.trainable, state.frozen)),
        'optimizer': bytes_per_chip(state.opt_state),
        'average': bytes_per_chip(state.ema),
    }
    resident = {name: size for name, size in resident.items() if size}
    rows, *latents, _ = latents_shape(config, bucket, setup.latent_spec)
    known, partitioner = sum(resident.values()), setup.partitioner
    jitted, executables = _abstract_vae(vae, partitioner), []
    for program in _programs(setup.stage, 'training', BatchSize(rows, bucket.size, tuple(latents))):
        if program.network == 'stage':
            executables.append(_training_step(setup, program, _row(setup, bucket), known))
        elif config.data.cache is None:
            video = _shape(setup, 'video_BFHWC', program.inputs['video_BFHWC'])
            # The next batch is made, and waits, while a step runs.
            waiting = program.runs * bytes_per_chip(video)
            resident |= {"VAE's encoder": bytes_per_chip(jitted.encoder.state), 'next batch': waiting}
            executables += _encodes(jitted, vae, video, partitioner, program.runs)
    return Phase('training', resident, tuple(executables), rows, config.stage.network.head_dim)


def _programs(stage: Stage, phase: str, size: BatchSize) -> list[Program]:
    return [program for program in stage.programs(size) if program.phase == phase]


def _training_step(setup: TrainSetup, program: Program, row: Sequence, known: float) -> Executable:
    dit, microbatches = setup.config.stage.network, setup.config.loop.microbatches
    rows = next(iter(program.inputs.values()))[0]
    return Executable(
        program.name,
        functools.partial(_lower_step, setup, program),
        program.runs,
        flops.dit_training(dit, row) * rows,
        flops.recomputed(dit, row) * rows,
        known,
        bytes_per_chip(setup.abstract_state.trainable) * (1 if microbatches == 1 else 2)
        + _layer(dit, row, rows / microbatches, setup.partitioner, training=True),
    )


def _lower_step(setup: TrainSetup, program: Program) -> jax.stages.Lowered:
    config, inputs = setup.config, dict(program.inputs)
    if not config.stage.text.encoder:
        inputs.pop('text_BLD', None)
    batch = {name: _shape(setup, name, shape) for name, shape in inputs.items()}
    num_steps, microbatches, where = config.loop.num_steps, config.loop.microbatches, (setup.context, setup.shardings)
    step = train_step(setup.stage, setup.network, setup.tx, config.optim, num_steps, *where, microbatches)
    return step.lower(setup.abstract_state, batch, _key(setup.partitioner))


# --- sampling ---


def sampling_phase(setup: TrainSetup, vae: VAEConfig, bucket: Bucket, tiling: Tiling | None = None) -> Phase:
    """Samples of this size from a network in its compute dtype, its LoRA merged, as an official file is opened.

    tiling: of the VAE, for a stage that enhances, on one device. Raises ConfigError for others.
    """
    dit = setup.config.stage.network
    dit = dataclasses.replace(dit, param_dtype=dit.dtype, lora=None)
    stage, rows = dataclasses.replace(setup.stage, network=dit), setup.partitioner.num_shards(axes.ACT_BATCH)
    whole = BatchSize(rows, bucket.size, setup.latent_spec.latent_size(*bucket.size))
    programs = _programs(stage, 'sampling', whole)
    graphdef, state = nnx.split(abstract_module(stage.init))
    state = _placed(setup.partitioner, state)
    jitted, known, executables = _abstract_vae(vae, setup.partitioner), bytes_per_chip(state), []
    halves = {'encoder': jitted.encoder, 'decoder': jitted.decoder}
    used = {program.network for program in programs} & halves.keys()
    resident = {'parameters': known, 'VAE': bytes_per_chip([halves[name].state for name in used])}
    tiles, size = 1, whole
    if tiling is not None:
        _check_tiles(setup, 'encoder' in used)
        tiles, tile = (
            tiling.count(bucket.height, bucket.width),
            (bucket.frames, *tiling.tile_of(bucket.height, bucket.width)),
        )
        size = BatchSize(rows, tile, vae.latent_spec.latent_size(*tile))
        # That tiles are cut from, or joined to.
        resident['video'] = bytes_per_chip(_shape(setup, 'video_BFHWC', (rows, *bucket.size, 3)))
    for program in programs:
        if program.network == 'stage':
            executables.append(_sampler(setup, dit, program, graphdef, state, _row(setup, bucket)))
    for program in _programs(stage, 'sampling', size):
        if program.network in halves:
            ((name, shape),) = program.inputs.items()
            chunks = _encodes if program.network == 'encoder' else _decodes
            executables += chunks(jitted, vae, _shape(setup, name, shape), setup.partitioner, tiles * program.runs)
    return Phase('sampling', resident, tuple(executables), rows, dit.head_dim)


def _check_tiles(setup: TrainSetup, encodes: bool) -> None:
    if not encodes:
        raise ConfigError('--tile-size: previews are decoded in whole frames; leave it out')
    if setup.partitioner.mesh.size > 1:
        raise ConfigError(
            f'--tile-size: tiles are for one device; over {setup.partitioner.mesh.size}, frames are spread by columns'
        )


def _sampler(
    setup: TrainSetup, dit: DiTConfig, program: Program, graphdef: Any, state: nnx.State, row: Sequence
) -> Executable:
    rows = next(iter(program.inputs.values()))[0]
    return Executable(
        program.name,
        functools.partial(_lower_sampler, setup, program, graphdef, state),
        program.runs,
        flops.dit_forward(dit, row) * (rows * program.evaluations),
        Flops(),
        bytes_per_chip(state),
        _layer(dit, row, rows * program.batch_copies, setup.partitioner, training=False),
    )


def _lower_sampler(setup: TrainSetup, program: Program, graphdef: Any, state: nnx.State) -> jax.stages.Lowered:
    parallel, partitioner = setup.config.parallel, setup.partitioner
    choice = sharding.ContextParallelConfig(parallel.ulysses_degree, parallel.ring_attention, training=False)
    context = sharding.make_parallel_context(partitioner, choice)
    inputs = {name: _shape(setup, name, shape) for name, shape in program.inputs.items()}
    rows = next(iter(program.inputs.values()))[0]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    noise = SeededNoise(jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=partitioner.replicated))

    def sample(state: nnx.State, inputs: Batch, noise: SeededNoise) -> jax.Array:
        return program.function(nnx.merge(graphdef, state), inputs, noise, context)

    return jax.jit(sample).lower(state, inputs, noise)


def _placed(partitioner: Partitioner, state: nnx.State) -> nnx.State:
    """A network's shapes, each where the strategy says."""

    def place(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value()
        where = partitioner.sharding(variable.get_metadata('axes'), shape.shape, '/'.join(map(str, path)))
        return variable.replace(jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where))

    return nnx.map_state(place, state)


# --- the VAE ---


def _abstract_vae(config: VAEConfig, partitioner: Partitioner) -> JittedVAE:
    return jit_vae(abstract_module(functools.partial(VAE, config)), partitioner)


def _encodes(
    jitted: JittedVAE, config: VAEConfig, video: jax.ShapeDtypeStruct, partitioner: Partitioner, clips: int
) -> Iterator[Executable]:
    """Of so many clips a row."""
    sizes = vae_chunking.chunk_sizes(video.shape[1], vae_chunking.encode_chunks(config.latent_spec))
    rows, _, height, width, _ = video.shape

    def work(frames: int, first: bool) -> tuple[Flops, float]:
        done = flops.vae_encode(config, frames, height, width, first=first) * rows
        return done, estimate.vae_chunk(config, (rows, frames, height, width), _picture_shards(partitioner))

    return _chunks('VAE encode', jitted.encoder, video, sizes, work, clips)


def _decodes(
    jitted: JittedVAE, config: VAEConfig, z: jax.ShapeDtypeStruct, partitioner: Partitioner, clips: int
) -> Iterator[Executable]:
    """Of so many clips a row."""
    sizes = vae_chunking.chunk_sizes(z.shape[1], vae_chunking.DECODE_CHUNKS)
    rows, _, height, width, _ = z.shape
    spec = config.latent_spec

    def work(frames: int, first: bool) -> tuple[Flops, float]:
        done = flops.vae_decode(config, frames, height, width, first=first) * rows
        made = rows, spec.temporal * frames, spec.spatial * height, spec.spatial * width
        return done, estimate.vae_chunk(config, made, _picture_shards(partitioner))

    return _chunks('VAE decode', jitted.decoder, z, sizes, work, clips)


def _picture_shards(partitioner: Partitioner) -> int:
    return partitioner.num_shards(axes.ACT_BATCH) * partitioner.num_shards(axes.ACT_WIDTH)


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


def text(config: T5Config, length: int | None, partitioner: Partitioner) -> Phase:
    """A batch of texts, on one device. length: tokens; None for the official number."""
    tokens = length or tokenizer.OFFICIAL_LENGTH
    graphdef, state = nnx.split(abstract_module(functools.partial(T5, config)))
    state = arrays.put_sharded(state, jax.tree.map(lambda _: partitioner.replicated, state))
    rows = t5_encoder.BATCH
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=partitioner.replicated)
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


def _layer(dit: DiTConfig, row: Sequence, rows: float, partitioner: Partitioner, *, training: bool) -> float:
    """What a chip needs for a pass through the DiT, by formula."""
    tokens = row.tokens * rows / partitioner.num_shards(axes.ACT_BATCH)
    here = tokens / partitioner.num_shards(axes.ACT_TOKENS)
    work = estimate.dit_layer(dit, here, tokens)
    return work + estimate.kept(dit, here) if training else work


def _row(setup: TrainSetup, bucket: Bucket) -> Sequence:
    text_length, _ = setup.stage.text_shape
    return Sequence(text_length, setup.latent_spec.num_tokens(*bucket.size))


def _shape(setup: TrainSetup, name: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    partitioner = setup.partitioner
    where = partitioner.sharding(arrays.batch_axes(partitioner, name, shape, setup.latent_spec), shape, name)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where)


def _key(partitioner: Partitioner) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=partitioner.replicated)
