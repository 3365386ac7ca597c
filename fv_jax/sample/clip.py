"""`sample clip`: video super-resolution of a clip of any length and size, with stage 2."""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import tqdm

from fv_jax.core.checks import error_context
from fv_jax.core.command_line import Parser, UsageError, override_settings, parse_size, path_flag
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.output_paths import check_output_file
from fv_jax.data.transforms import to_uint8
from fv_jax.data.video import decoding
from fv_jax.parallel import distributed
from fv_jax.sample import pipeline
from fv_jax.sample.flags import ENHANCE, SUFFIX, Command, Overrides, add_file_flags, add_weights_flags
from fv_jax.sampling import clips
from fv_jax.sampling.clip_shots import ADAPTIVE_THRESHOLD
from fv_jax.sampling.clip_writer import write_clip
from fv_jax.sampling.clips import EnhancedClip
from fv_jax.sampling.framing import scaled_size
from fv_jax.sampling.settings import ClipSettings
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling

log = logging.getLogger(__name__)

SCALE = Fraction(4)


def _add_flags(parser: Parser) -> None:
    def fraction(text: str) -> Fraction:
        return Fraction(str(float(text)))  # 320 times 1.15 is 368 pixels, not 367.99999999999994

    add = parser.add_argument
    add('--input', type=path_flag, required=True, help='a video of any length and size')
    add('--output', type=path_flag, required=True, help='the mp4 to write')
    add('--step', type=int, help='the step of the checkpoint (default: the newest)')
    add('--num-steps', type=int, help="sampler steps (default: those of the checkpoint's config)")
    add('--seed', type=int, default=0, help='of the noise (default: %(default)s)')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--scale', type=fraction, help=f'output size / input size (default: {SCALE})')
    size.add_argument('--size', help='output size as HEIGHTxWIDTH, multiples of what the VAE allows')
    fit = 'of another aspect ratio: crop its centre, or pad with black bars; never stretched (default: %(default)s)'
    add('--fit', choices=('crop', 'pad'), default='crop', help=fit)
    add('--overlap', type=int, help='frames that neighbouring windows share (default: 5 of 17, 9 of 49)')
    shots = 'detector of cuts, which start a new window; none ignores them (default: %(default)s)'
    add('--shots', choices=('adaptive', 'content', 'none'), default='adaptive', help=shots)
    threshold = f'of the detector; lower finds more cuts (default: {ADAPTIVE_THRESHOLD}, or 27 for content)'
    add('--shot-threshold', type=float, help=threshold)
    add('--no-color-fix', dest='color_fix', action='store_false', help="do not keep the input's low frequencies")
    add_tiling_flags(parser)
    add_weights_flags(parser)
    add_file_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    check_output_file(arguments.output, SUFFIX, arguments.overwrite)
    with error_context('--input=', error=UsageError):
        info = decoding.probe(arguments.input)
    fv = pipeline.open_pipeline(arguments, step=arguments.step)
    with error_context('', error=UsageError):
        spec = fv.stage2.latent_spec
    size, tiling = _size(arguments, info, spec), read_tiling(arguments, spec)
    settings = override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    settings = dataclasses.replace(settings, num_steps=arguments.num_steps or settings.num_steps)
    if tiling is not None:
        settings = dataclasses.replace(settings, tile_size=tiling.tile_size, tile_overlap=tiling.tile_overlap)
    settings = dataclasses.replace(settings, size=size)
    clip_settings = ClipSettings(
        overlap=arguments.overlap,
        shots=arguments.shots,
        shot_threshold=arguments.shot_threshold,
        color_fix=arguments.color_fix,
        fit=arguments.fit,
    )
    enhanced = fv.enhance_clip(clips.open_clip(arguments.input, info), arguments.seed, settings, clip_settings)
    shape = f'{size[0]}x{size[1]}'
    for note in enhanced.notes:
        log.info(f'{arguments.input}: {note}')
    log.info(
        f'{arguments.input}: {info.height}x{info.width} to {shape}, {settings.num_steps} step(s) of '
        f'{fv.stage2.name}, windows of {enhanced.windows.frames} frame(s)'
    )
    started = time.monotonic()
    comment = enhanced.metadata().to_json()  # loads the network, or says why it cannot be loaded
    if distributed.is_first_process():
        blocks = map(to_uint8, _with_bar(enhanced))
        count = write_clip(arguments.output, blocks, arguments.input, info, crf=arguments.crf, comment=comment)
    else:
        count = sum(map(len, enhanced.blocks()))
    seconds = time.monotonic() - started
    log.info(f'{arguments.output}: {shape}, {count} frame(s) in {seconds:.1f} s, {count / seconds:.2f} frames/s')


def _with_bar(enhanced: EnhancedClip) -> Iterator[np.ndarray]:
    """Shows a progress bar that counts blocks, one per window."""
    options = {'unit': 'window', 'mininterval': 0.1 if sys.stderr.isatty() else 10, 'dynamic_ncols': True}
    return iter(tqdm.tqdm(enhanced.blocks(), total=enhanced.num_windows, **options))


def _size(arguments: argparse.Namespace, info: decoding.VideoInfo, latent_spec: LatentSpec) -> tuple[int, int]:
    """Returns (height, width) of the output in pixels. Raises UsageError or ConfigError for an impossible one."""
    if arguments.size is not None:
        size = parse_size('--size', arguments.size)
        latent_spec.check_size('--size', size)
        return size
    scale = arguments.scale or SCALE
    with error_context(f'--scale={float(scale):g}: of {info.height}x{info.width}, ', error=UsageError):
        size = scaled_size((info.height, info.width), scale, arguments.fit, latent_spec)
    exact = scale * info.height, scale * info.width
    if size != exact:
        height, width = (f'{float(side):g}' for side in exact)
        rounded = f'rounded {"down" if arguments.fit == "crop" else "up"} to {size[0]}x{size[1]}'
        log.info(f'note: {height}x{width} is {rounded}, multiples of {latent_spec.pixel_multiple}')
    return size


COMMAND = Command('Enhances a video of any length and size with stage 2.', _add_flags, _run, (ENHANCE,))
