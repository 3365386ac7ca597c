"""Generates previews and videos from text, and enhances clips: `python -m fv_jax.sample COMMAND`.

    preview --prompt "a ladybug moves over a beach" --output RUN     previews, RUN/0, RUN/1, ... (--prompts FILE: many)
    enhance RUN/0 RUN/3                                              high-resolution videos of them, RUN/0/video.mp4
    clip --checkpoint RUN --input clip.mp4 --output out.mp4          video super-resolution of a clip, with stage 2
    reproduce video.mp4 --output again.mp4                           the same video again, from the metadata in the mp4

`preview` is assumed where the first argument is a flag; with --enhance-all it enhances every preview as well.
`COMMAND --help` lists the flags of a command.

Weights: `--official FOLDER` (stage1.pt, stage2.pt, 3d-vae.pt, t5-v1_1-xxl), `--checkpoint FOLDER` (a folder that holds
the runs stage1 and stage2, or both runs themselves), or by default the small weights in the package. Any setting of a
stage can be set: `--stage1.num_steps=25`, `--stage2.guidance_scale=10`, `--stage2.numerics=official`.

Exit codes: 0 success; 2 wrong usage, nothing was done; 1 failure; 130 interrupted. Files and folders are written
atomically: they appear, or are replaced, when they are complete.
"""

import argparse
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import numpy as np
import tqdm

from fv_jax import api
from fv_jax.checkpoints.manager import CheckpointError, Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes, throughput
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Override, Parser, UsageError, override, parse_size, path_flag, path_or_name_flag
from fv_jax.core.commands import run_command
from fv_jax.core.devices import check_devices
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.output_paths import check_output_file, check_output_folder
from fv_jax.data.video import video_io
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.vae_tiling import Tiling
from fv_jax.planning import step_cost
from fv_jax.sampling import batch, metadata, preview_store, prompts
from fv_jax.sampling.clip_enhancer import Enhancer, enhance_clip, jit_enhance_latents
from fv_jax.sampling.clip_writer import write_clip
from fv_jax.sampling.metadata import WeightsOrigin
from fv_jax.sampling.results import StoredPreview
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling
from fv_jax.sampling.windows import Windows
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import EnhancementStage
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import trained_runs
from fv_jax.weights.text_encoders import CHOICES

T = TypeVar('T')

log = logging.getLogger('fv_jax.sample')

PROG = 'python -m fv_jax.sample'
SCALE = Fraction(4)
SUFFIX = '.mp4'
MAX_CRF = 51
PREVIEW, ENHANCE = api.STAGES  # the groups of settings, --stage1.FIELD=VALUE and --stage2.FIELD=VALUE
Overrides = Mapping[str, list[Override]]  # of the settings, by stage


class Command(NamedTuple):
    """A subcommand. stages: those whose settings `--STAGE.FIELD=VALUE` may set."""

    description: str
    add_flags: Callable[[Parser], None]
    run: Callable[[argparse.Namespace, Overrides], None]
    stages: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command(
        'sample',
        _sample,
        argv,
        errors={CheckpointError: exit_codes.USAGE},
        interrupted='interrupted; only complete files were written',
    )


def _sample(argv: Sequence[str]) -> int:
    command, arguments, overrides = _parse(argv)
    _check_ranges(arguments)
    check_devices()
    command.run(arguments, overrides)
    return 0


# --- arguments ---


def _parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace, Overrides]:
    """Returns the subcommand, its arguments and the overrides of its settings. Raises UsageError."""
    listed = ', '.join(_COMMANDS)
    require(argv, f'COMMAND is missing; give one of {listed}', UsageError)
    if argv[0] in ('-h', '--help'):
        parser = Parser(PROG, __doc__)
        parser.usage, parser.formatter_class = f'{PROG} COMMAND ...', argparse.RawDescriptionHelpFormatter
        parser.parse_args(argv)  # prints the help and exits
    name, flags = ('preview', argv) if argv[0].startswith('-') else (argv[0], argv[1:])
    require(
        name in _COMMANDS, f'{name}: unknown command; {config_lib.did_you_mean(name, _COMMANDS)} ({listed})', UsageError
    )
    command = _COMMANDS[name]
    parser = Parser(f'{PROG} {name}', command.description)
    if command.stages:
        parser.epilog = f'Settings: {", ".join(f"--{stage}.FIELD=VALUE" for stage in command.stages)}.'
    command.add_flags(parser)
    arguments, overrides = parser.parse_with_overrides(flags, ('config', *command.stages))
    if found := overrides.pop('config'):
        raise UsageError(f'--config.{found[0][0]}: a checkpoint carries its config, which cannot be changed here')
    return command, arguments, overrides


