"""Shows what the degradations of a config do to a clip: `python -m fv_jax.degrade --input clip.mp4 --output sheet.png`.

Writes an image of the clip, its weakly degraded version and several strongly degraded ones, whole and enlarged, and
prints a line for each strong one with its operations.

Exit codes: 0 done; 2 wrong usage; 1 failed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, read_config
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.output_paths import check_output_file
from fv_jax.data.degradation import degradations
from fv_jax.data.degradation.degradations import Degradation
from fv_jax.data.numpy_resize import crop_to_aspect, resize_uint8
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video import video_io
from fv_jax.data.video.contact_sheet import contact_sheet

COLUMNS = 3  # strongly degraded versions beside each other


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('degrade', _degrade, argv)


def _degrade(argv: Sequence[str]) -> int:
    arguments, config = _parse(argv)
    clip = _clip(arguments.input, (arguments.height, arguments.width), arguments.frames)
    rows = []
    for row in range(arguments.rows):
        rng = np.random.default_rng([arguments.seed, row])
        videos = {'clip': clip, 'weak': degradations.degrade_weak(clip, rng, config.weak)}
        for column, (name, degraded) in enumerate(_strong_versions(clip, rng, config)):
            print_result(f'row {row}, strong {column}: {name}')
            videos[f'strong {column}'] = degraded
        rows.append((f'row {row}', {name: to_uint8(video) for name, video in videos.items()}))
    contact_sheet(rows).save(arguments.output)
    print_result(f'written: {arguments.output}')
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Degradation]:
    parser = Parser('python -m fv_jax.degrade', 'Shows what the degradations of a config do to a clip.', OVERRIDES)
    parser.add_argument('--input', type=Path, required=True, help='a film; its first frames are shown')
    parser.add_argument('--output', type=Path, required=True, help='the picture to write, *.png')
    parser.add_argument('--config', default='configs/degradations.py', help='a config file of degradations')
    parser.add_argument('--frames', type=int, default=9, help='how many frames are degraded; 1 is a picture')
    parser.add_argument('--height', type=int, default=256, help='the size the film is brought to first')
    parser.add_argument('--width', type=int, default=480)
    parser.add_argument('--rows', type=int, default=3, help='how many times is drawn')
    parser.add_argument('--seed', type=int, default=0)
    arguments, overrides = parser.parse(argv)
    for name in ('frames', 'height', 'width', 'rows'):
        if getattr(arguments, name) < 1:
            raise UsageError(f'--{name}={getattr(arguments, name)}: must be at least 1')
    require(arguments.seed >= 0, f'--seed={arguments.seed}: must not be negative', UsageError)
    check_output_file(arguments.output, '.png', overwrite=True)
    return arguments, read_config(Degradation, arguments.config, overrides)


def _clip(path: Path, size: tuple[int, int], frames: int) -> np.ndarray:
    """The first frames of a film, float32 FHWC in [-1, 1]."""
    video = video_io.decode(path, max_frames=frames)
    return to_float(resize_uint8(crop_to_aspect(video.frames, size), size))


def _strong_versions(
    clip: np.ndarray, rng: np.random.Generator, config: Degradation
) -> Iterator[tuple[str, np.ndarray]]:
    """What was drawn and what became of it, COLUMNS times; nothing where the config has no strong ones."""
    for _ in range(COLUMNS if config.strong else 0):
        target = degradations.even_size(config.weak.size(clip.shape[1:3], rng), 1)
        drawn = degradations.sample_strong(rng, config.strong, target=target, frames=len(clip))
        yield ', '.join(map(str, drawn)), degradations.apply(drawn, clip)


if __name__ == '__main__':
    sys.exit(main())
