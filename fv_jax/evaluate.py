"""Evaluates a stage-2 run on its held-out clips: `python -m fv_jax.evaluate --checkpoint RUN --output DIR`.

Each clip is downsampled, or with `--degradation-config degradations` strongly degraded, and enhanced; the
metrics named bilinear are then those of the degraded clip. The output folder holds:

  clip_N.mp4         input, bilinear, enhanced and ground truth side by side
  small.mp4          the input of the first clip, to try `sample clip` on
  contact_sheet.png  a frame of every clip, whole and magnified
  report.json        the metrics

The metrics are PSNR to the ground truth, of the enhanced clip, of the bilinear one, and of the ground truth after a
round trip through the VAE (the ceiling); detail (mean gradient magnitude) relative to the ceiling; and the
flow-matching loss beside that of the best linear predictor.

Exit codes: 0 success; 2 wrong usage; 1 failure.
"""

import dataclasses
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.checkpoints.manager import CheckpointError
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes
from fv_jax.core.checks import require
from fv_jax.core.command_line import Parser, UsageError, path_flag, read_config
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.devices import check_devices
from fv_jax.core.files import write_json
from fv_jax.data import pipeline
from fv_jax.data.degradation import degradations
from fv_jax.data.degradation.configs import StrongConfig, WeakConfig
from fv_jax.data.degradation.degradations import Degradation
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.shards.records import read_records
from fv_jax.data.transforms import to_uint8
from fv_jax.data.video import contact_sheet, video_io
from fv_jax.evaluation import metrics
from fv_jax.evaluation.linear_baseline import LinearPredictor
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.sampling.clip_enhancer import jit_enhance_latents
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import EnhancementStage, NoisedPair
from fv_jax.stages.noise import per_example_keys
from fv_jax.stages.protocol import Batch, evaluation_loss
from fv_jax.training.run import latent_cache
from fv_jax.weights import trained_runs

log = logging.getLogger('fv_jax.evaluate')

FPS = 24  # of the mp4s
STRATA = 4  # of t, in the loss; see `time_grids.stratified_times`
TRAIN_CLIPS = 64  # that the linear predictor is fitted on if no latents are cached


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('evaluate', _evaluate, argv, errors={CheckpointError: exit_codes.FAILED})


def _evaluate(argv: Sequence[str]) -> int:
    parser = Parser('python -m fv_jax.evaluate', 'Evaluates a stage-2 run on its held-out clips.')
    parser.add_argument('--checkpoint', type=path_flag, required=True, help='the work directory of a run')
    parser.add_argument('--output', type=path_flag, required=True, help='the folder to write to')
    parser.add_argument('--num-clips', type=int, default=4, help='number of held-out clips (default: %(default)s)')
    parser.add_argument('--num-steps', type=int, default=None, help="sampler steps (default: the run's)")
    parser.add_argument('--degradation-config', help='a config file whose strong degradations are applied')
    arguments = parser.parse_flags(argv)
    for flag, value in (('--num-clips', arguments.num_clips), ('--num-steps', arguments.num_steps)):
        require(value is None or value >= 1, f'{flag}={value}: must be at least 1', UsageError)
    given = arguments.degradation_config
    strong = None
    if given is not None:
        strong = read_config(Degradation, given, (), '--degradation-config').strong
        wrong = f'--degradation-config={given}: has no strong degradations; use degradations'
        require(strong is not None, wrong, UsageError)
    check_devices()
    report = evaluate(arguments.checkpoint, arguments.output, arguments.num_clips, arguments.num_steps, strong)
    print_result(_summary(report))
    log.info(f'wrote contact_sheet.png, report.json and the clips to {arguments.output}')
    return 0


@dataclasses.dataclass(frozen=True)
class Clip:
    """A held-out clip and its degraded versions, float (F, H, W, 3) in [-1, 1].

    Attributes:
      factor: size of `truth` / size of `small`.
      truth: the ground truth.
      small: the degraded clip at low resolution.
      bilinear: the degraded clip at the size of `truth`.
    """

    factor: float
    truth: np.ndarray
    small: np.ndarray
    bilinear: np.ndarray


