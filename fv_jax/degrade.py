"""Shows what the degradations of a config do to a clip: `python -m fv_jax.degrade --input clip.mp4 --output sheet.png`.

Writes an image of the clip and of degradations of each kind that the config has ranges of (several strong ones), whole
and magnified, and prints what was sampled for each.

Exit codes: 0 success; 2 wrong usage; 1 failure.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from fv_jax import api
from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import OVERRIDES, Parser, UsageError, path_flag, read_config
from fv_jax.core.commands import run_command
from fv_jax.core.console import print_result
from fv_jax.core.devices import check_devices
from fv_jax.core.files import atomic_write
from fv_jax.core.output_paths import check_output_file
from fv_jax.core.paths import StoragePath
from fv_jax.data.degradation import degradations, flow_based
from fv_jax.data.degradation.degradations import Degradation, GuidedByModel
from fv_jax.data.numpy_resize import crop_to_aspect, resize_uint8
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video import decoding
from fv_jax.data.video.contact_sheet import contact_sheet
from fv_jax.sampling.model_guided import StageDegradation

COLUMNS = 3  # strong degradations beside each other


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (without the program's name) and returns its exit code."""
    return run_command('degrade', _show, argv)


def _show(argv: Sequence[str]) -> int:
    arguments, config = _parse(argv)
    clip = _clip(arguments.input, (arguments.height, arguments.width), arguments.frames)
    model = None
    if config.model_guided and len(clip) > 1:
        check_devices()
        with error_context('--config.', error=UsageError):
            model = api.open_stage_degradation(config.model_guided, None)
    rows = []
    for sample in range(arguments.num_samples):
        rng = np.random.default_rng([arguments.seed, sample])
        videos = {'clip': clip, 'weak': degradations.degrade_weak(clip, rng, config.weak)}
        for kind, sampled, degraded in _degrade(clip, rng, config, model):
            print_result(f'sample {sample}, {kind}: {sampled}')
            videos[kind] = degraded
        rows.append((f'sample {sample}', {name: to_uint8(video) for name, video in videos.items()}))
    with atomic_write(arguments.output) as partial:
        contact_sheet(rows).save(partial, format='PNG')
    print_result(f'written: {arguments.output}')
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Degradation]:
    parser = Parser('python -m fv_jax.degrade', 'Shows what the degradations of a config do to a clip.', OVERRIDES)
    parser.add_argument('--input', type=path_flag, required=True, help='a video; its first frames are degraded')
    parser.add_argument('--output', type=path_flag, required=True, help='the image to write, *.png')
    parser.add_argument('--config', default='degradations', help='a config file of degradations (default: %(default)s)')
    parser.add_argument('--frames', type=int, default=9, help='number of frames; 1 for an image (default: %(default)s)')
    parser.add_argument('--height', type=int, default=256, help='the size that the video is resized to first')
    parser.add_argument('--width', type=int, default=480)
    parser.add_argument('--num-samples', type=int, default=3, help='rows of the image (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    arguments, overrides = parser.parse(argv)
    for name in ('frames', 'height', 'width', 'num_samples'):
        if getattr(arguments, name) < 1:
            raise UsageError(f'--{name.replace("_", "-")}={getattr(arguments, name)}: must be at least 1')
    require(arguments.seed >= 0, f'--seed={arguments.seed}: must not be negative', UsageError)
    check_output_file(arguments.output, '.png', overwrite=True)
    return arguments, read_config(Degradation, arguments.config, overrides)


def _clip(path: StoragePath, size: tuple[int, int], frames: int) -> np.ndarray:
    """Returns the first frames of a video after cropping and resizing to (height, width), float32 FHWC in [-1, 1]."""
    video = decoding.decode(path, max_frames=frames)
    return to_float(resize_uint8(crop_to_aspect(video.frames, size), size))


def _degrade(
    clip: np.ndarray, rng: np.random.Generator, config: Degradation, model: StageDegradation | None
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields (kind, what was sampled, degraded clip) of every kind but the weak one; COLUMNS of the strong one."""
    for column in range(COLUMNS if config.strong else 0):
        target = degradations.even_size(config.weak.sample_size(clip.shape[1:3], rng), 1)
        drawn = degradations.sample_strong(rng, config.strong, target=target, frames=len(clip))
        yield f'strong {column}', ', '.join(map(str, drawn)), degradations.apply_steps(drawn, clip)
    if config.flow_based:
        motion = flow_based.sample_motion(rng, config.flow_based)
        yield 'flow-based', str(motion), degradations.degrade_weak(motion(clip), rng, config.weak)
    if model:
        drawn = GuidedByModel(int(rng.integers(2**32)))
        yield 'model-guided', model.describe(drawn), model(clip, drawn, None)


if __name__ == '__main__':
    sys.exit(main())