def _add_preview_flags(parser: Parser) -> None:
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument('--prompt', help='the text prompt')
    texts.add_argument('--prompts', type=path_flag, help='a text file with one prompt per line')
    add = parser.add_argument
    add('--output', type=path_flag, required=True, help='the folder of the previews')
    add('--num-samples', type=int, default=1, help='previews of each prompt (default: %(default)s)')
    add('--seed', type=int, default=0, help='of the first preview (default: %(default)s)')
    add('--enhance-all', action='store_true', help='enhance every preview as well')
    _add_batch_flags(parser)
    _add_weights_flags(parser)


def _add_enhance_flags(parser: Parser) -> None:
    add = parser.add_argument
    add('folders', metavar='FOLDER', type=path_flag, nargs='+', help='a stored preview, such as RUN/0')
    add('--output', type=path_flag, help='the mp4 to write, for one preview (default: FOLDER/video.mp4)')
    add('--seed', type=int, help="of the noise (default: the preview's)")
    _add_batch_flags(parser)
    _add_weights_flags(parser)


def _add_reproduce_flags(parser: Parser) -> None:
    parser.add_argument('video', metavar='VIDEO', type=path_flag, help='an mp4 that `preview` or `enhance` wrote')
    parser.add_argument('--output', type=path_flag, required=True, help='the mp4 to write')
    _add_overwrite_flag(parser)
    _add_weights_flags(parser)


def _add_clip_flags(parser: Parser) -> None:
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
    _add_file_flags(parser)


def _add_batch_flags(parser: Parser) -> None:
    parser.add_argument('--batch-size', type=int, help='default: as many videos as fit into 10,000 tokens')
    parser.add_argument('--fps', type=float, default=metadata.FPS, help='frames per second (default: %(default)g)')
    _add_file_flags(parser)


def _add_file_flags(parser: Parser) -> None:
    help = 'x264 rate factor, lower is better (default: %(default)s)'
    parser.add_argument('--crf', type=float, default=video_io.DEFAULT_CRF, help=help)
    _add_overwrite_flag(parser)


def _add_overwrite_flag(parser: Parser) -> None:
    parser.add_argument('--overwrite', action='store_true', help='replace the output if it exists')


def _add_weights_flags(parser: Parser) -> None:
    add = parser.add_argument
    add('--official', type=path_flag, help='a folder with stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl')
    runs = 'a folder that holds the runs stage1 and stage2, or the runs themselves'
    add('--checkpoint', type=path_or_name_flag, nargs='+', help=runs)
    add('--text', type=path_or_name_flag, help=f'the text encoder: {CHOICES} (default: the one that the weights name)')
    add('--dtype', choices=('bfloat16', 'float32'), help='of the official networks (default: bfloat16)')