def evaluate(
    checkpoint: Path, output: Path, clips: int, num_steps: int | None, strong: StrongConfig | None = None
) -> dict[str, Any]:
    """Evaluates a run and writes report, clips and contact sheet.

    Args:
      checkpoint: the work directory of a stage-2 run.
      output: the folder to write to; created if missing.
      clips: number of held-out clips.
      num_steps: sampler steps; None for those of the run.
      strong: the strong degradation of the clips; None only downsamples them.

    Returns:
      The contents of report.json.

    Raises:
      UsageError: not a stage-2 run, or one without held-out clips.
    """
    run = _open_run(checkpoint, num_steps)
    sampler = run.stage.sampler_config()
    data = config_lib.build(pipeline.DataConfig, run.config['data'] | {'eval_clips': clips}, 'config.data')
    require(data.heldout, f'{checkpoint}: the run has no held-out clips (its data.heldout is empty)', UsageError)
    output.mkdir(parents=True, exist_ok=True)
    log.info(f'step {run.step} of {checkpoint}: {clips} held-out clip(s), {sampler.num_steps} sampler step(s)')
    enhance_latents = jit_enhance_latents(run.stage, run.network.model(**run.params), context=SINGLE_DEVICE)
    rows, clip_metrics, held_out = [], [], []
    for i, clip in enumerate(_clips(data, strong)):
        z_high, z_low = (run.vae.encode(jnp.asarray(v)[None]) for v in (clip.truth, clip.bilinear))
        held_out.append({'z_high_BFHWC': z_high, 'z_low_BFHWC': z_low})
        enhanced = np.asarray(run.vae.decode(enhance_latents(z_low, jax.random.key(i), 0))[0])
        ceiling = np.asarray(run.vae.decode(z_high)[0])
        clip_metrics.append(_metrics(clip, enhanced, ceiling))
        log.info(f'clip {i}, downsampled {clip.factor:.1f} times: PSNR {clip_metrics[-1]["psnr_enhanced"]:.2f} dB')
        videos = _videos(clip, enhanced)
        video_io.encode(output / f'clip_{i}.mp4', contact_sheet.side_by_side(videos), FPS)
        if i == 0:
            height, width = (side // 2 * 2 for side in clip.small.shape[1:3])  # H.264 takes even sides
            video_io.encode(output / 'small.mp4', to_uint8(clip.small[:, :height, :width]), FPS)
        rows.append((f'clip {i}, {clip.factor:.1f}x', videos))
    contact_sheet.contact_sheet(rows).save(output / 'contact_sheet.png')
    log.info('computing the loss, and fitting the linear predictor as a baseline')
    report = {
        'checkpoint_step': run.step,
        'sampler': sampler.sampler,
        'nfe': run.stage.num_function_evaluations(),
        'noise_augmentation_timestep': sampler.noise_augmentation_timestep,
        'mean': {key: float(np.mean([found[key] for found in clip_metrics])) for key in clip_metrics[0]},
        'clips': clip_metrics,
        'flow_matching_loss': _losses(run, data, checkpoint, held_out),
    }
    write_json(output / 'report.json', report)
    return report


def _open_run(checkpoint: Path, num_steps: int | None) -> trained_runs.Run:
    """Opens a stage-2 run to sample with `num_steps` sampler steps (None: its own), without guidance."""
    run = trained_runs.open_run(checkpoint)
    for note in run.notes:
        log.info(f'note: {note}')
    if not isinstance(run.stage, EnhancementStage):
        known, kind = ', '.join(registry.find_kinds(EnhancementStage)), run.config['stage']['kind']
        raise UsageError(f'{checkpoint}: holds stage {kind!r}; only {known} can be evaluated')
    sampler = run.stage.sampler_config()
    if num_steps is not None:
        sampler = dataclasses.replace(sampler, num_steps=num_steps)
    # Held-out clips have no captions, so that guidance would have no effect.
    return dataclasses.replace(run, stage=run.stage.with_sampler_config(sampler).without_guidance())


def _clips(data: pipeline.DataConfig, strong: StrongConfig | None) -> Iterator[Clip]:
    """Yields the first held-out clips, downsampled by factors spread evenly over the range of training.

    Strong degradations are sampled with the index of the clip as the seed, the same for every run.
    """
    records = pipeline.open_source(data.heldout, data, heldout=True)
    batches = pipeline.heldout_clips(records, pipeline.clip_transform(data, low_res=False, training=False), data)
    factors = np.linspace(data.weak.low, data.weak.high, len(batches))
    for i, (factor, batch) in enumerate(zip(factors, batches, strict=True)):
        truth = batch['high_res_BFHWC'][0]
        size = truth.shape[1:3]
        small_size = int(size[0] / factor), int(size[1] / factor)
        if strong is None:
            small = resize_bilinear(truth, small_size)
            degraded = resize_bilinear(small, size)
        else:
            degraded = degradations.degrade_strong(truth, np.random.default_rng(i), strong, WeakConfig(factor, factor))
            small = resize_bilinear(degraded, small_size)
        yield Clip(float(factor), truth, small, degraded)


def _metrics(clip: Clip, enhanced: np.ndarray, ceiling: np.ndarray) -> dict[str, float]:
    """Computes PSNR to the ground truth in dB, and detail and flicker relative to the ceiling."""
    enhanced, ceiling = np.clip(enhanced, -1, 1), np.clip(ceiling, -1, 1)
    full = max(metrics.detail(ceiling), 1e-6)
    return {
        'factor': clip.factor,
        'psnr_bilinear': metrics.psnr(clip.bilinear, clip.truth),
        'psnr_enhanced': metrics.psnr(enhanced, clip.truth),
        'psnr_vae_ceiling': metrics.psnr(ceiling, clip.truth),
        'detail_bilinear': metrics.detail(clip.bilinear) / full,
        'detail_enhanced': metrics.detail(enhanced) / full,
        'detail_truth': metrics.detail(clip.truth) / full,
        'flicker_enhanced': metrics.flicker(enhanced) / max(metrics.flicker(ceiling), 1e-6),
    }


def _videos(clip: Clip, enhanced: np.ndarray) -> dict[str, np.ndarray]:
    """Converts the videos of a clip to uint8 of one size; the small input is resized by repeating pixels."""
    size = clip.truth.shape[1:3]
    rows, columns = (np.arange(n) * m // n for n, m in zip(size, clip.small.shape[1:3], strict=True))
    videos = {
        'input': clip.small[:, rows][:, :, columns],
        'bilinear': clip.bilinear,
        'enhanced': enhanced,
        'truth': clip.truth,
    }
    return {name: to_uint8(video) for name, video in videos.items()}


def _losses(
    run: trained_runs.Run, data: pipeline.DataConfig, checkpoint: Path, held_out: list[Batch]
) -> dict[str, float]:
    """Computes the held-out flow-matching loss and the best linear predictor's, on the same latents, noise and t."""
    stage, network = run.stage, run.network

    @jax.jit
    def loss(params, noised):
        return evaluation_loss(stage, network.model(**params), noised, context=SINGLE_DEVICE)[0]

    key = jax.random.key(run.config['seed'])
    linear = LinearPredictor(STRATA)
    for i, batch in enumerate(_training_latents(run, data, checkpoint)):
        linear.add(_noise(stage, batch, jax.random.fold_in(key, 0), i))
    held_out_noised = [_noise(stage, batch, jax.random.fold_in(key, 1), i) for i, batch in enumerate(held_out)]
    losses = {
        'model': float(np.mean([float(loss(run.params, noised)) for noised in held_out_noised])),
        'linear_3x3x3': float(np.mean([linear.loss(noised) for noised in held_out_noised])),
    }
    return losses | {'ratio': losses['model'] / losses['linear_3x3x3']}


def _noise(stage: EnhancementStage, batch: Batch, key: jax.Array, index: int) -> NoisedPair:
    """Repeats a clip for every stratum of t and adds noise."""
    tiled = {name: jnp.repeat(jnp.asarray(value), STRATA, axis=0) for name, value in batch.items()}
    return stage.sample_noise_and_time(tiled, per_example_keys(key, index, STRATA))


def _training_latents(run: trained_runs.Run, data: pipeline.DataConfig, checkpoint: Path) -> Iterator[Batch]:
    """Yields the latents that the run trained on: cached ones, or its first clips encoded now."""
    if data.cache is not None:
        for record in read_records(latent_cache.cached_shards(checkpoint / latent_cache.FOLDER)):
            yield {'z_high_BFHWC': record['z_high'][None], 'z_low_BFHWC': record['z_low'][:1]}
        return
    records = pipeline.open_source(data.train, data, heldout=False)
    transform = pipeline.training_transform(data, data.sizes[0], low_res=True)
    for batch in pipeline.heldout_clips(records, transform, dataclasses.replace(data, eval_clips=TRAIN_CLIPS)):
        yield run.stage.encode(batch)


def _summary(report: dict[str, Any]) -> str:
    mean, loss = report['mean'], report['flow_matching_loss']
    return '\n'.join(
        [
            f'PSNR                 bilinear {mean["psnr_bilinear"]:.2f} dB, enhanced {mean["psnr_enhanced"]:.2f} dB, '
            f"the VAE's ceiling {mean['psnr_vae_ceiling']:.2f} dB",
            f'detail (ceiling = 1) bilinear {mean["detail_bilinear"]:.2f}, enhanced {mean["detail_enhanced"]:.2f}, '
            f'truth {mean["detail_truth"]:.2f}',
            f'held-out loss        {loss["model"]:.4f}, the best linear predictor {loss["linear_3x3x3"]:.4f}',
        ]
    )


if __name__ == '__main__':
    sys.exit(main())
