"""`sample clip`: video super-resolution of a clip of any length and size, with stage 2."""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import tqdm

from fv_jax.checkpoints.manager import Checkpoints
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Parser, UsageError, parse_size, path_flag
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.output_paths import check_output_file
from fv_jax.data.video import video_io
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sample.flags import SUFFIX, Command, Overrides, add_file_flags
from fv_jax.sampling.clip_enhancer import Enhancer, enhance_clip, open_enhancer
from fv_jax.sampling.clip_writer import write_clip
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling
from fv_jax.sampling.windows import Windows
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.weights import trained_runs

log = logging.getLogger(__name__)

SCALE = Fraction(4)


def _add_flags(parser: Parser) -> None:
    def fraction(text: str) -> Fraction:
        return Fraction(str(float(text)))  # 320 times 1.15 is 368 pixels, not 367.99999999999994

    add = parser.add_argument
    add('--checkpoint', type=path_flag, required=True, help='the work directory of a stage-2 run')
    add('--input', type=path_flag, required=True, help='a video of any length and size')
    add('--output', type=path_flag, required=True, help='the mp4 to write')
    add('--step', type=int, help='the checkpoint of the run (default: the newest)')
    add('--num-steps', type=int, help="sampler steps (default: those of the checkpoint's config)")
    add('--seed', type=int, default=0, help='of the noise (default: %(default)s)')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--scale', type=fraction, help=f'output size / input size (default: {SCALE})')
    size.add_argument('--size', help='output size as HEIGHTxWIDTH, multiples of what the VAE allows')
    add('--overlap', type=int, help='frames that neighbouring windows share (default: 5 of 17, 9 of 49)')
    add_tiling_flags(parser)
    add_file_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    del overrides
    check_output_file(arguments.output, SUFFIX, arguments.overwrite)
    with error_context('--input=', error=UsageError):
        info = video_io.probe(arguments.input)
    step, window_frames, latent_spec = _peek(arguments.checkpoint, arguments.step)
    size, tiling = _size(arguments, info, latent_spec), read_tiling(arguments, latent_spec)
    windows = Windows.create(window_frames, arguments.overlap, latent_spec)
    stage, enhancer = _open(arguments.checkpoint, step, arguments.num_steps, tiling)
    shape = f'{size[0]}x{size[1]}'
    log.info(
        f'{arguments.input}: {info.height}x{info.width} to {shape}, {stage.config.num_steps} step(s) of checkpoint '
        f'{step}, windows of {windows.frames} frame(s)'
    )
    started = time.monotonic()
    frames = (frame.pixels() for frame in video_io.iter_frames(arguments.input))
    blocks = enhance_clip(enhancer, frames, size, key=jax.random.key(arguments.seed), windows=windows)
    bar = _with_bar(blocks, info, windows)
    count = write_clip(arguments.output, bar, arguments.input, info, crf=arguments.crf)
    seconds = time.monotonic() - started
    log.info(f'{arguments.output}: {shape}, {count} frame(s) in {seconds:.1f} s, {count / seconds:.2f} frames/s')


def _with_bar(blocks: Iterator[np.ndarray], info: video_io.VideoInfo, windows: Windows) -> Iterator[np.ndarray]:
    """Shows a progress bar that counts blocks, one per window."""
    total = windows.count(info.frames) if info.frames else None
    interval = 0.1 if sys.stderr.isatty() else 10
    return iter(tqdm.tqdm(blocks, total=total, unit='window', mininterval=interval, dynamic_ncols=True))


def _size(arguments: argparse.Namespace, info: video_io.VideoInfo, latent_spec: LatentSpec) -> tuple[int, int]:
    """Returns (height, width) of the output in pixels. Raises UsageError or ConfigError for an impossible one."""
    if arguments.size is not None:
        size = parse_size('--size', arguments.size)
        latent_spec.check_size('--size', size)
        return size
    scale = arguments.scale or SCALE
    with error_context(f'--scale={float(scale):g}: of {info.height}x{info.width}, ', error=UsageError):
        size = latent_spec.round_down(info.height * scale, info.width * scale)
    exact = scale * info.height, scale * info.width
    if size != exact:
        height, width = (f'{float(side):g}' for side in exact)
        multiple = latent_spec.pixel_multiple
        log.info(f'note: {height}x{width} is rounded down to {size[0]}x{size[1]}, multiples of {multiple}')
    return size


def _peek(run: Path, step: int | None) -> tuple[int, int, LatentSpec]:
    """Returns the checkpoint's step, the frames of a window and the VAE's latent geometry, without reading arrays."""
    meta = Checkpoints(run, read_only=True).meta(step)
    kind, frames = (meta['config'].get(group, {}).get(name) for group, name in (('stage', 'kind'), ('data', 'frames')))
    known = registry.find_kinds(EnhancementStage)
    can = f'only {", ".join(map(repr, known))} can enhance'
    require(kind in known, f'--checkpoint={run}: holds stage {kind!r}; {can}', UsageError)
    require(isinstance(frames, int), f'{run}: its config has no data.frames, the number of frames of a clip')
    return meta['step'], frames, trained_runs.latent_spec(trained_runs.read_stage_config(run, meta))


def _open(path: Path, step: int, num_steps: int | None, tiling: Tiling | None) -> tuple[EnhancementStage, Enhancer]:
    """Returns the stage with `num_steps` sampler steps, and its enhancer. Nothing is compiled yet."""
    run = trained_runs.open_run(path, step)
    for note in run.notes:
        log.info(f'note: {note}')
    stage = run.stage
    if num_steps is not None:
        stage = stage.with_sampler_config(dataclasses.replace(stage.sampler_config(), num_steps=num_steps))
    return stage, open_enhancer(run, stage, tiling)


COMMAND = Command('Enhances a video of any length and size with stage 2.', _add_flags, _run)
