"""From prompts to previews to videos, and clips enhanced: `python -m fv_jax.sample`.

    --prompt "a ladybug moves over a beach" --output RUN     a preview, in RUN/0 (--prompts FILE: one for each line)
    --enhance RUN/0 RUN/3                                    high resolution, from what is stored there: RUN/0/video.mp4
    --prompt "..." --output RUN --yes                        both in one go
    --repeat video.mp4 --output again.mp4                    the same again, from what is written in the mp4
    --input clip.mp4 --checkpoint RUN --output out.mp4       a clip of any length and size, enhanced by a second stage

Weights: `--official FOLDER` (stage1.pt, stage2.pt, 3d-vae.pt, t5-v1_1-xxl), `--checkpoint FOLDER` (a folder with runs
stage1 and stage2 in it, or both runs themselves), or the small ones in the package. Any setting of a stage can be
given: `--stage1.num_steps=25`, `--stage2.guidance_scale=10`, `--stage2.numerics=official`.

Exit codes: 0 written; 2 wrong usage, nothing was done; 1 it failed; 130 interrupted. Files and folders appear (or are
replaced) only when they are complete.
"""

import argparse
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import tqdm

from fv_jax import api
from fv_jax.checkpoints.manager import CheckpointError, Checkpoints
from fv_jax.core import config as config_lib
from fv_jax.core import exit_codes, throughput
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import Override, Parser, UsageError, override, parse_size
from fv_jax.core.commands import run_command
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.data.video import video_io
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.models.vae_tiling import Tiling
from fv_jax.planning import step_cost
from fv_jax.sampling import batch, metadata, preview_store, prompts
from fv_jax.sampling.clip_enhancer import Enhancer, enhance, jit_transport
from fv_jax.sampling.clip_writer import write_clip
from fv_jax.sampling.metadata import Origin
from fv_jax.sampling.results import Stored
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.sampling.tiling_flags import add_tiling_flags, read_tiling
from fv_jax.sampling.windows import Windows
from fv_jax.stages.super_res import SuperRes
from fv_jax.text.encoder import TextConfig
from fv_jax.weights import trained_runs
from fv_jax.weights.text_encoders import CHOICES

T = TypeVar('T')

log = logging.getLogger('fv_jax.sample')

SCALE = Fraction(4)
SUFFIX = '.mp4'
MAX_CRF = 51
GROUPS = ('stage1', 'stage2')
_WEIGHTS = ('official', 'checkpoint', 'text', 'dtype')
_FILE = ('output', 'overwrite', 'fps', 'crf')
_PROMPT = (*_WEIGHTS, *_FILE, 'seed', 'variants', 'yes', 'batch')
_WINDOWS = ('overlap', 'tile_size', 'tile_overlap')
# What each mode takes beside itself.
MODES = {
    'prompt': _PROMPT,
    'prompts': _PROMPT,
    'enhance': (*_WEIGHTS, *_FILE, 'seed', 'batch'),
    'repeat': (*_WEIGHTS, 'output', 'overwrite'),
    'input': ('checkpoint', 'output', 'overwrite', 'crf', 'seed', 'num_steps', 'scale', 'size', 'step', *_WINDOWS),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command(
        'sample',
        _sample,
        argv,
        errors={CheckpointError: exit_codes.USAGE},
        interrupted='interrupted; nothing was written but what is complete',
    )


def _sample(argv: Sequence[str]) -> int:
    mode, arguments, overrides = _parse(argv)
    _check(mode, arguments)
    _RUN[mode](arguments, overrides)
    return 0


# --- what was asked for ---


def _parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace, dict[str, list[Override]]]:
    parser = Parser('python -m fv_jax.sample', 'From prompts to previews to videos, and small clips made large.')
    parser.epilog = 'A setting of a stage: --stage1.FIELD=VALUE, --stage2.FIELD=VALUE.'
    _add_modes(parser)
    _add_flags(parser)
    arguments, overrides = parser.parse_with_overrides(argv, ('config', *GROUPS))
    if found := overrides.pop('config'):
        raise UsageError(f'--config.{found[0][0]}: a checkpoint carries its config, which cannot be changed here')
    (mode,) = [mode for mode in MODES if getattr(arguments, mode) is not None]
    given = {name for name, value in vars(arguments).items() if not (value is None or value is False)} - set(MODES)
    if stray := sorted(given - set(MODES[mode])):
        raise UsageError(f'{_flag(stray[0])}: means nothing with --{mode}, which takes {_listed(MODES[mode])}')
    if mode in ('repeat', 'input') and (group := next((g for g in GROUPS if overrides[g]), None)):
        raise UsageError(f'--{group}.{overrides[group][0][0]}: means nothing with --{mode}')
    if mode == 'enhance' and overrides['stage1']:
        raise UsageError(f'--stage1.{overrides["stage1"][0][0]}: means nothing with --enhance; the previews are made')
    return mode, arguments, overrides


