"""`sample clip`: video super-resolution of clips and images of any length and size, with stage 2."""

import argparse
import dataclasses
import logging
from collections.abc import Sequence

from fv_jax.core import files
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Parser, UsageError, override_settings, parse_size, path_flag
from fv_jax.core.output_paths import check_output_file, check_output_folder
from fv_jax.data.images import IMAGE_SUFFIXES
from fv_jax.parallel import distributed
from fv_jax.sample import pipeline
from fv_jax.sample.flags import ENHANCE, Command, Overrides, add_file_flags, add_pipeline_flags
from fv_jax.sampling import clip_list, clip_outputs, clip_sources
from fv_jax.sampling.clip_list import ClipJob
from fv_jax.sampling.clip_outputs import ClipOutput
from fv_jax.sampling.clip_shots import ADAPTIVE_THRESHOLD
from fv_jax.sampling.clip_sources import ClipSource
from fv_jax.sampling.framing import scaled_size
from fv_jax.sampling.prompt_list import check_complete
from fv_jax.sampling.settings import OFFICIAL_SCALE, ClipSettings
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling
from fv_jax.sampling.windows import Windows

log = logging.getLogger(__name__)


def _add_flags(parser: Parser) -> None:
    add = parser.add_argument
    inputs = 'videos, images, numbered images such as frames_%%04d.png, or folders of them'
    add('--input', type=path_flag, nargs='+', required=True, help=inputs)
    output = 'of one input the mp4, the image, or numbered images such as out_%%04d.png; of several a folder'
    add('--output', type=path_flag, required=True, help=f'{output}, which is continued')
    add('--step', type=int, help='the step of the checkpoint (default: the newest)')
    add('--num-steps', type=int, help="sampler steps (default: those of the checkpoint's config)")
    add('--seed', type=int, default=0, help='of the noise (default: %(default)s)')
    size = parser.add_mutually_exclusive_group()
    scale = 'output size / input size (default: %(default)g)'
    size.add_argument('--scale', type=float, default=OFFICIAL_SCALE, help=scale)
    size.add_argument('--size', help='output size as HEIGHTxWIDTH, multiples of what the VAE allows')
    fit = 'of another aspect ratio: crop its centre, or pad with black bars; never stretched (default: %(default)s)'
    add('--fit', choices=('crop', 'pad'), default='crop', help=fit)
    add('--overlap', type=int, help='frames that neighbouring windows share (default: 5 of 17, 9 of 49)')
    shots = 'detector of cuts, which start a new window; none ignores them (default: %(default)s)'
    add('--shots', choices=('adaptive', 'content', 'none'), default='adaptive', help=shots)
    threshold = f'of the detector; lower finds more cuts (default: {ADAPTIVE_THRESHOLD:g}, or 27 for content)'
    add('--shot-threshold', type=float, help=threshold)
    add('--no-color-fix', dest='color_fix', action='store_false', help="do not keep the input's low frequencies")
    images = (
        'of a folder: the frames of a clip, or each by itself (default: auto, numbered ones of one size are frames)'
    )
    add('--images', choices=('auto', 'sequence', 'separate'), default='auto', help=images)
    add('--fps', type=float, default=clip_sources.FPS, help='of sequences of images (default: %(default)g)')
    codec = 'hevc10 is HEVC of 10 bits, without rounding to 8 bits (default: %(default)s)'
    add('--codec', choices=('h264', 'hevc10'), default='h264', help=codec)
    add_tiling_flags(parser)
    add_pipeline_flags(parser)
    add_file_flags(parser)


