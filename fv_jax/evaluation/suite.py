"""The metrics of the report: which there are, which can be computed here, and their values for one video.

Videos are uint8 (F, H, W, 3), as files hold them, and become float a few frames at a time. A metric's value for a clip
is its mean over frames, or over pairs of neighbouring frames. A metric whose weights are not installed is omitted; one
that a clip is too small or too short for has the value None. `Suite.not_computed` says why.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from fv_jax.data.transforms import to_float
from fv_jax.evaluation import ffmpeg_metrics, full_reference, niqe, no_reference, perceptual, temporal, weight_files
from fv_jax.evaluation.videos import NotApplicableError
from fv_jax.evaluation.weight_files import MissingPackageError, WeightFile

Direction = Literal['higher', 'lower', 'none']
# A metric of float videos in [-1, 1], or of uint8 ones: (video) or (video, truth) -> one value per frame
PerFrame = Callable[..., np.ndarray]

VGG_FRAMES = 3  # evenly spaced ones that VGG16 is applied to
_BLOCK_PIXELS = 2**24  # of a video that are float at a time


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of the suite.

    Attributes:
      name: its key in report.json.
      label: for tables.
      direction: which values are better; 'none' for what is no score.
      per_frame: computes it.
      digits: behind the point, in tables.
      unit: of its values.
      needs_truth: whether it compares with the ground truth.
      uses_truth: whether the ground truth, where there is one, is passed to `per_frame`.
      window: frames that one value takes: 2 for neighbours; 0 for all frames, as uint8.
      sparse: whether it is computed on a few evenly spaced frames.
    """

    name: str
    label: str
    direction: Direction
    per_frame: PerFrame
    digits: int
    unit: str = ''
    needs_truth: bool = True
    uses_truth: bool = True
    window: int = 1
    sparse: bool = False


def _full_reference() -> list[Metric]:
    return [
        Metric('psnr', 'PSNR', 'higher', full_reference.psnr, 2, 'dB'),
        Metric('ssim', 'SSIM', 'higher', full_reference.ssim, 4),
    ]


def _of_packages() -> list[tuple[Metric, Callable[[], dict[str, Any]], Sequence[WeightFile]]]:
    """Returns the metrics that need packages.

    Returns:
      For each the metric, whose `per_frame` takes its weights by keyword, a function that loads them, and their files.
    """
    vgg16 = functools.partial(Metric, direction='lower', digits=4, sparse=True)
    by_ffmpeg = functools.partial(Metric, direction='higher', digits=2, window=0)
    niqe_score = Metric('niqe', 'NIQE', 'lower', niqe.niqe, 2, needs_truth=False, uses_truth=False)
    return [
        (
            Metric('lpips_alexnet', 'LPIPS AlexNet', 'lower', perceptual.lpips, 4),
            lambda: {'weights': perceptual.load_lpips('alexnet')},
            [weight_files.ALEXNET],
        ),
        (
            vgg16('lpips_vgg16', 'LPIPS VGG16', per_frame=perceptual.lpips),
            lambda: {'weights': perceptual.load_lpips('vgg16')},
            [weight_files.VGG16],
        ),
        (
            vgg16('dists', 'DISTS', per_frame=perceptual.dists),
            lambda: {'weights': perceptual.load_dists()},
            [weight_files.VGG16],
        ),
        (by_ffmpeg('vmaf', 'VMAF', per_frame=ffmpeg_metrics.vmaf), _require_ffmpeg, []),
        (by_ffmpeg('vmaf_neg', 'VMAF-NEG', per_frame=ffmpeg_metrics.vmaf_neg), _require_ffmpeg, []),
        (by_ffmpeg('xpsnr', 'XPSNR', per_frame=ffmpeg_metrics.xpsnr, unit='dB'), _require_ffmpeg, []),
        (niqe_score, lambda: {'parameters': niqe.load_niqe()}, [weight_files.NIQE]),
    ]


def _require_ffmpeg() -> dict[str, Any]:
    """Returns no weights. Raises MissingPackageError."""
    ffmpeg_metrics.find_ffmpeg()
    return {}


