"""Suggests what to change where a plan does not fit."""

from collections.abc import Iterator

from fv_jax.core import axes
from fv_jax.parallel.rules import Partitioner
from fv_jax.planning import slices
from fv_jax.planning.compiling import format_gib
from fv_jax.planning.planner import PlanRequest, make_slice_partitioner
from fv_jax.planning.report import PhaseReport, Report
from fv_jax.planning.sampled_stages import SampledStage
from fv_jax.planning.sampling_phases import SAMPLER_STEP
from fv_jax.sampling.settings import EnhanceSettings
from fv_jax.stages import registry
from fv_jax.training.run.setup import TrainConfig


def suggest_changes(report: Report, request: PlanRequest) -> list[str]:
    """Returns a line for each change that makes room in a phase that does not fit, the cheapest first."""
    lines: list[str] = []
    stages = {stage.name: stage for stage in request.pipeline.stages} if request.pipeline is not None else {}
    for phase in report.phases:
        if phase.fits(report.topology.chip):
            continue
        if phase.name in stages:
            lines += _suggest_for_sampling(phase, stages[phase.name])
        elif phase.name == 'training':
            lines += _suggest_for_training(
                phase, request.config, make_slice_partitioner(request.config, request.topology)
            )
    if not report.fits:
        larger = [each for each in slices.list_slices(report.topology.generation) if each.chips > report.topology.chips]
        if larger:
            lines.append(f'a larger slice: --topology={larger[0]}, or --find-smallest-slice to find one for training')
    return list(dict.fromkeys(lines))


def _suggest_for_sampling(phase: PhaseReport, stage: SampledStage) -> Iterator[str]:
    settings, program = stage.settings, phase.largest_program.name
    if program == SAMPLER_STEP and settings.guidance_batched and stage.stage.is_guided():
        yield f'guidance by two evaluations, one after the other: --{stage.name}.guidance_batched=false'
    if isinstance(settings, EnhanceSettings) and program.startswith('VAE') and settings.tile_size is None:
        size = '400,528' if phase.devices == 1 else '568,1024'  # 128 columns of latents, which many chips divide
        yield f'frames in tiles: --{stage.name}.tile_size={size}'
    if phase.batch_size > 1:
        yield f'fewer prompts at once: --batch-size={phase.batch_size // 2}'


def _suggest_for_training(phase: PhaseReport, config: TrainConfig, partitioner: Partitioner) -> Iterator[str]:
    microbatches, program = config.loop.microbatches, phase.largest_program.name
    shards = partitioner.num_shards(axes.ACT_BATCH) * microbatches
    if program == 'training step' and config.stage.network.remat not in ('full', 'offload'):
        yield 'save fewer activations: --config.stage.network.remat=full'
    if program == 'training step' and phase.batch_size % (2 * shards) == 0:
        yield f'smaller microbatches: --config.loop.microbatches={2 * microbatches}'
    if program == 'training step' and config.stage.network.remat == 'full':
        yield "offload the input of each layer to the host's memory: --config.stage.network.remat=offload"
    if phase.batch_size > shards and config.data.token_budget is None:
        fewer = max(phase.batch_size // 2 // shards, 1) * shards
        yield f'fewer clips a step: --config.data.loader.batch_size={fewer} (at least {shards}), or --search'
    if program.startswith('VAE'):
        variants = 2 if registry.needs_low_res(config.stage) else 0
        cache = f"{{'num_degraded_variants': {variants}, 'crop': None}}"
        yield f'encode once, before training: --config.data.cache="{cache}"'
    if partitioner.num_shards(axes.EMBED) < partitioner.mesh.size:
        yield 'shard the parameters over all chips: --config.parallel.data=1 --config.parallel.fsdp=-1'
    if config.optim.momentum_dtype == 'float32':
        half = phase.resident['optimizer'] / (4 if config.optim.algorithm == 'adamw' else 2)
        yield f'the momentum in half the memory ({format_gib(half)}): --config.optim.momentum_dtype=bfloat16'
    if 'EMA' in phase.resident:
        yield f'no moving average ({format_gib(phase.resident["EMA"])}): --config.optim.ema_decay=0'
    if program.startswith('VAE') and config.stage.vae_dtype == 'float32':
        yield 'the VAE in half the memory: --config.stage.vae_dtype=bfloat16'
