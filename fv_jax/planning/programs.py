"""The programs of a run, lowered from sharded ShapeDtypeStructs exactly as the run lowers them.

    phase      programs                                                    resident in memory
    training   the training step; encoding, for clips that are video       the train state
    sampling   the sampler of the stage; encoding and decoding             one network in its compute dtype, the VAE
    text       the T5 encoder, on one device                               T5, freed before a stage runs

Stages describe the programs of training and sampling (`Stage.programs`).
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
from fv_jax.planning.flops import Flops, SequenceLength
from fv_jax.sampling.noise import SeededNoise
from fv_jax.stages.frozen_vae import Chunk, JittedVAE, jit_vae
from fv_jax.stages.protocol import Batch, BatchSize, Program, Stage
from fv_jax.text import t5_encoder, tokenizer
from fv_jax.training.run.setup import TrainSetup, latents_shape
from fv_jax.training.step import train_step

Tree = Any


@dataclasses.dataclass(frozen=True)
class PlannedProgram:
    """A program that can be lowered and compiled ahead of time.

    Attributes:
      lower: traces and lowers it.
      runs: in a training step, or for a batch of samples.
      flops: the model FLOPs of one run, over all devices.
      recompute: the FLOPs executed in addition (`flops.dit_recompute`).
      resident_argument_bytes: per device, of the arguments that are resident in its phase.
      estimated_bytes: per device, of its temporaries, by formula.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    runs: int
    flops: Flops
    recompute: Flops
    resident_argument_bytes: float
    estimated_bytes: float


@dataclasses.dataclass(frozen=True)
class Phase:
    """Programs that run with the same arrays resident in memory.

    Attributes:
      resident: bytes per device by cause.
      batch_size: the global number of examples.
      head_dim: the size of an attention head.
    """

    name: str
    resident: dict[str, float]
    programs: tuple[PlannedProgram, ...]
    batch_size: int
    head_dim: int


def bytes_per_chip(tree: Tree) -> float:
    """Counts the bytes per device of a tree of arrays, or of ShapeDtypeStructs with shardings."""

    def count_bytes(x: Any) -> float:
        sharding = getattr(x, 'sharding', None)
        shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
        dtype = jnp.uint32 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype
        return math.prod(shape) * jnp.dtype(dtype).itemsize

    return float(sum(count_bytes(leaf) for leaf in jax.tree.leaves(tree)))


def largest_bucket(setup: TrainSetup) -> Bucket:
    """Returns the bucket whose batch takes the most FLOPs: tokens squared, times the batch size."""
    data, latent_spec = setup.config.data, setup.latent_spec

    def cost(bucket: Bucket) -> int:
        return data.batch_size(bucket, latent_spec) * latent_spec.num_tokens(*bucket.size) ** 2

    return max(data.sizes, key=cost)


# --- training ---


def training_phase(setup: TrainSetup, vae: VAEConfig, bucket: Bucket) -> Phase:
    """Plans a training step on clips of a bucket.

    Args:
      setup: of the run.
      vae: the sizes of the VAE.
      bucket: the size of the clips.
    """
    config, state = setup.config, setup.abstract_state
    resident = {
        'parameters': bytes_per_chip((state.trainable, state.frozen)),
        'optimizer': bytes_per_chip(state.opt_state),
        'EMA': bytes_per_chip(state.ema),
    }
    resident = {name: size for name, size in resident.items() if size}
    batch_size, *latents, _ = latents_shape(config, bucket, setup.latent_spec)
    state_bytes, partitioner = sum(resident.values()), setup.partitioner
    jitted, programs = _abstract_vae(vae, partitioner), []
    for program in _phase_programs(setup.stage, 'training', BatchSize(batch_size, bucket.size, tuple(latents))):
        if program.network == 'stage':
            programs.append(_plan_train_step(setup, program, _sequence_length(setup, bucket), state_bytes))
        elif config.data.cache is None:
            video = _abstract_array(setup, 'video_BFHWC', program.inputs['video_BFHWC'])
            # The next batch is prefetched while a step runs.
            prefetched = program.runs * bytes_per_chip(video)
            resident |= {'VAE encoder': bytes_per_chip(jitted.encoder.state), 'next batch': prefetched}
            programs += _encode_programs(jitted, vae, video, partitioner, program.runs)
    return Phase('training', resident, tuple(programs), batch_size, config.stage.network.head_dim)


