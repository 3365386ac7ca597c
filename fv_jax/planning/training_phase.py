"""The programs of a training step, lowered exactly as the trainer lowers them."""

import functools
import math

import jax
import jax.numpy as jnp

from fv_jax.core import axes
from fv_jax.data.buckets import Bucket
from fv_jax.models.vae import VAEConfig
from fv_jax.parallel import arrays
from fv_jax.parallel.mesh import describe
from fv_jax.parallel.rules import Partitioner
from fv_jax.parallel.sharding import ContextParallelConfig, context_parallel_plan
from fv_jax.planning import flops
from fv_jax.planning.flops import SequenceLength
from fv_jax.planning.programs import Phase, PlannedProgram, PlannedTarget, bytes_per_chip, estimate_layer_bytes
from fv_jax.planning.vae_programs import abstract_vae, encode_programs
from fv_jax.stages.protocol import BatchSize, Program
from fv_jax.training.run.setup import TrainSetup, latents_shape
from fv_jax.training.step import train_step


def largest_bucket(setup: TrainSetup) -> Bucket:
    """Returns the bucket whose batch takes the most FLOPs: tokens squared, times the batch size."""
    data, latent_spec = setup.config.data, setup.latent_spec

    def cost(bucket: Bucket) -> int:
        return data.batch_size(bucket, latent_spec) * latent_spec.num_tokens(*bucket.size) ** 2

    return max(data.sizes, key=cost)


def training_phase(setup: TrainSetup, vae: VAEConfig, bucket: Bucket, kind: str | None = None) -> Phase:
    """Plans a training step on clips of a bucket.

    Args:
      setup: of the run.
      vae: the sizes of the VAE.
      bucket: the size of the clips.
      kind: name of the devices, for display; None for their platform.
    """
    config, state = setup.config, setup.abstract_state
    resident = {
        'parameters': bytes_per_chip((state.trainable, state.frozen)),
        'optimizer': bytes_per_chip(state.opt_state),
        'EMA': bytes_per_chip(state.ema),
    }
    resident = {name: size for name, size in resident.items() if size}
    batch_size, *latents, _ = latents_shape(config, bucket, setup.latent_spec)
    state_bytes, mesh = sum(resident.values()), setup.partitioner.mesh
    jitted, programs = abstract_vae(vae, setup.partitioner), []
    for program in setup.stage.programs(BatchSize(batch_size, bucket.size, tuple(latents))):
        if program.network == 'stage':
            programs.append(_plan_train_step(setup, program, bucket, state_bytes))
        elif config.data.cache is None:
            examples, *size = program.inputs['video_BFHWC']
            videos = _abstract_array(setup, 'video_BFHWC', (examples, *size))
            # The next batch is prefetched while a step runs.
            prefetched = program.runs * bytes_per_chip(videos)
            resident |= {'VAE encoder': bytes_per_chip(jitted.encoder.state), 'next batch': prefetched}
            parts = math.gcd(examples, config.loop.microbatches)  # as `JittedVAE.encode`
            part = _abstract_array(setup, 'video_BFHWC', (examples // parts, *size))
            programs += encode_programs(jitted, part, program.runs * parts)
    head_dim, where = config.stage.network.head_dim, describe(mesh, kind)
    return Phase('training', resident, tuple(programs), batch_size, mesh.size, head_dim, str(bucket), where)


def _plan_train_step(setup: TrainSetup, program: Program, bucket: Bucket, state_bytes: float) -> PlannedProgram:
    dit, microbatches = setup.config.stage.network, setup.config.loop.microbatches
    sequence = SequenceLength(setup.stage.text_shape[0], setup.latent_spec.num_tokens(*bucket.size))
    batch_size = next(iter(program.inputs.values()))[0]
    layer_bytes = estimate_layer_bytes(dit, sequence, batch_size / microbatches, setup.partitioner, training=True)
    forward = flops.dit_forward(dit, sequence) * batch_size
    targets = tuple(PlannedTarget(each.name, each.share, forward * each.forwards) for each in program.targets)
    gradient_bytes = bytes_per_chip(setup.abstract_state.trainable) * (1 if microbatches == 1 else 2)
    return PlannedProgram(
        name=program.name,
        lower=functools.partial(_lower_train_step, setup, program),
        runs=program.runs,
        flops=flops.dit_training(dit, sequence) * batch_size + forward * program.target_forwards,
        recompute=flops.dit_recompute(dit, sequence) * batch_size,
        devices=setup.partitioner.mesh.size,
        heads=_count_heads(setup, sequence, batch_size // microbatches),
        resident_argument_bytes=state_bytes,
        estimated_bytes=gradient_bytes + layer_bytes,
        targets=targets,
    )


def _count_heads(setup: TrainSetup, sequence: SequenceLength, batch_size: int) -> int:
    """Counts the heads of attention on a device, times its examples."""
    dit, partitioner, parallel = setup.config.stage.network, setup.partitioner, setup.config.parallel
    choice = ContextParallelConfig(parallel.ulysses_degree, parallel.ring_attention)
    shape = batch_size, sequence.total, dit.num_heads, dit.head_dim
    plan = context_parallel_plan(partitioner, choice, shape, jnp.dtype(dit.dtype).itemsize)
    examples, heads = (
        -(-n // partitioner.num_shards(axis))
        for n, axis in ((batch_size, axes.ACT_BATCH), (dit.num_heads, axes.ACT_HEADS))
    )
    return examples * -(-heads // plan.ulysses_degree)


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


def _abstract_array(setup: TrainSetup, name: str, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    sharding = arrays.batch_sharding(setup.partitioner, name, shape, setup.latent_spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def _abstract_key(partitioner: Partitioner) -> jax.ShapeDtypeStruct:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=partitioner.replicated)
