"""The largest batch and the cheapest remat that fit a slice; the smallest slice that a run fits."""

import dataclasses
import logging
from collections.abc import Callable

from fv_jax.core import axes
from fv_jax.core.config import ConfigError
from fv_jax.models.remat import Remat
from fv_jax.planning import planner, slices
from fv_jax.planning.compiling import gib
from fv_jax.planning.planner import Request
from fv_jax.planning.report import PhaseReport
from fv_jax.training.run.setup import TrainConfig

log = logging.getLogger(__name__)

CHEAPEST_FIRST: tuple[Remat, ...] = ('none', 'dots', 'full')  # by what they compute again
_MAX_COMPILES = 8  # of the search for a batch; each takes a minute or more

Needed = Callable[[int, Remat], float | None]  # batch, remat -> bytes a chip; None where it does not fit


@dataclasses.dataclass(frozen=True)
class Found:
    """batch: clips of a step, all chips'. needed: bytes a chip."""

    batch: int
    remat: Remat
    needed: float


def largest_batch(request: Request) -> Found:
    """The largest batch that fits with full rematerialisation, then the cheapest policy that fits with it.

    Raises ConfigError when not even the smallest batch fits.
    """
    if request.config.data.token_budget is not None:
        raise ConfigError('config.data.token_budget: sets the batches of every size; --search needs it to be none')
    here = planner.make_slice_partitioner(_with(request, _smallest(request), 'full'))
    step = here.num_shards(axes.ACT_BATCH) * request.config.loop.microbatches

    def needed(batch: int, remat: Remat) -> float | None:
        report = _training(_with(request, batch, remat))
        fits = report.fits(request.where.chip)
        log.info(f'batch {batch}, remat {remat}: {gib(report.needed)} a chip{"" if fits else ", too much"}')
        return report.needed if fits else None

    return search(needed, step, request.where.chip.memory)


def search(needed: Needed, step: int, memory: float) -> Found:
    """Batches are multiples of `step`. Memory grows with the batch, by about as much for each clip: the next batch to
    try is where a line through the two largest that fit meets `memory`.

    Raises ConfigError when nothing fits.
    """
    fitting = {}
    if (first := needed(step, 'full')) is None:
        raise ConfigError(f'batch_size={step}: the smallest batch that divides does not fit, with full remat')
    fitting[step], too_large, candidate = first, None, 2 * step
    for _ in range(_MAX_COMPILES):
        if (size := needed(candidate, 'full')) is None:
            too_large = candidate
        else:
            fitting[candidate] = size
        best = max(fitting)
        candidate = _next(fitting, too_large, step, memory)
        if candidate <= best or candidate == too_large:
            break
    for remat in CHEAPEST_FIRST[:-1]:
        if (size := needed(best, remat)) is not None:
            return Found(best, remat, size)
    return Found(best, 'full', fitting[best])


def _next(fitting: dict[int, float], too_large: int | None, step: int, memory: float) -> int:
    """A batch between the largest that fits and the smallest that does not."""
    *_, best = sorted(fitting)
    if len(fitting) > 1:
        *_, below, best = sorted(fitting)
        slope = (fitting[best] - fitting[below]) / (best - below)
        guess = int((best + (memory - fitting[best]) / max(slope, 1)) / step) * step
    else:
        guess = 2 * best
    if too_large is None:
        return max(guess, best + step)
    if guess >= too_large:  # the line was too flat
        guess = (best + too_large) // (2 * step) * step
    return min(max(guess, best + step), too_large - step)


def smallest_slice(request: Request, generation: str) -> slices.Slice:
    """The first slice of a generation, from the smallest, on which training fits.

    Raises ConfigError when there is none.
    """
    for where in slices.sizes(generation):
        here = dataclasses.replace(request, where=where)
        try:
            resident = planner.resident_bytes(here)
        except ConfigError as error:
            log.info(f'{where}: {error}')
            continue
        if resident > where.chip.memory:
            log.info(f'{where}: {gib(resident)} a chip of state alone, too much')
            continue
        report = _training(here)
        fits = report.fits(where.chip)
        log.info(f'{where}: {gib(report.needed)} a chip{"" if fits else ", too much"}')
        if fits:
            return where
    raise ConfigError(f'--topology={generation}: no slice of this generation fits the run')


def _training(request: Request) -> PhaseReport:
    (phase,) = planner.plan(dataclasses.replace(request, phases=('training',))).phases
    return phase


def _smallest(request: Request) -> int:
    """A batch that divides over any mesh of the slice, and into microbatches."""
    return request.where.devices * request.config.loop.microbatches


def _with(request: Request, batch: int, remat: Remat) -> Request:
    config: TrainConfig = request.config
    loader = dataclasses.replace(config.data.loader, batch_size=batch)
    network = dataclasses.replace(config.stage.network, remat=remat)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, loader=loader),
        stage=dataclasses.replace(config.stage, network=network),
    )
    return dataclasses.replace(request, config=config)
