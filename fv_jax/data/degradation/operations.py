"""The steps of a strong degradation, with sampled parameters.

A step takes an iterator of frames, float32 (H, W, 3) RGB from 0 to 255, and yields as many: no more frames are in
memory than the encoders look ahead. The parameters of a step are the same for all frames; noise is independent in each.
A step that needs randomness while it runs has a seed, so that results do not depend on the order of evaluation.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from statistics import NormalDist

import cv2
import numpy as np
import scipy.special

from fv_jax.data.degradation import blur_kernels, compression
from fv_jax.data.degradation.compression import Codec

Frames = Iterable[np.ndarray]
Step = Callable[[Frames], Iterator[np.ndarray]]

SMALLEST = 16  # pixels along a side: the minimum of x264
INTERPOLATIONS = {'area': cv2.INTER_AREA, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}

_LEVELS = 256
_QUANTILES = 2**16  # of the normal distribution
_POISSON_QUANTILES = 2**12
_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)  # BT.601


def luma(frame_HWC: np.ndarray) -> np.ndarray:
    """Computes the luma of a float32 frame, (H, W)."""
    return cv2.transform(frame_HWC, _LUMA)


def even_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Scales a size to even sides (chroma has half of them) of at least SMALLEST pixels."""
    height, width = (max(2 * round(side * scale / 2), SMALLEST) for side in size)
    return height, width


@dataclasses.dataclass(frozen=True)
class Blur:
    """Convolves with a kernel (h, w) that sums to 1; the image is reflected at its edges."""

    kernel: np.ndarray
    name: str

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        parts = blur_kernels.separable_factors(self.kernel)
        for frame in frames:
            if parts is None:
                yield cv2.filter2D(frame, -1, self.kernel)
            else:
                yield cv2.sepFilter2D(frame, -1, parts[1], parts[0])

    def __str__(self) -> str:
        return f'blur {self.name} {len(self.kernel)}'


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes to `scale` times the size, or to `size` = (height, width).

    The filters are OpenCV's; only 'area' is antialiased.
    """

    interpolation: str
    scale: float | None = None
    size: tuple[int, int] | None = None

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        for frame in frames:
            size = self.size if self.scale is None else even_size(frame.shape[:2], self.scale)
            yield cv2.resize(frame, size[::-1], interpolation=INTERPOLATIONS[self.interpolation])

    def __str__(self) -> str:
        to = f'{self.size[0]}x{self.size[1]}' if self.scale is None else f'x{self.scale:.2f}'
        return f'resize {to} {self.interpolation}'


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """Adds independent normal noise of standard deviation `sigma` levels; with `grey`, the same in all channels."""

    sigma: float
    grey: bool
    seed: int

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        rng, table = np.random.default_rng(self.seed), _normal_quantiles() * np.float32(self.sigma)
        for frame in frames:
            shape = (*frame.shape[:2], 1 if self.grey else 3)
            yield _clip(frame + table[rng.integers(0, _QUANTILES, shape, dtype=np.uint16)])

    def __str__(self) -> str:
        return f'gaussian {self.sigma:.1f}{" grey" if self.grey else ""}'


@dataclasses.dataclass(frozen=True)
class PoissonNoise:
    """Adds shot noise: at a level v, the deviation of a Poisson variable of mean v, times `scale`.

    Its variance is scale^2 v. With `grey`, it is that of the luma, the same in all channels.
    """

    scale: float
    grey: bool
    seed: int

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        rng, table = np.random.default_rng(self.seed), _poisson_quantiles()
        for frame in frames:
            mean = luma(frame)[..., None] if self.grey else frame
            index = _to_levels(mean).astype(np.int32) * _POISSON_QUANTILES
            index += rng.integers(0, _POISSON_QUANTILES, mean.shape, dtype=np.uint16)
            yield _clip(frame + np.float32(self.scale) * table.take(index))

    def __str__(self) -> str:
        return f'poisson {self.scale:.2f}{" grey" if self.grey else ""}'


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """Compresses every frame as JPEG of one quality."""

    quality: int

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        for frame in frames:
            yield compression.compress_jpeg(_to_levels(frame), self.quality).astype(np.float32)

    def __str__(self) -> str:
        return f'jpeg {self.quality}'


@dataclasses.dataclass(frozen=True)
class Video:
    """Compresses the clip with a video codec at an average rate."""

    codec: Codec
    bits_per_pixel: float

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        for frame in compression.compress_video(map(_to_levels, frames), self.codec, self.bits_per_pixel):
            yield frame.astype(np.float32)

    def __str__(self) -> str:
        return f'{self.codec} {self.bits_per_pixel:.2f} bpp'


def _clip(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame, 0, _LEVELS - 1, out=frame)


def _to_levels(frame: np.ndarray) -> np.ndarray:
    """Rounds to uint8; filters with negative weights exceed the range."""
    return np.rint(np.clip(frame, 0, _LEVELS - 1)).astype(np.uint8)


# Noise is drawn by index from tables of equally likely values, three to six times as fast as NumPy's own draws. The
# tables are constants, computed when first asked for.


@functools.cache
def _normal_quantiles() -> np.ndarray:
    """Computes the means of equally likely intervals of the normal distribution, float32, scaled to variance 1."""
    normal = NormalDist()
    table = np.array([normal.inv_cdf((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)])
    return (table / table.std()).astype(np.float32)


@functools.cache
def _poisson_quantiles() -> np.ndarray:
    """Tabulates deviations of a Poisson variable from its mean, for each level as mean, at equally likely points.

    Float32, flat. They are centred and scaled to the variance, of which the points alone miss a little in the tails.
    """
    points = (np.arange(_POISSON_QUANTILES) + 0.5) / _POISSON_QUANTILES
    counts = np.arange(2 * _LEVELS)  # 16 standard deviations above the highest mean
    mean = np.arange(_LEVELS, dtype=np.float64)[:, None]
    below = scipy.special.pdtr(counts, mean)  # P(X <= count)
    table = np.stack([np.searchsorted(row, points) for row in below]) - mean
    table -= table.mean(axis=1, keepdims=True)
    table *= np.sqrt(mean) / np.maximum(table.std(axis=1, keepdims=True), 1e-9)
    return table.astype(np.float32).ravel()
