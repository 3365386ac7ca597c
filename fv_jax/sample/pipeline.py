"""Opens the pipeline that the flags name, sets its settings, and reports its speed."""

import argparse
import logging
from collections.abc import Sequence

from fv_jax import api
from fv_jax.core import throughput
from fv_jax.parallel.mesh import describe
from fv_jax.planning import step_cost
from fv_jax.sampling.metadata import WeightsOrigin
from fv_jax.sampling.parallel_flags import read_parallel
from fv_jax.sampling.results import StoredPreview
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.weights_flags import read_origin

log = logging.getLogger(__name__)


def open_pipeline(
    arguments: argparse.Namespace, origin: WeightsOrigin | None = None, *, step: int | None = None
) -> api.FlashVideo:
    """Opens the weights that the flags name; the arguments are those of `read_origin`."""
    origin = read_origin(arguments, origin, step=step)
    fv = api.FlashVideo.from_origin(origin, parallel=read_parallel(arguments.parallel))
    if fv.num_devices > 1:
        log.info(f'on {describe(fv.mesh.mesh)}')
    for note in fv.notes:
        log.info(f'note: {note}')
    return fv


def report_previewing(fv: api.FlashVideo, settings: PreviewSettings, num_clips: int) -> None:
    _report_speed(fv, 'preview', step_cost.preview_cost(fv.stage1, settings, num_clips))


def report_enhancing(fv: api.FlashVideo, settings: EnhanceSettings, stored: Sequence[StoredPreview]) -> None:
    vae, latents = fv.find_vae(stored[0]).config, stored[0].latents.shape[:3]
    done = step_cost.enhancement_cost(fv.stage2, settings, vae, latents, len(stored))
    _report_speed(fv, 'enhance', done)


def _report_speed(fv: api.FlashVideo, name: str, done: throughput.StepCost) -> None:
    seconds = fv.clock.running_s[name]
    metrics = throughput.format_metrics(throughput.throughput_metrics(done, seconds) | throughput.peak_memory())
    log.info(f'{name}: {metrics}, in {seconds:.1f} s (compile time {fv.clock.compiling_s[name]:.1f} s)')
