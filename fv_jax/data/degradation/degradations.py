"""Low-quality twins: what stage 2 learns to undo.

weak: antialiased bilinear down by a factor drawn from U(low, high), one for the whole clip, and back up to the size it
had. This is what the first stage's output looks like after the resize between the stages (model guide 5.4, 7). The
smaller size is floor(size / factor) on each side.

strong: the second-order model for film found in the wild, in the order of RealBasicVSR (arXiv:2111.12704), which
carries Real-ESRGAN (arXiv:2107.10833) over to video:

  twice:  blur, resize, noise, JPEG; a video codec after the first round
  then, in either order:  a video codec;  the resize to the smaller size and a sinc filter

and, as for weak, bilinear back up. The numbers are drawn once for a clip: `draw_strong` gives its steps. A picture (one
frame) gets JPEG where a clip gets a video codec. The ranges, with their sources, are in `configs/degradations.py`.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.data.degradation import blur_kernels
from fv_jax.data.degradation import operations as steps
from fv_jax.data.degradation.compression import CODECS
from fv_jax.data.degradation.operations import Step, even_size
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.shards.records import Record

Range = tuple[float, float]

# The shapes that a blur kernel is drawn from, in the order of BlurConfig.shapes.
SHAPES = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso', 'sinc')
_PI = math.pi + 1e-3  # so that pi can be written with few digits
_SMALL_KERNEL = 13  # pixels: a sinc of a smaller size cannot have the lowest cutoffs (Real-ESRGAN)


@dataclasses.dataclass(frozen=True)
class WeakConfig:
    """low, high: the range of the factor; equal numbers fix it."""

    low: float = 4.0
    high: float = 8.0

    def __post_init__(self):
        wrong = f'low={self.low}: must be 1 <= low <= high (here {self.high})'
        require(1 <= self.low <= self.high < math.inf, wrong, ConfigError)

    def size(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """The smaller size drawn for a clip of `size`. Raises ValueError when nothing would be left of it."""
        factor = rng.uniform(self.low, self.high)
        small = int(size[0] / factor), int(size[1] / factor)
        if min(small) < 1:
            raise ValueError(f'a clip of {size[0]}x{size[1]} cannot be made {factor:.2f} times smaller')
        return small


@dataclasses.dataclass(frozen=True)
class BlurConfig:
    """probability: of any blur. sizes: of the kernel in pixels, odd ones. shapes: how likely each of SHAPES is.
    sigma: in pixels. angle: radians, of anisotropic ones. generalized_beta, plateau_beta: their exponents.
    """

    probability: float
    sizes: tuple[int, int]
    shapes: tuple[float, ...]
    sigma: Range
    angle: Range
    generalized_beta: Range
    plateau_beta: Range

    def __post_init__(self):
        _check_shares(self, 'shapes', len(SHAPES))
        check_range(self, 'probability', low=0, high=1)
        check_range(self, 'sizes', low=3, high=99)
        check_range(self, 'sigma', low=0.1, high=99)
        check_range(self, 'angle', low=-_PI, high=_PI)
        check_range(self, 'generalized_beta', 'plateau_beta', low=0.1, high=99)
        _check_odd(self)


@dataclasses.dataclass(frozen=True)
class ResizeConfig:
    """modes: how likely (up, down, keep) are. scale: from the smallest to the largest; up draws from (1, largest), down
    from (smallest, 1).
    """

    modes: tuple[float, float, float]
    scale: Range

    def __post_init__(self):
        _check_shares(self, 'modes', 3)
        check_range(self, 'scale', low=0.01, high=4)
        require(self.scale[0] <= 1 <= self.scale[1], f'scale={self.scale}: must lie around 1', ConfigError)


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """poisson: how likely it is, in place of Gaussian. grey: how likely noise is the same in all channels.
    gaussian_sigma: in levels of 255. poisson_scale: of the deviation.
    """

    poisson: float
    grey: float
    gaussian_sigma: Range
    poisson_scale: Range

    def __post_init__(self):
        for name in ('poisson', 'grey'):
            check_range(self, name, low=0, high=1)
        check_range(self, 'gaussian_sigma', low=0, high=255)
        check_range(self, 'poisson_scale', low=0, high=99)


@dataclasses.dataclass(frozen=True)
class VideoConfig:
    """codecs: how likely each of compression.CODECS is. bits_per_pixel: of the stream."""

    codecs: tuple[float, float]
    bits_per_pixel: Range

    def __post_init__(self):
        _check_shares(self, 'codecs', len(CODECS))
        check_range(self, 'bits_per_pixel', low=1e-3, high=24)


@dataclasses.dataclass(frozen=True)
class SincConfig:
    """The last filter. probability: of any. sizes: of the kernel, odd ones of the range. omega: the cutoff, radians."""

    probability: float
    sizes: tuple[int, int]
    omega: Range

    def __post_init__(self):
        check_range(self, 'probability', low=0, high=1)
        check_range(self, 'sizes', low=3, high=99)
        check_range(self, 'omega', low=0.1, high=_PI)
        _check_odd(self)


@dataclasses.dataclass(frozen=True)
class RoundConfig:
    """One round. quality: of its JPEG."""

    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig
    quality: tuple[int, int]

    def __post_init__(self):
        check_range(self, 'quality', low=1, high=100)


@dataclasses.dataclass(frozen=True)
class StrongConfig:
    """first, second: the rounds. video: the codecs' rates. sinc: the last filter."""

    first: RoundConfig
    second: RoundConfig
    video: VideoConfig
    sinc: SincConfig


