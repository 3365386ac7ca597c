"""The clips of an evaluation: held-out clips of a run, folders of pairs, of ground truth, or of videos alone.

Every clip is an 8-bit low-quality video and, where there is one, its 8-bit ground truth. Clips are loaded one at a
time.

The layout of pairs is that of UDM10, SPMCS, YouHQ40 and REDS4:

    DIR/GT/NAME     the ground truth: a video, a folder of frames, or an image, a clip of one frame
    DIR/LQ/NAME     the low-quality input
    DIR/OTHER/NAME  the result of another enhancer of this name, which is measured too
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from fv_jax.core.checks import error_context, require
from fv_jax.core.command_line import UsageError
from fv_jax.core.files import is_file, map_paths
from fv_jax.core.paths import StoragePath
from fv_jax.data import pipeline
from fv_jax.data.config import DataConfig
from fv_jax.data.degradation import degradations
from fv_jax.data.degradation.configs import StrongConfig, WeakConfig
from fv_jax.data.folders import is_hidden, name_some
from fv_jax.data.images import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, read_image
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.transforms import to_float, to_uint8
from fv_jax.data.video import decoding
from fv_jax.data.video.containers import OTHER_VIDEO_SUFFIXES, VIDEO_SUFFIXES
from fv_jax.data.video.decoding import Video
from fv_jax.sampling.clip_sources import natural_order

log = logging.getLogger(__name__)

GT, LQ = 'GT', 'LQ'
_OTHER_SUFFIXES = (*OTHER_VIDEO_SUFFIXES, *OTHER_IMAGE_SUFFIXES)
FPS = 24.0  # of clips without a rate

Size = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class EvaluationClip:
    """A clip to be enhanced and measured.

    Attributes:
      name: of the clip; unique.
      low_quality: uint8 (F, h, w, 3).
      size: (height, width) of the result in pixels.
      fps: frames per second.
      seed: of the noise that networks add, the same for all of them.
      truth: the ground truth, uint8 (F, *size, 3); None if there is none.
      results: read the results of other enhancers, uint8 (F, *size, 3).
    """

    name: str
    low_quality: np.ndarray
    size: Size
    fps: float
    seed: int
    truth: np.ndarray | None = None
    results: Mapping[str, Callable[[], np.ndarray]] = dataclasses.field(default_factory=dict)


Loader = Callable[[], EvaluationClip]


class ClipError(ValueError):
    """Raised for one clip of a folder that cannot be read or used; the message starts with the file or the clip."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How folders of videos are read.

    Attributes:
      multiple: of the sides of results in pixels, as the VAE needs; ground truth is cropped to it.
      max_frames: of a clip; further ones are not read.
      seed: of the noise of networks and of degradations; clip i has `seed + i`.
      scale: size of results / size of the input, where no ground truth gives it.
      strong: the degradation of ground truth that comes without an input; None only downsamples it.
    """

    multiple: int
    max_frames: int
    seed: int
    scale: float = 4.0
    strong: StrongConfig | None = None


def heldout_clips(data: DataConfig, seed: int, strong: StrongConfig | None) -> list[Loader]:
    """Returns loaders of the first held-out clips of a run, downsampled by factors spread over the range of training.

    Args:
      data: of the run.
      seed: as in `Reading`.
      strong: as in `Reading`.
    """
    records = pipeline.open_source(data.heldout, data, heldout=True)
    transform = pipeline.clip_transform(data, low_res=False, training=False)
    factors = np.linspace(data.weak.low, data.weak.high, min(data.eval_clips, len(records)))

    def load(index: int, factor: float) -> EvaluationClip:
        truth = to_uint8(pipeline.load_heldout(records, transform, [index])['high_res_BFHWC'][0])
        small = degrade(truth, factor, seed + index, strong)
        return EvaluationClip(f'clip {index}', small, truth.shape[1:3], FPS, seed + index, truth)

    return [functools.partial(load, index, float(factor)) for index, factor in enumerate(factors)]


def degrade(truth: np.ndarray, factor: float, seed: int, strong: StrongConfig | None) -> np.ndarray:
    """Downsamples a video, uint8 (F, H, W, 3), by `factor`, after strong degradations if given."""
    if strong is not None:
        fixed = WeakConfig(factor, factor)
        return degradations.downsample_strong(to_float(truth), np.random.default_rng(seed), strong, fixed)
    size = int(truth.shape[1] / factor), int(truth.shape[2] / factor)
    require(min(size) >= 1, f'{truth.shape[1]}x{truth.shape[2]} cannot be downsampled by {factor:g}')
    return resize(truth, size)


def resize(video: np.ndarray, size: Size) -> np.ndarray:
    """Resizes a video, uint8 (F, H, W, 3), bilinearly, antialiased; rounds to 8 bits."""
    return np.concatenate([to_uint8(resize_bilinear(to_float(frame[None]), size)) for frame in video])


def pair_clips(folder: StoragePath, reading: Reading) -> tuple[list[Loader], list[str]]:
    """Returns loaders of the pairs in a folder, and the names of other enhancers whose results it holds.

    Raises:
      UsageError: GT or LQ is missing, or a folder has other clips than GT.
    """
    truths, inputs = list_videos(folder / GT), list_videos(folder / LQ)
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in (GT, LQ))
    others = [name for name in others if not is_hidden(name)]
    results = {name: list_videos(folder / name) for name in others}
    for name, found in (results | {LQ: inputs}).items():
        _check_same_names(folder, truths, name, found)

    @error_context('', error=ClipError)
    def load(index: int, name: str) -> EvaluationClip:
        truth = read_video(truths[name], reading.max_frames)
        low = read_video(inputs[name], reading.max_frames)
        _check_length(inputs[name], low.frames, truth.frames)
        small, size = common_crop(low.size, truth.size, reading.multiple, f'{folder}: {name}')
        return EvaluationClip(
            name,
            _crop(low.frames, small),
            size,
            truth.fps,
            reading.seed + index,
            _crop(truth.frames, size),
            {
                other: functools.partial(_read_result, results[other][name], truth, size, reading.max_frames)
                for other in others
            },
        )

    return [functools.partial(load, index, name) for index, name in enumerate(truths)], others


def truth_clips(folder: StoragePath, reading: Reading) -> list[Loader]:
    """Returns loaders of the videos in a folder, each cropped, and degraded by `reading.scale`. Raises UsageError."""

    @error_context('', error=ClipError)
    def load(index: int, name: str, path: StoragePath) -> EvaluationClip:
        video = read_video(path, reading.max_frames)
        size = _result_size(path, video, 1, reading.multiple)
        truth = _crop(video.frames, size)
        small = degrade(truth, reading.scale, reading.seed + index, reading.strong)
        return EvaluationClip(name, small, size, video.fps, reading.seed + index, truth)

    return [functools.partial(load, i, *item) for i, item in enumerate(list_videos(folder).items())]


def video_clips(folder: StoragePath, reading: Reading) -> list[Loader]:
    """Returns loaders of the videos in a folder, to be enlarged by `reading.scale`. Raises UsageError."""

    @error_context('', error=ClipError)
    def load(index: int, name: str, path: StoragePath) -> EvaluationClip:
        video = read_video(path, reading.max_frames)
        size = _result_size(path, video, reading.scale, reading.multiple)
        return EvaluationClip(name, video.frames, size, video.fps, reading.seed + index)

    return [functools.partial(load, i, *item) for i, item in enumerate(list_videos(folder).items())]


def list_videos(folder: StoragePath) -> dict[str, StoragePath]:
    """Lists the videos, folders of frames, and images in a folder by name (without suffix), in order.

    Files of other media are named in a line.

    Raises:
      UsageError: no such folder, nothing in it, or two of one name.
    """
    require(folder.is_dir(), f'{folder}: no such folder', UsageError)
    paths = sorted((path for path in folder.iterdir() if not is_hidden(path.name)), key=_natural_order)
    found: dict[str, StoragePath] = {}
    for path, name in zip(paths, map_paths(_find_name, paths), strict=True):
        if name:
            require(name not in found, f'{path}: {found.get(name)} has the same name', UsageError)
            found[name] = path
    others = [path.name for path in paths if path.suffix.lower() in _OTHER_SUFFIXES and path not in found.values()]
    if others:
        log.info(f'note: {folder}: {len(others)} file(s) are of formats that are not read: {name_some(others)}')
    require(found, f'{folder}: holds no videos, folders of frames or images', UsageError)
    return found


def _find_name(path: StoragePath) -> str:
    """Returns the name of a video, an image or a folder; '' for another file."""
    is_media = path.suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
    if is_media and is_file(path):
        return path.stem
    if path.is_dir():
        return path.name
    return path.stem if is_media else ''  # a broken link, which reading names


def read_video(path: StoragePath, max_frames: int) -> Video:
    """Reads the first frames of a video, of a folder of frames in natural order, or of an image. Raises ValueError."""
    if path.suffix.lower() not in IMAGE_SUFFIXES and (is_file(path) or not path.is_dir()):
        return decoding.decode(path, max_frames)
    files = [path]
    if path.is_dir():
        files = sorted(
            (p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(p.name)),
            key=_natural_order,
        )
        require(files, f'{path}: holds no frames ({", ".join(IMAGE_SUFFIXES)})')
    frames = [read_image(file) for file in files[:max_frames]]
    for file, frame in zip(files, frames, strict=False):
        sizes = [f'{shape[0]}x{shape[1]}' for shape in (frame.shape, frames[0].shape)]
        require(frame.shape == frames[0].shape, f'{file}: is {sizes[0]}, the first frame {sizes[1]}')
    return Video(np.stack(frames), FPS)


def common_crop(low: Size, high: Size, multiple: int, where: str) -> tuple[Size, Size]:
    """Computes the largest part that both videos of a pair show and whose size the VAE can take.

    Args:
      low, high: (height, width) of the low-quality video and of the ground truth.
      multiple: of the sides of the result at the ground truth's size.
      where: names the pair in messages.

    Returns:
      (height, width) to crop each to, from the upper left corner.

    Raises:
      ValueError: the sides have different ratios, or no part fits.
    """
    ratios = [Fraction(*sides) for sides in zip(high, low, strict=True)]
    sizes = f'{where}: GT is {high[0]}x{high[1]}, LQ {low[0]}x{low[1]}'
    require(abs(ratios[0] / ratios[1] - 1) < 0.02, f'{sizes}; both sides must have the same ratio')
    cropped = []
    for ratio, side in zip(ratios, low, strict=True):
        fitting = (n for n in range(side, 0, -1) if (n * ratio).denominator == 1 and n * ratio % multiple == 0)
        n = next(fitting, None)
        require(n is not None, f'{sizes}; no part of it has sides that are multiples of {multiple}')
        cropped.append((n, int(n * ratio)))
    (h, height), (w, width) = cropped
    return (h, w), (height, width)


def _natural_order(path: StoragePath) -> list[tuple[int, int | str]]:
    return natural_order(path.name)


def _crop(frames: np.ndarray, size: Size) -> np.ndarray:
    return np.ascontiguousarray(frames[:, : size[0], : size[1]])


def _check_same_names(folder: StoragePath, truths: Sequence[str], other: str, found: Sequence[str]) -> None:
    for name in truths:
        require(name in found, f'{folder / other}: has no {name!r}, which {GT} has', UsageError)
    for name in found:
        require(name in truths, f'{folder / other}: has {name!r}, which {GT} has not', UsageError)


def _check_length(path: StoragePath, frames: np.ndarray, truth: np.ndarray) -> None:
    require(len(frames) == len(truth), f'{path}: {len(frames)} frame(s), the ground truth {len(truth)}')


@error_context('', error=ClipError)
def _read_result(path: StoragePath, truth: Video, size: Size, max_frames: int) -> np.ndarray:
    video = read_video(path, max_frames)
    _check_length(path, video.frames, truth.frames)
    sizes = ['x'.join(map(str, v.size)) for v in (video, truth)]
    require(video.size == truth.size, f'{path}: is {sizes[0]}, the ground truth {sizes[1]}')
    return _crop(video.frames, size)


def _result_size(path: StoragePath, video: Video, scale: float, multiple: int) -> Size:
    """Returns `scale` times the size of a video, rounded down to multiples. Raises ValueError for a video too small."""
    height, width = (int(side * scale) // multiple * multiple for side in video.size)
    small = f'{path}: {video.size[0]}x{video.size[1]} is too small; results need {multiple}x{multiple}'
    require(min(height, width) >= multiple, small)
    return height, width