def _phase_programs(stage: Stage, phase: str, size: BatchSize) -> list[Program]:
    return [program for program in stage.programs(size) if program.phase == phase]


def _plan_train_step(
    setup: TrainSetup, program: Program, sequence: SequenceLength, state_bytes: float
) -> PlannedProgram:
    dit, microbatches = setup.config.stage.network, setup.config.loop.microbatches
    batch_size = next(iter(program.inputs.values()))[0]
    return PlannedProgram(
        program.name,
        functools.partial(_lower_train_step, setup, program),
        program.runs,
        flops.dit_training(dit, sequence) * batch_size,
        flops.dit_recompute(dit, sequence) * batch_size,
        state_bytes,
        bytes_per_chip(setup.abstract_state.trainable) * (1 if microbatches == 1 else 2)
        + _layer_bytes(dit, sequence, batch_size / microbatches, setup.partitioner, training=True),
    )


def _lower_train_step(setup: TrainSetup, program: Program) -> jax.stages.Lowered:
    config, inputs = setup.config, dict(program.inputs)
    if not config.stage.text.encoder:
        inputs.pop('text_BLD', None)
    batch = {name: _abstract_array(setup, name, shape) for name, shape in inputs.items()}
    step = train_step(
        setup.stage,
        setup.network,
        setup.tx,
        config.optim,
        config.loop.num_steps,
        setup.context,
        setup.shardings,
        config.loop.microbatches,
    )
    return step.lower(setup.abstract_state, batch, _abstract_key(setup.partitioner))


# --- sampling ---


def sampling_phase(setup: TrainSetup, vae: VAEConfig, bucket: Bucket, tiling: Tiling | None = None) -> Phase:
    """Plans a batch of samples from a network in its compute dtype, with LoRA merged, as sampling loads it.

    Args:
      setup: of the run.
      vae: the sizes of the VAE.
      bucket: the size of the clips.
      tiling: of the VAE; None for whole frames.

    Raises:
      ConfigError: tiles for a stage that does not encode, or for more than one device.
    """
    dit = setup.config.stage.network
    dit = dataclasses.replace(dit, param_dtype=dit.dtype, lora=None)
    stage, batch_size = dataclasses.replace(setup.stage, network=dit), setup.partitioner.num_shards(axes.ACT_BATCH)
    untiled = BatchSize(batch_size, bucket.size, setup.latent_spec.latent_size(*bucket.size))
    descriptions = _phase_programs(stage, 'sampling', untiled)
    graphdef, state = nnx.split(abstract_module(stage.init))
    state = _shard_abstract_state(setup.partitioner, state)
    jitted, programs = _abstract_vae(vae, setup.partitioner), []
    halves = {'encoder': jitted.encoder, 'decoder': jitted.decoder}
    used = {program.network for program in descriptions} & halves.keys()
    resident = {'parameters': bytes_per_chip(state), 'VAE': bytes_per_chip([halves[name].state for name in used])}
    tiles, size = 1, untiled
    if tiling is not None:
        _check_tiles(setup, 'encoder' in used)
        tiles = tiling.count(bucket.height, bucket.width)
        tile = bucket.frames, *tiling.clamp_tile(bucket.height, bucket.width)
        size = BatchSize(batch_size, tile, vae.latent_spec.latent_size(*tile))
        # The video that tiles are cut from, or blended into.
        resident['video'] = bytes_per_chip(_abstract_array(setup, 'video_BFHWC', (batch_size, *bucket.size, 3)))
    for program in descriptions:
        if program.network == 'stage':
            programs.append(_plan_sampler(setup, dit, program, graphdef, state, _sequence_length(setup, bucket)))
    for program in _phase_programs(stage, 'sampling', size):
        if program.network in halves:
            ((name, shape),) = program.inputs.items()
            chunk_programs = _encode_programs if program.network == 'encoder' else _decode_programs
            clip = _abstract_array(setup, name, shape)
            programs += chunk_programs(jitted, vae, clip, setup.partitioner, tiles * program.runs)
    return Phase('sampling', resident, tuple(programs), batch_size, dit.head_dim)