def _add_modes(parser: Parser) -> None:
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument('--prompt', help='what is to be seen')
    mode.add_argument('--prompts', type=Path, help='a text file with a prompt on each line')
    mode.add_argument('--enhance', type=Path, nargs='+', help='stored previews, RUN/0 RUN/3')
    mode.add_argument('--repeat', type=Path, help='an mp4 that this command made')
    mode.add_argument('--input', type=Path, help='a clip')


def _add_flags(parser: Parser) -> None:
    def number(text: str) -> Fraction:
        return Fraction(str(float(text)))  # 320 times 1.15 is 368 pixels, not 367.99999999999994

    add = parser.add_argument
    add('--output', type=Path, help='the folder of the previews, or the mp4 to write')
    add('--overwrite', action='store_true', help='replace the output if it is there')
    add('--official', type=Path, help='a folder with stage1.pt, stage2.pt, 3d-vae.pt and t5-v1_1-xxl')
    add('--checkpoint', nargs='+', help='a folder with runs stage1 and stage2 in it, or runs; --input takes one run')
    add('--text', help=f'the text encoder: {CHOICES} (default: the one that the weights name)')
    add('--dtype', choices=('bfloat16', 'float32'), help='of the official networks (default: bfloat16)')
    add('--yes', action='store_true', help='enhance all previews at once')
    add('--seed', type=int, help='of the first preview, or of the noise (default: 0; of --enhance: as previewed)')
    add('--variants', type=int, help='previews of each prompt (default: 1)')
    add('--batch', type=int, help='how many go at once (default: as many as are small enough)')
    add('--fps', type=float, help=f'frames a second (default: {metadata.FPS:g})')
    add('--crf', type=float, help=f"x264's rate factor, less is better (default: {video_io.DEFAULT_CRF})")
    clip = parser.add_argument_group('of --input')
    clip.add_argument('--num-steps', type=int, help="sampler steps (the checkpoint's config says, if this does not)")
    size = clip.add_mutually_exclusive_group()
    size.add_argument('--scale', type=number, help=f'output size / input size (default: {SCALE})')
    size.add_argument('--size', help='output size as HEIGHTxWIDTH, such as the VAE allows')
    clip.add_argument('--step', type=int, help='which checkpoint of the run (default: the newest)')
    clip.add_argument('--overlap', type=int, help='frames that windows share (default: 5 of 17, 9 of 49)')
    add_tiling_flags(clip)


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _listed(names: Sequence[str]) -> str:
    return ', '.join(map(_flag, names))


def _check(mode: str, arguments: argparse.Namespace) -> None:
    """What can be told from the arguments and the file system alone."""
    for name in ('num_steps', 'variants', 'batch'):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise UsageError(f'{_flag(name)}={getattr(arguments, name)}: must be at least 1')
    for name, limit in (('crf', MAX_CRF), ('seed', prompts.MAX_SEED)):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value <= limit:
            raise UsageError(f'--{name}={value}: must be between 0 and {limit}')
    for name in ('scale', 'fps'):
        if getattr(arguments, name) is not None and not 0 < getattr(arguments, name) < math.inf:
            raise UsageError(f'--{name}={float(getattr(arguments, name)):g}: must be positive and finite')
    if arguments.output is None and mode != 'enhance':
        raise UsageError(f'--output: is missing; --{mode} needs it')
    if mode in ('repeat', 'input'):
        _check_file(arguments.output, arguments.overwrite)
    elif mode != 'enhance':
        _check_run(arguments.output, arguments.overwrite)


def _check_file(output: Path, overwrite: bool, flag: str = '--output=') -> None:
    """That an mp4 may be written there."""
    require(output.suffix.lower() == SUFFIX, f'{flag}{output}: must end in {SUFFIX}', UsageError)
    require(output.absolute().parent.is_dir(), f'{flag}{output}: there is no folder {output.parent}', UsageError)
    require(not output.is_dir(), f'{flag}{output}: is a folder', UsageError)
    if output.exists() and not overwrite:
        raise UsageError(f'{flag}{output}: is there already; choose another name or give --overwrite')
    _check_writable(output.absolute().parent, f'{flag}{output}')


