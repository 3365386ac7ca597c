"""The steps that a strong degradation is made of, each with its numbers drawn.

A step takes an iterator of frames, float32 (H, W, 3) RGB from 0 to 255, and yields as many: no more of a clip than the
encoders look ahead is held at a time. Everything of a step is the same for all frames, but noise is new in each. A step
that needs randomness while it runs carries a seed, so how far one step runs ahead of another changes nothing.
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

SMALLEST = 16  # pixels a side: what x264 accepts
INTERPOLATIONS = {'area': cv2.INTER_AREA, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC}

_LEVELS = 256
_QUANTILES = 2**16  # of the normal distribution
_POISSON_QUANTILES = 2**12
_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)  # BT.601


def even_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """`size` times `scale`, each side even (chroma has half of it) and at least SMALLEST."""
    height, width = (max(2 * round(side * scale / 2), SMALLEST) for side in size)
    return height, width


@dataclasses.dataclass(frozen=True)
class Blur:
    """Convolution with a kernel (h, w) that sums to 1; the picture is mirrored at its edges."""

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
    """To `scale` times the size, or to `size` = (height, width). OpenCV's filters: but for 'area', not antialiased."""

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
    """Independent normal noise of `sigma` levels; grey: the same in all channels."""

    sigma: float
    grey: bool
    seed: int

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        rng, table = np.random.default_rng(self.seed), _normal_quantiles() * np.float32(self.sigma)
        for frame in frames:
            shape = (*frame.shape[:2], 1 if self.grey else 3)
            yield _clipped(frame + table[rng.integers(0, _QUANTILES, shape, dtype=np.uint16)])

    def __str__(self) -> str:
        return f'gaussian {self.sigma:.1f}{" grey" if self.grey else ""}'


@dataclasses.dataclass(frozen=True)
class PoissonNoise:
    """Shot noise: at a level v the deviation of a Poisson variable of mean v, times `scale`; its variance is
    scale^2 v. grey: that of the luma, the same in all channels.
    """

    scale: float
    grey: bool
    seed: int

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        rng, table = np.random.default_rng(self.seed), _poisson_quantiles()
        for frame in frames:
            mean = cv2.transform(frame, _LUMA)[..., None] if self.grey else frame
            index = _levels(mean).astype(np.int32) * _POISSON_QUANTILES
            index += rng.integers(0, _POISSON_QUANTILES, mean.shape, dtype=np.uint16)
            yield _clipped(frame + np.float32(self.scale) * table.take(index))

    def __str__(self) -> str:
        return f'poisson {self.scale:.2f}{" grey" if self.grey else ""}'


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """JPEG of one quality, every frame on its own."""

    quality: int

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        for frame in frames:
            yield compression.jpeg(_levels(frame), self.quality).astype(np.float32)

    def __str__(self) -> str:
        return f'jpeg {self.quality}'


@dataclasses.dataclass(frozen=True)
class Video:
    """A video codec at an average rate."""

    codec: Codec
    bits_per_pixel: float

    def __call__(self, frames: Frames) -> Iterator[np.ndarray]:
        for frame in compression.video(map(_levels, frames), self.codec, self.bits_per_pixel):
            yield frame.astype(np.float32)

    def __str__(self) -> str:
        return f'{self.codec} {self.bits_per_pixel:.2f} bpp'


def _clipped(frame: np.ndarray) -> np.ndarray:
    return np.clip(frame, 0, _LEVELS - 1, out=frame)


def _levels(frame: np.ndarray) -> np.ndarray:
    """uint8. Filters of negative weights reach outside of the range."""
    return np.rint(np.clip(frame, 0, _LEVELS - 1)).astype(np.uint8)


# Noise is drawn by index from tables of equally likely values, three to six times as fast as NumPy's own draws. The
# tables are constants, computed when first asked for.


@functools.cache
def _normal_quantiles() -> np.ndarray:
    """The means of the normal distribution's equally likely parts, float32, of variance 1."""
    normal = NormalDist()
    table = np.array([normal.inv_cdf((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)])
    return (table / table.std()).astype(np.float32)


@functools.cache
def _poisson_quantiles() -> np.ndarray:
    """For each level: how far a Poisson variable of that mean is from it, at equally likely points, float32, flat.

    Centred, and scaled to the variance, of which the points alone miss a little in the tails.
    """
    points = (np.arange(_POISSON_QUANTILES) + 0.5) / _POISSON_QUANTILES
    counts = np.arange(2 * _LEVELS)  # 16 standard deviations above the highest mean
    mean = np.arange(_LEVELS, dtype=np.float64)[:, None]
    below = scipy.special.pdtr(counts, mean)  # P(X <= count)
    table = np.stack([np.searchsorted(row, points) for row in below]) - mean
    table -= table.mean(axis=1, keepdims=True)
    table *= np.sqrt(mean) / np.maximum(table.std(axis=1, keepdims=True), 1e-9)
    return table.astype(np.float32).ravel()
