"""Enhances a clip: `python -m fv_jax.sample --input=clip.mp4 --checkpoint=RUN --output=out.mp4`.

RUN is the work directory of a training run of stage 2 ('superres'); its checkpoint carries the configuration. The clip
may have any length and size: longer ones are enhanced in overlapping windows, frame by frame from the input file and
to the output file. The rate is the input's, and its audio is copied.

Exit codes: 0 written; 2 wrong usage, nothing was done; 1 it failed; 130 interrupted. The output file appears (or is
replaced) only when it is complete.
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import tqdm

from fv_jax import api
from fv_jax.checkpoints.manager import CheckpointError, Checkpoints
from fv_jax.core.command_line import Parser, UsageError, one_line, quiet_libraries
from fv_jax.core.config import ConfigError
from fv_jax.core.resize import check_multiple, output_size
from fv_jax.data import video_io
from fv_jax.inference.pipeline import Enhancer, enhance, jit_transport
from fv_jax.inference.windows import Windows
from fv_jax.kernels.attention import SINGLE_DEVICE
from fv_jax.stages.superres import SuperRes

SCALE = Fraction(4)
SUFFIX = '.mp4'
MAX_CRF = 51
MAX_SEED = 2**32 - 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except (UsageError, ConfigError, CheckpointError) as error:
        return _fail(error, 2)
    except (OSError, ValueError, jax.errors.JaxRuntimeError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail('interrupted; nothing was written', 130)


def _fail(error: object, code: int) -> int:
    print(f'sample: {one_line(error)}', file=sys.stderr)
    return code


def _main(argv: Sequence[str]) -> int:
    quiet_libraries()
    arguments = _parse(argv)
    info = _probe(arguments.input)
    size = _size(arguments, info)
    step, window_frames = _peek(arguments)
    windows = Windows.of(window_frames, arguments.overlap)
    stage, enhancer = _open(arguments, step)
    shape = f'{size[0]}x{size[1]}'
    _say(
        f'{arguments.input}: {info.height}x{info.width} to {shape}, {stage.config.num_steps} step(s) of checkpoint '
        f'{step}, windows of {windows.frames} frame(s)'
    )
    started = time.monotonic()
    frames = (frame.pixels() for frame in video_io.iter_frames(arguments.input))
    blocks = enhance(enhancer, frames, size, key=jax.random.key(arguments.seed), windows=windows)
    count = _write(arguments, info, _with_bar(blocks, info, windows))
    seconds = time.monotonic() - started
    _say(f'{arguments.output}: {shape}, {count} frame(s) in {seconds:.1f} s, {count / seconds:.2f} frames/s')
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _with_bar(blocks: Iterator[np.ndarray], info: video_io.VideoInfo, windows: Windows) -> Iterator[np.ndarray]:
    """One block is one window."""
    total = windows.count(info.frames) if info.frames else None
    interval = 0.1 if sys.stderr.isatty() else 10
    return iter(tqdm.tqdm(blocks, total=total, unit='window', mininterval=interval, dynamic_ncols=True))


# --- what was asked for ---


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    def number(text: str) -> Fraction:
        return Fraction(str(float(text)))  # 320 times 1.15 is 368 pixels, not 367.99999999999994

    parser = Parser('python -m fv_jax.sample', 'Enhances a clip with a trained second stage.')
    parser.epilog = None
    parser.add_argument('--input', type=Path, required=True, help='the clip')
    parser.add_argument('--checkpoint', type=Path, required=True, help='the work directory of a training run')
    parser.add_argument('--output', type=Path, required=True, help='the mp4 to write')
    parser.add_argument('--num-steps', type=int, help="solver steps (the checkpoint's config says, if this does not)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--scale', type=number, default=SCALE, help='output size / input size (default: %(default)s)')
    size.add_argument('--size', help='output size as HEIGHTxWIDTH, multiples of 16')
    parser.add_argument('--step', type=int, help='which checkpoint of the run (default: the newest)')
    parser.add_argument('--seed', type=int, default=0, help='of the noise (default: %(default)s)')
    parser.add_argument('--overlap', type=int, help='frames that windows share (default: 5 of 17, 9 of 49)')
    crf = video_io.DEFAULT_CRF
    parser.add_argument(
        '--crf', type=float, default=crf, help="x264's rate factor, less is better (default: %(default)s)"
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the output if it is there')
    arguments, overrides = parser.parse(argv)
    if overrides:
        raise UsageError(f'--config.{overrides[0][0]}: a checkpoint carries its config, which cannot be changed here')
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    """What can be told from the arguments and the file system alone."""
    if arguments.num_steps is not None and arguments.num_steps < 1:
        raise UsageError(f'--num-steps={arguments.num_steps}: must be at least 1')
    for name, value, limit in (('crf', arguments.crf, MAX_CRF), ('seed', arguments.seed, MAX_SEED)):
        if not 0 <= value <= limit:
            raise UsageError(f'--{name}={value}: must be between 0 and {limit}')
    if arguments.scale <= 0:
        raise UsageError(f'--scale={float(arguments.scale):g}: must be positive')
    output = arguments.output
    if output.suffix.lower() != SUFFIX:
        raise UsageError(f'--output={output}: must end in {SUFFIX}')
    if not output.parent.is_dir():
        raise UsageError(f'--output={output}: there is no folder {output.parent}')
    if output.is_dir():
        raise UsageError(f'--output={output}: is a folder')
    if output.exists() and not arguments.overwrite:
        raise UsageError(f'--output={output}: is there already; choose another name or give --overwrite')


def _probe(path: Path) -> video_io.VideoInfo:
    try:
        return video_io.probe(path)
    except ValueError as error:
        raise UsageError(f'--input={error}') from None


def _size(arguments: argparse.Namespace, info: video_io.VideoInfo) -> tuple[int, int]:
    """(height, width) of the output."""
    if arguments.size is not None:
        match = re.fullmatch(r'(\d+)x(\d+)', arguments.size)
        if match is None:
            raise UsageError(f'--size={arguments.size}: give HEIGHTxWIDTH, for example 1072x1920')
        height, width = (int(side) for side in match.groups())
        return check_multiple('--size: height', height), check_multiple('--size: width', width)
    try:
        size = output_size(info.height, info.width, arguments.scale)
    except ValueError as error:
        raise UsageError(f'{info.height}x{info.width} times {float(arguments.scale):g}: {error}') from None
    exact = arguments.scale * info.height, arguments.scale * info.width
    if size != exact:
        height, width = (f'{float(side):g}' for side in exact)
        _say(f'note: {height}x{width} is rounded down to {size[0]}x{size[1]}, multiples of 16')
    return size


# --- the checkpoint ---


def _peek(arguments: argparse.Namespace) -> tuple[int, int]:
    """The checkpoint's step and the model's frames, before anything large is read."""
    meta = Checkpoints(arguments.checkpoint, read_only=True).meta(arguments.step)
    kind = meta['config']['stage']['kind']
    if kind != 'superres':
        raise UsageError(f"--checkpoint={arguments.checkpoint}: holds stage {kind!r}; only 'superres' can enhance")
    return meta['step'], meta['config']['data']['frames']


def _open(arguments: argparse.Namespace, step: int) -> tuple[SuperRes, Enhancer]:
    """The stage, with the number of steps asked for, and its networks. Nothing is compiled yet."""
    run = api.open_run(arguments.checkpoint, step)
    stage = run.stage.sampled_with(num_steps=arguments.num_steps)
    model = run.network.model(**run.params)
    return stage, Enhancer(jit_transport(stage, model, rules=SINGLE_DEVICE), run.vae)


# --- the output ---


def _write(arguments: argparse.Namespace, info: video_io.VideoInfo, blocks: Iterator[np.ndarray]) -> int:
    """Writes the blocks of frames, and the audio; returns how many frames there were."""
    count = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal count
        for block in blocks:
            for frame in block:
                count += 1
                yield frame

    output, fps = arguments.output, info.fps or video_io.DEFAULT_FPS
    with _complete_or_nothing(output) as partial:
        # Told before the work, not after it.
        audio = info.has_audio and _can_hold_audio(partial, arguments.input, fps)
        video_io.encode(partial, frames(), fps, crf=arguments.crf)
        if audio:
            video_io.copy_audio(arguments.input, partial)
    return count


@contextlib.contextmanager
def _complete_or_nothing(output: Path) -> Iterator[Path]:
    """Where to write what becomes `output` at the end, if nothing goes wrong."""
    with tempfile.TemporaryDirectory(prefix=f'.{output.stem}.', dir=output.parent) as folder:
        yield (partial := Path(folder) / output.name)
        os.replace(partial, output)


def _can_hold_audio(partial: Path, source: Path, fps: float) -> bool:
    """Tries the audio on a film of one frame; where an mp4 cannot hold it, says so."""
    video_io.encode(partial, np.zeros((1, 16, 16, 3), np.uint8), fps)
    try:
        return video_io.copy_audio(source, partial)
    except ValueError as error:
        _say(f'note: {error}; the output will be silent')
        return False


if __name__ == '__main__':
    sys.exit(main())