def _check_run(output: Path, overwrite: bool) -> None:
    """That a folder of previews may be written there."""
    if output.exists() and not output.is_dir():
        raise UsageError(f'--output={output}: is a file; name a folder')
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UsageError(f'--output={output}: is not empty; choose another folder or give --overwrite')
    folder = output if output.is_dir() else output.absolute().parent
    require(folder.is_dir(), f'--output={output}: there is no folder {output.parent}', UsageError)
    _check_writable(folder, f'--output={output}')


def _check_writable(folder: Path, what: str) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(f'{what}: cannot be written ({error.strerror})') from None


def _usage(flag: str, check: Callable[[], T]) -> T:
    """What `check` returns; its ValueError as a wrong use of the flag."""
    with error_context(flag, error=UsageError):
        return check()


def _open_pipeline(arguments: argparse.Namespace, origin: Origin | None = None) -> api.FlashVideo:
    """With the weights that the flags name; else with those of `origin`; else with the small ones."""
    if arguments.official and arguments.checkpoint:
        raise UsageError('--official and --checkpoint: give one of them')
    text = TextConfig(arguments.text) if arguments.text else None
    if arguments.official:
        origin = Origin(str(arguments.official), dtype=arguments.dtype or 'bfloat16', text=text)
    elif arguments.checkpoint or origin is None:
        origin = Origin(checkpoints=tuple(arguments.checkpoint or (api.EMBEDDED,)), text=text)
    fv = api.FlashVideo.from_origin(origin)
    for note in fv.notes:
        log.info(f'note: {note}')
    return fv


def _settings(settings: T, group: str, overrides: list[Override]) -> T:
    values = config_lib.to_dict(settings)
    for path, text in overrides:
        override(values, path, text, f'--{group}')
    return config_lib.build(type(settings), values, f'--{group}')


def _file(arguments: argparse.Namespace) -> batch.File:
    crf = video_io.DEFAULT_CRF if arguments.crf is None else arguments.crf
    return batch.File(arguments.fps or metadata.FPS, crf)


# --- prompts and previews ---


def _preview(arguments: argparse.Namespace, overrides: dict[str, list[Override]]) -> None:
    if arguments.prompts:
        texts = _usage('--prompts=', lambda: prompts.read_prompts(arguments.prompts))
    else:
        texts = [_usage('--', lambda: prompts.check_prompt(arguments.prompt))]
    texts = _usage('--prompts: ', lambda: prompts.check_prompts(texts))
    rows = _usage('--', lambda: batch.Rows.of(texts, arguments.seed or 0, arguments.variants or 1))
    fv, file = _open_pipeline(arguments), _file(arguments)
    preview = _settings(fv.preview_settings, 'stage1', overrides['stage1'])
    final = _settings(fv.enhance_settings, 'stage2', overrides['stage2'])
    fv.check(preview, final if arguments.yes else None)
    folders = batch.make_previews(fv, rows, arguments.output, preview, arguments.batch, file)
    _report_previewing(fv, preview, len(folders))
    if arguments.yes:
        stored = [preview_store.load(folder) for folder in folders]
        outputs = [folder / preview_store.VIDEO for folder in folders]
        batch.make_videos(fv, stored, outputs, final, None, arguments.batch, file)
        _report_enhancing(fv, final, stored)
    else:
        log.info(f'to enhance the ones you like: python -m fv_jax.sample --enhance {folders[0]} ...')


def _report_previewing(fv: api.FlashVideo, settings: PreviewSettings, rows: int) -> None:
    _report_speed(fv, 'preview', step_cost.preview(fv.first, settings, rows))


def _report_enhancing(fv: api.FlashVideo, settings: EnhanceSettings, stored: Sequence[Stored]) -> None:
    vae, latents = fv.vae_of(stored[0]).config, stored[0].latents.shape[:3]
    done = step_cost.enhancement(fv.second, settings, vae, latents, len(stored))
    _report_speed(fv, 'enhance', done)


def _report_speed(fv: api.FlashVideo, name: str, done: throughput.StepCost) -> None:
    seconds = fv.clock.running_s[name]
    said = throughput.format_metrics(throughput.throughput_metrics(done, seconds) | throughput.peak_memory())
    log.info(f'{name}: {said}, in {seconds:.1f} s beside {fv.clock.compiling_s[name]:.1f} s of compiling')


