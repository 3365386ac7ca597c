"""What to change where a plan does not fit."""

from collections.abc import Iterator

from fv_jax.core import axes
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import slices
from fv_jax.planning.compiling import gib
from fv_jax.planning.report import PhaseReport, Report
from fv_jax.training.run.setup import TrainConfig


def advice(report: Report, config: TrainConfig, partitioner: Partitioner) -> list[str]:
    """A line for each change that helps a phase that does not fit, the cheapest first."""
    found: list[str] = []
    for phase in report.phases:
        if not phase.fits(report.where.chip):
            found += _of_phase(phase, config, partitioner)
    if found:
        larger = [each for each in slices.sizes(report.where.generation) if each.chips > report.where.chips]
        if larger:
            found.append(f'a larger slice: --topology={larger[0]}, or --find-smallest-slice to find one')
    return list(dict.fromkeys(found))


def _of_phase(phase: PhaseReport, config: TrainConfig, partitioner: Partitioner) -> Iterator[str]:
    name = phase.largest.name
    if phase.name == 'training':
        yield from _of_training(phase, config, partitioner, name)
    if phase.name == 'sampling' and name == 'sampler' and config.stage.options.guidance_batched:
        yield 'guidance by two evaluations in turn: --config.stage.options.guidance_batched=false'
    if name.startswith('VAE') and config.stage.vae_dtype == 'float32':
        yield 'the VAE in half the memory: --config.stage.vae_dtype=bfloat16'


def _of_training(phase: PhaseReport, config: TrainConfig, partitioner: Partitioner, name: str) -> Iterator[str]:
    microbatches = config.loop.microbatches
    shards = partitioner.num_shards(axes.ACT_BATCH) * microbatches
    if name == 'training step' and config.stage.network.remat not in ('full', 'offload'):
        yield 'keep fewer activations: --config.stage.network.remat=full'
    if name == 'training step' and phase.rows % (2 * shards) == 0:
        yield f'the batch in parts, one after the other: --config.loop.microbatches={2 * microbatches}'
    if name == 'training step' and config.stage.network.remat == 'full':
        yield "keep what goes into each layer in the host's memory: --config.stage.network.remat=offload"
    if phase.rows > shards and config.data.token_budget is None:
        fewer = max(phase.rows // 2 // shards, 1) * shards
        yield f'fewer clips a step: --config.data.loader.batch_size={fewer} (at least {shards}), or --search'
    if name.startswith('VAE'):
        yield "encode once, before training: --config.data.cache=\"{'num_degraded_variants': 2, 'crop': None}\""
    if partitioner.num_shards(axes.EMBED) < partitioner.mesh.size:
        yield 'spread the weights over all chips: --config.parallel.data=1 --config.parallel.fsdp=-1'
    if config.optim.momentum_dtype == 'float32':
        half = phase.resident['optimizer'] / (4 if config.optim.algorithm == 'adamw' else 2)
        yield f'the momentum in half the memory ({gib(half)}): --config.optim.momentum_dtype=bfloat16'
    if 'average' in phase.resident:
        yield f'no moving average ({gib(phase.resident["average"])}): --config.optim.ema_decay=0'
