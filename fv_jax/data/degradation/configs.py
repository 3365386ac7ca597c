"""The ranges that the parameters of degradations are drawn from; `degradations` says what each degradation does."""

import dataclasses
import math
from typing import Self

import numpy as np

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.core.paths import PathText
from fv_jax.data.degradation.compression import CODECS

Range = tuple[float, float]

# Shapes of blur kernels, in the order of the probabilities in BlurConfig.shapes.
SHAPES = ('iso', 'aniso', 'generalized_iso', 'generalized_aniso', 'plateau_iso', 'plateau_aniso', 'sinc')
_PI = math.pi + 1e-3  # a bound that accepts pi written with few digits
# Kinds of degradations besides 'weak', in the order in which they are drawn.
KINDS = ('strong', 'flow_based', 'model_guided')
SMALL_KERNEL = 13  # pixels: a sinc of a smaller size cannot have the lowest cutoffs (Real-ESRGAN)


@dataclasses.dataclass(frozen=True)
class WeakConfig:
    """The range of the weak degradation.

    Attributes:
      low, high: of the downsampling factor, at least 1; equal values fix it.
    """

    low: float = 4.0
    high: float = 8.0

    def __post_init__(self):
        wrong = f'low={self.low}: must be 1 <= low <= high (here {self.high})'
        require(1 <= self.low <= self.high < math.inf, wrong, ConfigError)

    def sample_size(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draws the size of the downsampled clip.

        Args:
          size: (height, width) of the clip.
          rng: draws the factor.

        Raises:
          ValueError: a side would be below 1 pixel.
        """
        factor = rng.uniform(self.low, self.high)
        small = int(size[0] / factor), int(size[1] / factor)
        if min(small) < 1:
            raise ValueError(f'a clip of {size[0]}x{size[1]} cannot be made {factor:.2f} times smaller')
        return small


@dataclasses.dataclass(frozen=True)
class BlurConfig:
    """Ranges of the blur in one pass.

    Attributes:
      probability: of any blur.
      sizes: smallest and largest side of the kernel in pixels, both odd.
      shapes: probability of each of SHAPES.
      sigma: standard deviation in pixels.
      angle: rotation of anisotropic kernels, radians.
      generalized_beta, plateau_beta: exponents of these shapes.
    """

    probability: float
    sizes: tuple[int, int]
    shapes: tuple[float, ...]
    sigma: Range
    angle: Range
    generalized_beta: Range
    plateau_beta: Range

    def __post_init__(self):
        _check_probabilities(self, 'shapes', len(SHAPES))
        check_range(self, 'probability', low=0, high=1)
        check_range(self, 'sizes', low=3, high=99)
        check_range(self, 'sigma', low=0.1, high=99)
        check_range(self, 'angle', low=-_PI, high=_PI)
        check_range(self, 'generalized_beta', 'plateau_beta', low=0.1, high=99)
        _check_odd(self)


@dataclasses.dataclass(frozen=True)
class ResizeConfig:
    """Ranges of the resize in one pass.

    Attributes:
      modes: probabilities of (up, down, keep).
      scale: (smallest, largest) factor, on both sides of 1; up draws from (1, largest), down from (smallest, 1).
    """

    modes: tuple[float, float, float]
    scale: Range

    def __post_init__(self):
        _check_probabilities(self, 'modes', 3)
        check_range(self, 'scale', low=0.01, high=4)
        require(
            self.scale[0] <= 1 <= self.scale[1],
            f'scale={self.scale}: must contain 1, as (smallest, largest)',
            ConfigError,
        )


@dataclasses.dataclass(frozen=True)
class NoiseConfig:
    """Ranges of the noise in one pass.

    Attributes:
      poisson: probability of Poisson noise in place of Gaussian noise.
      grey: probability that the noise is the same in all channels.
      gaussian_sigma: standard deviation in 8-bit levels.
      poisson_scale: factor of the Poisson noise's standard deviation.
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
    """Ranges of the video compression: the probability of each of compression.CODECS, and of the bits per pixel."""

    codecs: tuple[float, float]
    bits_per_pixel: Range

    def __post_init__(self):
        _check_probabilities(self, 'codecs', len(CODECS))
        check_range(self, 'bits_per_pixel', low=1e-3, high=24)


@dataclasses.dataclass(frozen=True)
class SincConfig:
    """Ranges of the final sinc filter.

    Attributes:
      probability: of any filter.
      sizes: smallest and largest side of the kernel in pixels, both odd.
      omega: cutoff frequency in radians per pixel.
    """

    probability: float
    sizes: tuple[int, int]
    omega: Range

    def __post_init__(self):
        check_range(self, 'probability', low=0, high=1)
        check_range(self, 'sizes', low=3, high=99)
        check_range(self, 'omega', low=0.1, high=_PI)
        _check_odd(self)


@dataclasses.dataclass(frozen=True)
class DegradationPassConfig:
    """The ranges of one pass of blur, resize, noise and JPEG, whose quality is from 1 to 100."""

    blur: BlurConfig
    resize: ResizeConfig
    noise: NoiseConfig
    quality: tuple[int, int]

    def __post_init__(self):
        check_range(self, 'quality', low=1, high=100)


@dataclasses.dataclass(frozen=True)
class StrongConfig:
    """The ranges of the second-order model: its two passes, the video codecs and the final sinc filter."""

    first: DegradationPassConfig
    second: DegradationPassConfig
    video: VideoConfig
    sinc: SincConfig


@dataclasses.dataclass(frozen=True)
class FlowBasedConfig:
    """The ranges of the flow-based degradation (`flow_based`).

    Attributes:
      blending: share of the previous frame in the colours, in the ellipses.
      ellipses: smallest and largest number of them.
      radius: their half axes, as a share of the height.
      shutter: length of the blur along the motion, in motions from a frame to the next.
      threshold: motion below which nothing is degraded, as a share of the height a frame.
    """

    blending: Range
    ellipses: tuple[int, int]
    radius: Range
    shutter: Range
    threshold: float

    def __post_init__(self):
        check_range(self, 'blending', low=0, high=1)
        check_range(self, 'ellipses', low=0, high=99)
        check_range(self, 'radius', low=0.01, high=9)
        check_range(self, 'shutter', low=0, high=9)
        check_range(self, 'threshold', low=1e-4, high=1)


@dataclasses.dataclass(frozen=True)
class ModelGuidedConfig:
    """How clips are degraded by the stage that generates previews: shrunk, noised, and denoised from there.

    Attributes:
      checkpoint: of that stage: 'embedded', a run, an export, or the folder of the official release.
      noise_levels: the smallest and the largest, of the states of its sampler that a clip may be noised to; the share
        of the noise's standard deviation in that of noise and data, which is the time of a flow. 0 keeps the clip.
      factor: by which clips are shrunk; sides are rounded down to whole patches.
    """

    checkpoint: PathText
    noise_levels: Range = (0.3, 0.4)
    factor: float = 4.0

    def __post_init__(self):
        check_range(self, 'noise_levels', low=0, high=1)
        check_range(self, 'factor', low=1, high=99)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """How clips are degraded. Each kind has a probability; what is left of 1 is that of the weak degradation.

    Attributes:
      weak: the range of the downsampling factor, of all kinds.
      strong: the ranges of the strong degradation; None for none.
      strong_probability: of a strong degradation.
      flow_based: the ranges of the flow-based degradation; None for none.
      flow_based_probability: of a flow-based degradation.
      model_guided: by which model clips are degraded, and how; None for none.
      model_guided_probability: of a degradation by the model, of clips; images are degraded weakly in its place.
    """

    weak: WeakConfig = dataclasses.field(default_factory=WeakConfig)
    strong: StrongConfig | None = None
    strong_probability: float = 0.0
    flow_based: FlowBasedConfig | None = None
    flow_based_probability: float = 0.0
    model_guided: ModelGuidedConfig | None = None
    model_guided_probability: float = 0.0

    def __post_init__(self):
        for kind in KINDS:
            check_range(self, f'{kind}_probability', low=0, high=1)
            probability = getattr(self, f'{kind}_probability')
            wrong = f'{kind}_probability={probability}: needs `{kind}`, which is none'
            require(getattr(self, kind) is not None or probability == 0, wrong, ConfigError)
        total = sum(self.probabilities().values())
        wrong = f'{", ".join(f"{kind}_probability" for kind in KINDS)}: sum to {total:g}; must be at most 1'
        require(total <= 1 + 1e-9, wrong, ConfigError)

    def without_model(self) -> Self:
        """Returns the same without the model: its clips are degraded weakly."""
        return dataclasses.replace(self, model_guided=None, model_guided_probability=0.0)

    def probabilities(self) -> dict[str, float]:
        """Returns the probability of each of KINDS."""
        return {kind: getattr(self, f'{kind}_probability') for kind in KINDS}


DEGRADATION_FIELDS = tuple(field.name for field in dataclasses.fields(DegradationConfig))


def _check_probabilities(config: object, name: str, count: int) -> None:
    shares = getattr(config, name)
    if len(shares) != count or min(shares) < 0 or abs(sum(shares) - 1) > 1e-3:
        raise ConfigError(f'{name}={shares}: must be {count} probabilities that sum to 1')


def _check_odd(config: object) -> None:
    if any(size % 2 == 0 for size in config.sizes):
        raise ConfigError(f'sizes={config.sizes}: both must be odd, so that a kernel has a centre')