def _enhance(arguments: argparse.Namespace, overrides: dict[str, list[Override]]) -> None:
    folders = arguments.enhance
    if arguments.output is not None and len(folders) > 1:
        raise UsageError(f'--output={arguments.output}: {len(folders)} previews are enhanced; leave it out')
    outputs = [arguments.output or folder / preview_store.VIDEO for folder in folders]
    stored = [_usage('--enhance=', lambda folder=folder: preview_store.load(folder)) for folder in folders]
    for output in outputs:
        _check_file(output, arguments.overwrite, '--output=' if arguments.output else '')
    origins = {preview.record.origin for preview in stored}
    if len(origins) > 1 and not (arguments.official or arguments.checkpoint):
        raise UsageError('--enhance: the previews were made with different weights; name some, or enhance them apart')
    fv = _open_pipeline(arguments, stored[0].record.origin)
    settings = _settings(fv.enhance_settings, 'stage2', overrides['stage2'])
    batch.make_videos(fv, stored, outputs, settings, arguments.seed, arguments.batch, _file(arguments))
    _report_enhancing(fv, settings, stored)


def _repeat(arguments: argparse.Namespace, overrides: dict[str, list[Override]]) -> None:
    del overrides
    text = _usage('--repeat=', lambda: video_io.read_comment(arguments.repeat))
    made = _usage(f'--repeat={arguments.repeat}: ', lambda: metadata.from_json(text))
    again = batch.repeat(_open_pipeline(arguments, made.origin), made)
    again.save(arguments.output, fps=made.fps, crf=made.crf)
    log.info(f'{arguments.output}: {prompts.shown(made.preview.prompt)}, again')


# --- a clip ---


def _clip(arguments: argparse.Namespace, overrides: dict[str, list[Override]]) -> None:
    del overrides
    if arguments.checkpoint is None or len(arguments.checkpoint) != 1:
        raise UsageError('--checkpoint: --input needs one, the work directory of a run of stage 2')
    run = Path(arguments.checkpoint[0])
    info = _usage('--input=', lambda: video_io.probe(arguments.input))
    step, window_frames, latent_spec = _peek(run, arguments.step)
    size, tiling = _size(arguments, info, latent_spec), read_tiling(arguments, latent_spec)
    windows = Windows.of(window_frames, arguments.overlap, latent_spec)
    stage, enhancer = _open(run, step, arguments.num_steps, tiling)
    shape = f'{size[0]}x{size[1]}'
    log.info(
        f'{arguments.input}: {info.height}x{info.width} to {shape}, {stage.config.num_steps} step(s) of checkpoint '
        f'{step}, windows of {windows.frames} frame(s)'
    )
    started = time.monotonic()
    frames = (frame.pixels() for frame in video_io.iter_frames(arguments.input))
    blocks = enhance(enhancer, frames, size, key=jax.random.key(arguments.seed or 0), windows=windows)
    file = _file(arguments)
    bar = _with_bar(blocks, info, windows)
    count = write_clip(arguments.output, bar, arguments.input, info, crf=file.crf)
    seconds = time.monotonic() - started
    log.info(f'{arguments.output}: {shape}, {count} frame(s) in {seconds:.1f} s, {count / seconds:.2f} frames/s')


def _with_bar(blocks: Iterator[np.ndarray], info: video_io.VideoInfo, windows: Windows) -> Iterator[np.ndarray]:
    """One block is one window."""
    total = windows.count(info.frames) if info.frames else None
    interval = 0.1 if sys.stderr.isatty() else 10
    return iter(tqdm.tqdm(blocks, total=total, unit='window', mininterval=interval, dynamic_ncols=True))


def _size(arguments: argparse.Namespace, info: video_io.VideoInfo, latent_spec: LatentSpec) -> tuple[int, int]:
    """(height, width) of the output."""
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
    """The checkpoint's step, the model's frames and its VAE's latents, before anything large is read."""
    meta = Checkpoints(run, read_only=True).meta(step)
    kind, frames = (meta['config'].get(group, {}).get(name) for group, name in (('stage', 'kind'), ('data', 'frames')))
    require(kind == 'superres', f"--checkpoint={run}: holds stage {kind!r}; only 'superres' can enhance", UsageError)
    if not isinstance(frames, int):
        raise ValueError(f'{run}: its configuration does not say how many frames its clips have (data.frames)')
    return meta['step'], frames, trained_runs.latent_spec(trained_runs.stage_config_of(run, meta))


def _open(path: Path, step: int, num_steps: int | None, tiling: Tiling | None) -> tuple[SuperRes, Enhancer]:
    """The stage, with the number of steps asked for, and its networks. Nothing is compiled yet."""
    run = trained_runs.open_run(path, step)
    for note in run.notes:
        log.info(f'note: {note}')
    stage = run.stage.sampled_with(num_steps=num_steps)
    model = run.network.model(**run.params)
    return stage, Enhancer(jit_transport(stage, model, rules=SINGLE_DEVICE), run.vae, tiling)


_RUN = {'prompt': _preview, 'prompts': _preview, 'enhance': _enhance, 'repeat': _repeat, 'input': _clip}

if __name__ == '__main__':
    sys.exit(main())