def _check_shares(config: object, name: str, count: int) -> None:
    shares = getattr(config, name)
    if len(shares) != count or min(shares) < 0 or abs(sum(shares) - 1) > 1e-3:
        raise ConfigError(f'{name}={shares}: must be {count} numbers, none negative, that sum to 1')


def _check_odd(config: object) -> None:
    if any(size % 2 == 0 for size in config.sizes):
        raise ConfigError(f'sizes={config.sizes}: a kernel has a middle only if its size is odd')


def weak(frames_FHWC: np.ndarray, rng: np.random.Generator, config: WeakConfig) -> np.ndarray:
    """The weak twin of a clip: float32 of the same shape and range.

    Raises ValueError when the clip has fewer pixels than the factor.
    """
    size = frames_FHWC.shape[1:3]
    return resize_bilinear(resize_bilinear(frames_FHWC, config.size(size, rng)), size)


def strong(frames_FHWC: np.ndarray, rng: np.random.Generator, config: StrongConfig, factor: WeakConfig) -> np.ndarray:
    """The strong twin of a clip in [-1, 1]: float32 of the same shape and range, of 8-bit levels before the way up.

    factor: how much smaller it becomes on the way, as for `weak`.
    """
    size = frames_FHWC.shape[1:3]
    drawn = draw_strong(rng, config, target=even_size(factor.size(size, rng), 1), frames=len(frames_FHWC))
    return apply(drawn, frames_FHWC)


def apply(drawn: Sequence[Step], frames_FHWC: np.ndarray) -> np.ndarray:
    """The frames after all steps, rounded to 8 bits and brought back to their size; float32 in [-1, 1]."""
    stream = ((frame.astype(np.float32) + 1) * np.float32(127.5) for frame in frames_FHWC)
    out = np.empty(frames_FHWC.shape, np.float32)
    count = 0
    for frame in functools.reduce(lambda frames, step: step(frames), drawn, stream):
        small = np.rint(np.clip(frame, 0, 255)) * np.float32(2 / 255) - 1
        out[count] = resize_bilinear(small[None], frames_FHWC.shape[1:3])[0]
        count += 1
    assert count == len(out), f'{count} of {len(out)} frames came back'
    return out


def draw_strong(
    rng: np.random.Generator, config: StrongConfig, *, target: tuple[int, int], frames: int
) -> tuple[Step, ...]:
    """The steps of one clip. target: the (height, width) they end at. frames: of the clip; 1 is a picture."""

    def codec(round_: RoundConfig) -> list[Step]:
        if frames == 1:
            return [steps.Jpeg(_integer(rng, round_.quality))]
        name = CODECS[rng.choice(len(CODECS), p=_shares(config.video.codecs))]
        return [steps.Video(name, rng.uniform(*config.video.bits_per_pixel))]

    first = [*_draw_round(rng, config.first), *codec(config.first)]
    second = _draw_round(rng, config.second)
    compress = codec(config.second)
    shrink = [steps.Resize(_interpolation(rng), size=target), *_draw_sinc(rng, config.sinc)]
    last = [compress, shrink] if rng.random() < 0.5 else [shrink, compress]
    return (*first, *second, *last[0], *last[1])