def _run(arguments: argparse.Namespace, overrides: Overrides) -> None:
    with error_context('--input=', error=UsageError):
        found = [clip_sources.find_sources(path, arguments.images, arguments.fps) for path in arguments.input]
    sources = [source for of_path in found for source in of_path]
    is_list = len(sources) > 1 or sources[0].path != arguments.input[0]
    outputs = _list_outputs(arguments, sources) if is_list else [_choose_output(arguments, sources[0])]
    distributed.check_same(str(sources), '--input: the processes see different files; name files that they share')
    job = _read_job(arguments, overrides, None if is_list else sources[0])
    if not is_list:
        job.enhance(sources[0], outputs[0])
        return
    existing = clip_list.find_existing_clips(job, sources, outputs, arguments.overwrite)
    log.info(f'{len(sources)} clip(s), {len(existing)} exist already')
    check_complete(clip_list.enhance_clips(job, sources, outputs, existing))


def _read_job(arguments: argparse.Namespace, overrides: Overrides, only: ClipSource | None) -> ClipJob:
    """Opens the weights and reads the settings; checks them for the only source. Raises UsageError or ConfigError."""
    clip = None
    if only is not None:
        with error_context('--input=', error=UsageError):
            clip, _ = only.open()
    fv = pipeline.open_pipeline(arguments, step=arguments.step)
    with error_context('', error=UsageError):
        spec = fv.stage2.latent_spec
    settings = override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    size = None if arguments.size is None else parse_size('--size', arguments.size)
    steps = arguments.num_steps or settings.num_steps
    settings = dataclasses.replace(settings, num_steps=steps, size=size, scale=arguments.scale)
    if (tiling := read_tiling(arguments, spec)) is not None:
        settings = dataclasses.replace(settings, tile_size=tiling.tile_size, tile_overlap=tiling.tile_overlap)
    if size is not None:
        spec.check_size('--size', size)
    elif clip is not None:
        with error_context(f'--scale={arguments.scale:g}: of {clip.size[0]}x{clip.size[1]}, ', error=UsageError):
            scaled_size(clip.size, arguments.scale, arguments.fit, spec)
    fv.stage2.stage.with_sampler_config(settings)
    Windows.create(fv.stage2.window_frames, arguments.overlap, spec)
    clip_settings = ClipSettings(
        overlap=arguments.overlap,
        shots=arguments.shots,
        shot_threshold=arguments.shot_threshold,
        color_fix=arguments.color_fix,
        fit=arguments.fit,
    )
    return ClipJob(fv, arguments.seed, settings, clip_settings, arguments.codec, arguments.crf)


def _choose_output(arguments: argparse.Namespace, source: ClipSource) -> ClipOutput:
    """Returns the output of one source. Raises UsageError if it cannot be written."""
    path, overwrite = arguments.output, arguments.overwrite
    with error_context('--output=', error=UsageError):
        output = clip_outputs.choose_output(path, source)
    require(not files.is_same(path, source.path), f'--output={path}: is the input', UsageError)
    if output.kind == 'folder':
        check_output_folder(path, overwrite)
    else:
        check_output_file(path, path.suffix.lower(), overwrite)
    numbered = output.find_existing()
    exists = f'--output={path}: {numbered} already exists; choose another name or pass --overwrite'
    require(output.kind != 'pattern' or overwrite or numbered is None, exists, UsageError)
    return output


def _list_outputs(arguments: argparse.Namespace, sources: Sequence[ClipSource]) -> list[ClipOutput]:
    """Returns the outputs of several sources, in a folder. Raises UsageError if it cannot be written."""
    folder = arguments.output
    known = folder.suffix.lower() in (clip_outputs.VIDEO, *IMAGE_SUFFIXES) and not folder.is_dir()
    require(not known, f'--output={folder}: {len(sources)} clip(s) are enhanced; name a folder', UsageError)
    check_output_folder(folder, overwrite=True)  # what exists is compared later
    for path in arguments.input:
        inside = files.is_same(folder, path) or files.is_inside(folder, path)
        require(not inside, f'--output={folder}: is in the folder of the input {path}; choose another', UsageError)
    with error_context('--input=', error=UsageError):
        return clip_outputs.outputs_in_folder(folder, sources)


COMMAND = Command('Enhances videos and images of any length and size with stage 2.', _add_flags, _run, (ENHANCE,))