def _alone() -> list[Metric]:
    """Returns the metrics without weights that a video has by itself."""
    plain = functools.partial(Metric, needs_truth=False, uses_truth=False)
    return [
        plain('sharpness', 'sharpness', 'none', no_reference.sharpness, 0),
        plain('noise_level', 'noise level', 'none', no_reference.noise_level, 2),
        plain('blockiness', 'blockiness', 'lower', no_reference.blockiness, 3),
        Metric('warping_error', 'warping error', 'none', temporal.warping_error, 5, needs_truth=False, window=2),
        Metric('flicker', 'flicker', 'lower', temporal.flicker, 4, window=2),
    ]


@dataclasses.dataclass
class Suite:
    """The metrics that can be computed here.

    Attributes:
      metrics: in the order of tables.
      vgg_frames: how many frames of a clip VGG16 is applied to; None for all.
      digests: SHA-256 of the weights, by file.
      not_computed: what is missing, by label or by label and clip, and why.
    """

    metrics: list[Metric]
    vgg_frames: int | None = VGG_FRAMES
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    not_computed: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, vgg_frames: int | None = VGG_FRAMES) -> 'Suite':
        """Loads the weights that are installed.

        Args:
          vgg_frames: how many frames of a clip VGG16 is applied to; None for all.

        Raises:
          ValueError: a file of weights is not the recorded one.
        """
        suite = cls(_full_reference(), vgg_frames)
        for metric, load, files in _of_packages():
            try:
                per_frame = functools.partial(metric.per_frame, **load())
            except MissingPackageError as error:
                suite.not_computed[metric.label] = str(error)
            else:
                suite.metrics.append(dataclasses.replace(metric, per_frame=per_frame))
                suite.digests |= {f'{file.distribution}/{file.file}': file.sha256 for file in files}
        suite.metrics += _alone()
        suite.not_computed['MUSIQ, CLIP-IQA, DOVER'] = 'no package contains their weights'
        return suite

    def measure(self, video: np.ndarray, truth: np.ndarray | None, clip: str) -> dict[str, float | None]:
        """Computes every metric of a video.

        Args:
          video: uint8 (F, H, W, 3).
          truth: the ground truth, of the same shape; None where there is none, or where it is the video itself.
          clip: names the clip in `not_computed`.

        Returns:
          The value of every metric, infinite for a PSNR of equal frames; None for one that needs the ground truth
          where there is none, or that the clip is too small or too short for.
        """
        values: dict[str, float | None] = {}
        for metric in self.metrics:
            values[metric.name] = None
            if metric.needs_truth and truth is None:
                continue
            try:
                found = self._per_frame(metric, video, truth if metric.uses_truth else None)
            except NotApplicableError as error:
                self.not_computed[f'{metric.label}, {clip}'] = str(error)
                continue
            known = found[~np.isnan(found)]  # the warping error has no value at a cut
            values[metric.name] = float(np.mean(known)) if len(known) else None
        return values

    def _per_frame(self, metric: Metric, video: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
        if metric.sparse and self.vgg_frames is not None:
            chosen = evenly_spaced(len(video), self.vgg_frames)
            video, truth = (None if v is None else v[chosen] for v in (video, truth))
        videos = [v for v in (video, truth) if v is not None]
        if metric.window == 0:
            return metric.per_frame(*videos)
        block = max(1, _BLOCK_PIXELS // math.prod(video.shape[1:3]))
        shared = metric.window - 1  # frames that neighbouring blocks share
        found = [
            metric.per_frame(*(to_float(v[first : first + block + shared]) for v in videos))
            for first in range(0, max(1, len(video) - shared), block)
        ]
        return np.concatenate(found)

    def describe(self) -> dict[str, dict[str, object]]:
        """Describes every metric for report.json."""
        return {
            metric.name: {
                'label': metric.label,
                'direction': metric.direction,
                'unit': metric.unit,
                'digits': metric.digits,
                'frames': f'{self.vgg_frames} evenly spaced' if metric.sparse and self.vgg_frames else 'all',
                'reference': metric.needs_truth,
            }
            for metric in self.metrics
        }


def evenly_spaced(frames: int, count: int) -> np.ndarray:
    """Returns the indices of up to `count` frames, each in the middle of an equal part of the clip."""
    count = min(count, frames)
    return ((np.arange(count) + 0.5) * frames / count).astype(int)