def _check_tiles(setup: TrainSetup, encodes: bool) -> None:
    if not encodes:
        raise ConfigError('--tile-size: has no effect, as previews are decoded without tiles; remove it')
    if setup.partitioner.mesh.size > 1:
        raise ConfigError(
            f'--tile-size: tiles require one device (got {setup.partitioner.mesh.size}, which split frames by columns)'
        )


def _plan_sampler(
    setup: TrainSetup, dit: DiTConfig, program: Program, graphdef: Any, state: nnx.State, sequence: SequenceLength
) -> PlannedProgram:
    batch_size = next(iter(program.inputs.values()))[0]
    return PlannedProgram(
        program.name,
        functools.partial(_lower_sampler, setup, program, graphdef, state),
        program.runs,
        flops.dit_forward(dit, sequence) * (batch_size * program.evaluations),
        Flops(),
        bytes_per_chip(state),
        _layer_bytes(dit, sequence, batch_size * program.batch_copies, setup.partitioner, training=False),
    )


def _lower_sampler(setup: TrainSetup, program: Program, graphdef: Any, state: nnx.State) -> jax.stages.Lowered:
    parallel, partitioner = setup.config.parallel, setup.partitioner
    choice = sharding.ContextParallelConfig(parallel.ulysses_degree, parallel.ring_attention, training=False)
    context = sharding.make_parallel_context(partitioner, choice)
    inputs = {name: _abstract_array(setup, name, shape) for name, shape in program.inputs.items()}
    batch_size = next(iter(program.inputs.values()))[0]
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch_size))
    noise = SeededNoise(jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=partitioner.replicated))

    def sample(state: nnx.State, inputs: Batch, noise: SeededNoise) -> jax.Array:
        return program.function(nnx.merge(graphdef, state), inputs, noise, context)

    return jax.jit(sample).lower(state, inputs, noise)


def _shard_abstract_state(partitioner: Partitioner, state: nnx.State) -> nnx.State:
    """Adds the shardings of the strategy to the ShapeDtypeStructs of a network."""

    def add_sharding(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        shape = variable.get_value()
        sharding = partitioner.sharding(variable.get_metadata('axes'), shape.shape, '/'.join(map(str, path)))
        return variable.replace(jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding))

    return nnx.map_state(add_sharding, state)


# --- the VAE ---


def _abstract_vae(config: VAEConfig, partitioner: Partitioner) -> JittedVAE:
    return jit_vae(abstract_module(functools.partial(VAE, config)), partitioner)


def _encode_programs(
    jitted: JittedVAE, config: VAEConfig, video: jax.ShapeDtypeStruct, partitioner: Partitioner, clips: int
) -> Iterator[PlannedProgram]:
    """Plans the encoding of the chunks of `clips` clips per example."""
    sizes = vae_chunking.chunk_sizes(video.shape[1], vae_chunking.encode_chunks(config.latent_spec))
    batch_size, _, height, width, _ = video.shape

    def cost(frames: int, first: bool) -> tuple[Flops, float]:
        work = flops.vae_encode(config, frames, height, width, first=first) * batch_size
        return work, estimate.vae_chunk(config, (batch_size, frames, height, width), _frame_shards(partitioner))

    return _chunk_programs('VAE encode', jitted.encoder, video, sizes, cost, clips)


def _decode_programs(
    jitted: JittedVAE, config: VAEConfig, z: jax.ShapeDtypeStruct, partitioner: Partitioner, clips: int
) -> Iterator[PlannedProgram]:
    """Plans the decoding of the chunks of `clips` clips per example."""
    sizes = vae_chunking.chunk_sizes(z.shape[1], vae_chunking.DECODE_CHUNKS)
    batch_size, _, height, width, _ = z.shape
    spec = config.latent_spec

    def cost(frames: int, first: bool) -> tuple[Flops, float]:
        work = flops.vae_decode(config, frames, height, width, first=first) * batch_size
        video_BFHW = batch_size, spec.temporal * frames, spec.spatial * height, spec.spatial * width
        return work, estimate.vae_chunk(config, video_BFHW, _frame_shards(partitioner))

    return _chunk_programs('VAE decode', jitted.decoder, z, sizes, cost, clips)