def _draw_round(rng: np.random.Generator, config: RoundConfig) -> list[Step]:
    return [
        *_draw_blur(rng, config.blur),
        *_draw_resize(rng, config.resize),
        _draw_noise(rng, config.noise),
        steps.Jpeg(_integer(rng, config.quality)),
    ]


def _draw_blur(rng: np.random.Generator, config: BlurConfig) -> list[Step]:
    if rng.random() >= config.probability:
        return []
    size = _odd(rng, config.sizes)
    shape = SHAPES[rng.choice(len(SHAPES), p=_shares(config.shapes))]
    if shape == 'sinc':
        lowest = math.pi / 3 if size < _SMALL_KERNEL else math.pi / 5
        omega = rng.uniform(lowest, math.pi)
        return [steps.Blur(blur_kernels.sinc(size, omega), f'sinc {omega:.2f}')]
    family, _, _ = shape.rpartition('_')
    sigma = rng.uniform(*config.sigma)
    across, angle = sigma, 0.0
    if shape.endswith('aniso'):
        across, angle = rng.uniform(*config.sigma), rng.uniform(*config.angle)
    profile, beta = {
        '': ('gaussian', (1.0, 1.0)),
        'generalized': ('generalized', config.generalized_beta),
        'plateau': ('plateau', config.plateau_beta),
    }[family]
    kernel = blur_kernels.bell(size, profile, (sigma, across), angle, _around_one(rng, beta))
    return [steps.Blur(kernel, f'{shape} {sigma:.1f}')]


def _around_one(rng: np.random.Generator, between: Range) -> float:
    """Below 1 as often as above, where the range has both, as published."""
    low, high = between
    if low < 1 < high:
        return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return rng.uniform(low, high)


def _draw_resize(rng: np.random.Generator, config: ResizeConfig) -> list[Step]:
    mode = rng.choice(3, p=_shares(config.modes))
    if mode == 2:
        return []
    scale = rng.uniform(1, config.scale[1]) if mode == 0 else rng.uniform(config.scale[0], 1)
    return [steps.Resize(_interpolation(rng), scale=scale)]


def _draw_noise(rng: np.random.Generator, config: NoiseConfig) -> Step:
    grey, seed = bool(rng.random() < config.grey), int(rng.integers(2**63))
    if rng.random() < config.poisson:
        return steps.PoissonNoise(rng.uniform(*config.poisson_scale), grey, seed)
    return steps.GaussianNoise(rng.uniform(*config.gaussian_sigma), grey, seed)


def _draw_sinc(rng: np.random.Generator, config: SincConfig) -> list[Step]:
    if rng.random() >= config.probability:
        return []
    omega = rng.uniform(*config.omega)
    return [steps.Blur(blur_kernels.sinc(_odd(rng, config.sizes), omega), f'sinc {omega:.2f}')]


def _interpolation(rng: np.random.Generator) -> str:
    return list(steps.INTERPOLATIONS)[rng.integers(len(steps.INTERPOLATIONS))]


def _odd(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    return int(rng.choice(np.arange(sizes[0], sizes[1] + 1, 2)))


def _integer(rng: np.random.Generator, between: tuple[int, int]) -> int:
    return int(rng.integers(between[0], between[1] + 1))


def _shares(shares: Sequence[float]) -> np.ndarray:
    return np.asarray(shares) / np.sum(shares)


@dataclasses.dataclass(frozen=True)
class Degradation:
    """Which twin a clip gets: strong with `strong_probability`, else weak."""

    weak: WeakConfig
    strong: StrongConfig | None = None
    strong_probability: float = 0.0

    def __post_init__(self):
        check_range(self, 'strong_probability', low=0, high=1)
        wrong = f'strong_probability={self.strong_probability}: needs the ranges of `strong`'
        require(self.strong is not None or self.strong_probability == 0, wrong, ConfigError)

    def twin(self, frames_FHWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The twin of a clip in [-1, 1]: float32 of its shape. Raises ValueError for a clip smaller than the factor."""
        # Without strong ones nothing is drawn, so that the twins of a weak run stay what they were.
        if self.strong_probability > 0 and rng.random() < self.strong_probability:
            return strong(frames_FHWC, rng, self.strong, self.weak)
        return weak(frames_FHWC, rng, self.weak)


@dataclasses.dataclass(frozen=True)
class Twin:
    """The transform: adds low_res_FHWC, the twin of high_res_FHWC."""

    degradation: Degradation

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return record | {'low_res_FHWC': self.degradation.twin(record['high_res_FHWC'], rng)}
