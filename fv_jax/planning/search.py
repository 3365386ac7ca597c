"""Searches: the largest batch and the cheapest remat that fit a slice; the smallest slice that a run fits."""

import dataclasses
import logging
from collections.abc import Callable

from fv_jax.core import axes
from fv_jax.core.config import AUTO, ConfigError
from fv_jax.models.remat import CHEAPEST_FIRST, Remat
from fv_jax.planning import planner, slices
from fv_jax.planning.compiling import format_gib
from fv_jax.planning.planner import PlanRequest
from fv_jax.planning.report import PhaseReport
from fv_jax.training.run.setup import TrainConfig

log = logging.getLogger(__name__)

_MAX_COMPILES = 8  # of the search for a batch; each takes a minute or more

PeakBytes = Callable[[int, Remat], float | None]  # batch size, remat -> bytes per device; None if it does not fit


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
      batch_size: the global batch size.
      remat: the rematerialization policy.
      peak_bytes: per device.
    """

    batch_size: int
    remat: Remat
    peak_bytes: float


def find_largest_batch(request: PlanRequest) -> SearchResult:
    """Finds the largest batch that fits with full rematerialization, then the cheapest policy that fits with it.

    Of microbatches that are chosen automatically, one is assumed.

    Raises:
      ConfigError: the smallest batch does not fit, or batch sizes follow from `config.data.token_budget`.
    """
    if request.config.data.token_budget is not None:
        budget = request.config.data.token_budget
        raise ConfigError(f'config.data.token_budget={budget}: sets the batch sizes; set it to none for --search')
    if request.config.loop.microbatches == AUTO:
        loop = dataclasses.replace(request.config.loop, microbatches=1)
        request = dataclasses.replace(request, config=dataclasses.replace(request.config, loop=loop))
    smallest = _replace_batch(request, _smallest_batch(request), 'full')
    partitioner = planner.make_slice_partitioner(smallest.config, request.topology)
    step = partitioner.num_shards(axes.ACT_BATCH) * request.config.loop.microbatches

    def compute_peak_bytes(batch_size: int, remat: Remat) -> float | None:
        report = _plan_training(_replace_batch(request, batch_size, remat))
        fits = report.fits(request.topology.chip)
        verdict = 'fits' if fits else 'does not fit'
        log.info(f'batch size {batch_size}, remat {remat}: {format_gib(report.peak_bytes)} per device, {verdict}')
        return report.peak_bytes if fits else None

    return search_batch_size(compute_peak_bytes, step, request.topology.chip.memory)


def search_batch_size(peak_bytes: PeakBytes, step: int, memory: float) -> SearchResult:
    """Finds the largest batch size that fits with full rematerialization, then the cheapest policy at that size.

    Memory grows almost linearly with the batch: the next candidate is where the line through the two largest batches
    that fit meets `memory`.

    Args:
      peak_bytes: compiles a training step; called at most 11 times.
      step: batch sizes are multiples of it.
      memory: bytes of a device.

    Raises:
      ConfigError: the smallest batch does not fit.
    """
    fitting = {}
    if (first := peak_bytes(step, 'full')) is None:
        raise ConfigError(
            f'batch_size={step}: the smallest batch size does not fit with remat=full; choose a larger slice'
        )
    fitting[step], too_large, candidate = first, None, 2 * step
    for _ in range(_MAX_COMPILES):
        if (size := peak_bytes(candidate, 'full')) is None:
            too_large = candidate
        else:
            fitting[candidate] = size
        best = max(fitting)
        candidate = _next_candidate(fitting, too_large, step, memory)
        if candidate <= best or candidate == too_large:
            break
    for remat in CHEAPEST_FIRST[:-1]:
        if (size := peak_bytes(best, remat)) is not None:
            return SearchResult(best, remat, size)
    return SearchResult(best, 'full', fitting[best])


def _next_candidate(fitting: dict[int, float], too_large: int | None, step: int, memory: float) -> int:
    """Chooses a batch size between the largest that fits and the smallest that does not."""
    *_, best = sorted(fitting)
    if len(fitting) > 1:
        *_, below, best = sorted(fitting)
        slope = (fitting[best] - fitting[below]) / (best - below)
        candidate = int((best + (memory - fitting[best]) / max(slope, 1)) / step) * step
    else:
        candidate = 2 * best
    if too_large is None:
        return max(candidate, best + step)
    if candidate >= too_large:  # the slope was underestimated
        candidate = (best + too_large) // (2 * step) * step
    return min(max(candidate, best + step), too_large - step)


def find_smallest_slice(request: PlanRequest, generation: str) -> slices.Slice:
    """Finds the smallest slice of a generation that training fits.

    Raises:
      ConfigError: there is none.
    """
    for topology in slices.list_slices(generation):
        candidate = dataclasses.replace(request, topology=topology)
        try:
            resident = planner.resident_bytes(candidate)
        except ConfigError as error:
            log.info(f'{topology}: {error}')
            continue
        if resident > topology.chip.memory:
            log.info(f'{topology}: {format_gib(resident)} per device of resident state alone, does not fit')
            continue
        report = _plan_training(candidate)
        fits = report.fits(topology.chip)
        log.info(f'{topology}: {format_gib(report.peak_bytes)} per device, {"fits" if fits else "does not fit"}')
        if fits:
            return topology
    raise ConfigError(f'--topology={generation}: no slice of this generation fits the run')


def _plan_training(request: PlanRequest) -> PhaseReport:
    (phase,) = planner.plan(dataclasses.replace(request, pipeline=None)).phases
    return phase


def _smallest_batch(request: PlanRequest) -> int:
    """Computes a batch size that divides over every mesh of the slice, and into microbatches."""
    return request.topology.devices * request.config.loop.microbatches


def _replace_batch(request: PlanRequest, batch_size: int, remat: Remat) -> PlanRequest:
    config: TrainConfig = request.config
    loader = dataclasses.replace(config.data.loader, batch_size=batch_size)
    network = dataclasses.replace(config.stage.network, remat=remat)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, loader=loader),
        stage=dataclasses.replace(config.stage, network=network),
    )
    return dataclasses.replace(request, config=config)