def _check_ranges(arguments: argparse.Namespace) -> None:
    """Raises UsageError for a number that is out of range."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    for name in ('num_steps', 'num_samples', 'batch_size'):
        if given.get(name, 1) < 1:
            raise UsageError(f'--{name.replace("_", "-")}={given[name]}: must be at least 1')
    for name, limit in (('crf', MAX_CRF), ('seed', prompts.MAX_SEED)):
        if not 0 <= given.get(name, 0) <= limit:
            raise UsageError(f'--{name}={given[name]}: must be between 0 and {limit}')
    for name in ('scale', 'fps'):
        if not 0 < given.get(name, 1) < math.inf:
            raise UsageError(f'--{name}={float(given[name]):g}: must be positive and finite')


# --- previews and videos of prompts ---


def _open_pipeline(arguments: argparse.Namespace, origin: WeightsOrigin | None = None) -> api.FlashVideo:
    """Opens the weights that the flags name; without such flags those of `origin`, or else the embedded ones."""
    if arguments.official and arguments.checkpoint:
        raise UsageError('--official and --checkpoint: give one of them')
    text = TextConfig(arguments.text) if arguments.text else None
    if arguments.official:
        origin = WeightsOrigin(str(arguments.official), dtype=arguments.dtype or 'bfloat16', text=text)
    elif arguments.checkpoint or origin is None:
        origin = WeightsOrigin(checkpoints=tuple(arguments.checkpoint or (api.EMBEDDED,)), text=text)
    fv = api.FlashVideo.from_origin(origin)
    for note in fv.notes:
        log.info(f'note: {note}')
    return fv


def _override_settings(settings: T, stage: str, overrides: list[Override]) -> T:
    values = config_lib.to_dict(settings)
    for path, text in overrides:
        override(type(settings), values, path, text, f'--{stage}')
    return config_lib.build(type(settings), values, f'--{stage}')


def _preview(arguments: argparse.Namespace, overrides: Overrides) -> None:
    check_output_folder(arguments.output, arguments.overwrite)
    if arguments.prompts:
        with error_context('--prompts=', error=UsageError):
            texts = prompts.read_prompts(arguments.prompts)
    else:
        with error_context('--', error=UsageError):
            texts = [prompts.check_prompt(arguments.prompt)]
    with error_context('--prompts: ', error=UsageError):
        texts = prompts.check_prompts(texts)
    with error_context('--', error=UsageError):
        requests = batch.PromptBatch.create(texts, arguments.seed, arguments.num_samples)
    fv, file = _open_pipeline(arguments), batch.Mp4Options(arguments.fps, arguments.crf)
    preview = _override_settings(fv.preview_settings, PREVIEW, overrides[PREVIEW])
    final = _override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    fv.check(preview, final if arguments.enhance_all or overrides[ENHANCE] else None)
    folders = batch.generate_previews(fv, requests, arguments.output, preview, arguments.batch_size, file)
    _report_previewing(fv, preview, len(folders))
    if arguments.enhance_all:
        stored = [preview_store.load(folder) for folder in folders]
        outputs = [folder / preview_store.VIDEO for folder in folders]
        batch.enhance_previews(fv, stored, outputs, final, None, arguments.batch_size, file)
        _report_enhancing(fv, final, stored)
    else:
        log.info(f'to enhance the ones you like: {PROG} enhance {folders[0]} ...')


def _report_previewing(fv: api.FlashVideo, settings: PreviewSettings, num_clips: int) -> None:
    _report_speed(fv, 'preview', step_cost.preview_cost(fv.stage1, settings, num_clips))


def _report_enhancing(fv: api.FlashVideo, settings: EnhanceSettings, stored: Sequence[StoredPreview]) -> None:
    vae, latents = fv.find_vae(stored[0]).config, stored[0].latents.shape[:3]
    done = step_cost.enhancement_cost(fv.stage2, settings, vae, latents, len(stored))
    _report_speed(fv, 'enhance', done)


def _report_speed(fv: api.FlashVideo, name: str, done: throughput.StepCost) -> None:
    seconds = fv.clock.running_s[name]
    metrics = throughput.format_metrics(throughput.throughput_metrics(done, seconds) | throughput.peak_memory())
    log.info(f'{name}: {metrics}, in {seconds:.1f} s (compile time {fv.clock.compiling_s[name]:.1f} s)')


def _enhance(arguments: argparse.Namespace, overrides: Overrides) -> None:
    folders = arguments.folders
    if arguments.output is not None and len(folders) > 1:
        raise UsageError(f'--output={arguments.output}: {len(folders)} previews are enhanced; remove it')
    outputs = [arguments.output or folder / preview_store.VIDEO for folder in folders]
    with error_context('', error=UsageError):
        stored = [preview_store.load(folder) for folder in folders]
    for output in outputs:
        check_output_file(output, SUFFIX, arguments.overwrite, '--output=' if arguments.output else '')
    origins = {preview.metadata.origin for preview in stored}
    if len(origins) > 1 and not (arguments.official or arguments.checkpoint):
        raise UsageError(
            f'{folders[0]}, ...: the previews were made with different weights; pass --official or --checkpoint, or '
            'enhance them separately'
        )
    fv = _open_pipeline(arguments, stored[0].metadata.origin)
    settings = _override_settings(fv.enhance_settings, ENHANCE, overrides[ENHANCE])
    file = batch.Mp4Options(arguments.fps, arguments.crf)
    batch.enhance_previews(fv, stored, outputs, settings, arguments.seed, arguments.batch_size, file)
    _report_enhancing(fv, settings, stored)


def _reproduce(arguments: argparse.Namespace, overrides: Overrides) -> None:
    del overrides
    check_output_file(arguments.output, SUFFIX, arguments.overwrite)
    with error_context('', error=UsageError):
        text = video_io.read_comment(arguments.video)
    with error_context(f'{arguments.video}: ', error=UsageError):
        recorded = metadata.from_json(text)
    result = batch.reproduce(_open_pipeline(arguments, recorded.origin), recorded)
    result.save(arguments.output, fps=recorded.fps, crf=recorded.crf)
    log.info(f'{arguments.output}: {prompts.quote_prompt(recorded.preview.prompt)}, reproduced')


# --- clips ---


def _clip(arguments: argparse.Namespace, overrides: Overrides) -> None:
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
    model = run.network.model(**run.params)
    return stage, Enhancer(jit_enhance_latents(stage, model, context=SINGLE_DEVICE), run.vae, tiling)


_COMMANDS = {
    'preview': Command(
        'Generates low-resolution previews of prompts.', _add_preview_flags, _preview, (PREVIEW, ENHANCE)
    ),
    'enhance': Command('Enhances stored previews to high-resolution videos.', _add_enhance_flags, _enhance, (ENHANCE,)),
    'clip': Command('Enhances a video of any length and size with stage 2.', _add_clip_flags, _clip),
    'reproduce': Command('Generates an mp4 again from the metadata in it.', _add_reproduce_flags, _reproduce),
}

if __name__ == '__main__':
    sys.exit(main())