def _frame_shards(partitioner: Partitioner) -> int:
    return partitioner.num_shards(axes.ACT_BATCH) * partitioner.num_shards(axes.ACT_WIDTH)


def _chunk_programs(
    name: str,
    half: Chunk,
    clip: jax.ShapeDtypeStruct,
    sizes: tuple[int, ...],
    cost: Callable[[int, bool], tuple[Flops, float]],
    clips: int,
) -> Iterator[PlannedProgram]:
    """Yields a program for each shape of a chunk: the first of a clip, and each of the later ones."""

    def abstract_chunk(frames: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((clip.shape[0], frames, *clip.shape[2:]), clip.dtype, sharding=clip.sharding)

    def lower_later(size: int) -> jax.stages.Lowered:
        return half.lower(abstract_chunk(size), half.abstract_cache(abstract_chunk(sizes[0])))

    parameter_bytes = bytes_per_chip(half.state)
    work, estimated = cost(sizes[0], True)
    lower_first = functools.partial(half.lower, abstract_chunk(sizes[0]), {})
    yield PlannedProgram(f'{name}, {sizes[0]} frames', lower_first, clips, work, Flops(), parameter_bytes, estimated)
    for size in sorted(set(sizes[1:]), reverse=True):
        work, estimated = cost(size, False)
        lower, runs = functools.partial(lower_later, size), clips * sizes[1:].count(size)
        yield PlannedProgram(f'{name}, {size} more', lower, runs, work, Flops(), parameter_bytes, estimated)


# --- T5 ---


def text_phase(config: T5Config, length: int | None, partitioner: Partitioner) -> Phase:
    """Plans the encoding of a batch of texts on one device.

    Args:
      config: of T5.
      length: of a text in tokens; None for the official length.
      partitioner: of a mesh of one device.
    """
    tokens = length or tokenizer.OFFICIAL_LENGTH
    graphdef, state = nnx.split(abstract_module(functools.partial(T5, config)))
    state = arrays.put_sharded(state, jax.tree.map(lambda _: partitioner.replicated, state))
    batch_size = t5_encoder.BATCH
    ids = jax.ShapeDtypeStruct((batch_size, tokens), jnp.int32, sharding=partitioner.replicated)
    parameter_bytes = bytes_per_chip(state)
    encode = PlannedProgram(
        'T5',
        lambda: t5_encoder.embed_ids.lower(state, ids, graphdef, False),
        1,
        flops.t5_forward(config, tokens) * batch_size,
        Flops(),
        parameter_bytes,
        batch_size * tokens * 4 * (2 * config.mlp_dim + config.num_heads * tokens),
    )
    return Phase('text', {'parameters': parameter_bytes}, (encode,), batch_size, config.head_dim)


# --- sizes and abstract arrays ---


def _layer_bytes(
    dit: DiTConfig, sequence: SequenceLength, batch_size: float, partitioner: Partitioner, *, training: bool
) -> float:
    """Estimates the bytes per device of activations in a pass through the DiT."""
    tokens = sequence.total * batch_size / partitioner.num_shards(axes.ACT_BATCH)
    local_tokens = tokens / partitioner.num_shards(axes.ACT_TOKENS)
    temporaries = estimate.dit_layer(dit, local_tokens, tokens)
    return temporaries + estimate.saved_activations(dit, local_tokens) if training else temporaries


def _sequence_length(setup: TrainSetup, bucket: Bucket) -> SequenceLength:
    text_length, _ = setup.stage.text_shape
    return SequenceLength(text_length, setup.latent_spec.num_tokens(*bucket.size))


def _abstract_array(setup: TrainSetup, name: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    partitioner = setup.partitioner
    sharding = arrays.batch_sharding(partitioner, name, shape, setup.latent_spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def _abstract_key(partitioner: Partitioner) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=partitioner.replicated)
