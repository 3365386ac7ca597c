"""Degradations: make the low-quality (LQ) input of a training pair from its high-quality (HQ) clip.

weak: antialiased bilinear downsampling by a factor drawn from U(low, high), one for the whole clip, and upsampling to
the original size, which is what the first stage's output looks like after the resize between the stages (model guide
5.4, 7). The smaller size is floor(size / factor) on each side.

strong: the second-order model for videos of unknown quality, in the order of RealBasicVSR (arXiv:2111.12704), which
extends Real-ESRGAN (arXiv:2107.10833) to video:

  two passes:  blur, resize, noise, JPEG; a video codec after the first pass
  then, in either order:  a video codec;  the resize to the smaller size and a sinc filter

and, as for weak, bilinear upsampling. The parameters are drawn once for each clip: `sample_strong` returns its
operations. An image (one frame) is compressed with JPEG where a clip is encoded with a video codec.

flow-based: what moves has colours of the frame before and is blurred along its motion (`flow_based`), as in videos that
models generate; then as weak.

model-guided: the clip is shrunk, noised to a level of a model that generates previews, and denoised from there by that
model (SimpleGVR, arXiv:2506.19838), so that it looks like a preview. The model runs on accelerators, and so not here:
what is drawn is a `GuidedByModel`, for a `PreviewModel`.

The ranges, with their sources, are in `configs/degradations.py`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from fv_jax.data.degradation import blur_kernels, flow_based
from fv_jax.data.degradation import operations as steps
from fv_jax.data.degradation.compression import CODECS
from fv_jax.data.degradation.configs import (
    DEGRADATION_FIELDS,
    SHAPES,
    SMALL_KERNEL,
    BlurConfig,
    DegradationConfig,
    DegradationPassConfig,
    FlowBasedConfig,
    NoiseConfig,
    Range,
    ResizeConfig,
    SincConfig,
    StrongConfig,
    WeakConfig,
)
from fv_jax.data.degradation.operations import Step, even_size
from fv_jax.data.numpy_resize import resize_bilinear
from fv_jax.data.shards.records import Record


def degrade_weak(frames_FHWC: np.ndarray, rng: np.random.Generator, config: WeakConfig) -> np.ndarray:
    """Degrades a clip by bilinear down- and upsampling.

    Args:
      frames_FHWC: float32 in [-1, 1].
      rng: draws the factor.
      config: the range of the factor.

    Returns:
      float32 of the same shape and range.

    Raises:
      ValueError: a side of the clip is shorter than the factor.
    """
    size = frames_FHWC.shape[1:3]
    return resize_bilinear(resize_bilinear(frames_FHWC, config.sample_size(size, rng)), size)


def degrade_strong(
    frames_FHWC: np.ndarray, rng: np.random.Generator, config: StrongConfig, factor: WeakConfig
) -> np.ndarray:
    """Degrades a clip by the second-order model.

    Args:
      frames_FHWC: float32 in [-1, 1].
      rng: draws the parameters.
      config: ranges of the parameters.
      factor: range of the downsampling factor, as for `degrade_weak`.

    Returns:
      float32 of the same shape and range, rounded to 8-bit levels before the upsampling.
    """
    return apply_steps(_draw(frames_FHWC, rng, config, factor), frames_FHWC)


def downsample_strong(
    frames_FHWC: np.ndarray, rng: np.random.Generator, config: StrongConfig, factor: WeakConfig
) -> np.ndarray:
    """Degrades a clip as `degrade_strong`, but for the upsampling; returns uint8 (F, h, w, 3)."""
    drawn = _draw(frames_FHWC, rng, config, factor)
    return np.stack([levels.astype(np.uint8) for levels in _degraded_frames(drawn, frames_FHWC)])


def degrade_flow_based(
    frames_FHWC: np.ndarray, rng: np.random.Generator, config: FlowBasedConfig, factor: WeakConfig
) -> np.ndarray:
    """Degrades what moves in a clip (`flow_based`), then the clip as `degrade_weak`.

    Args:
      frames_FHWC: float32 in [-1, 1].
      rng: draws the parameters.
      config: ranges of the parameters.
      factor: range of the downsampling factor.

    Returns:
      float32 of the same shape and range.
    """
    return degrade_weak(flow_based.sample_motion(rng, config)(frames_FHWC), rng, factor)


def _draw(
    frames_FHWC: np.ndarray, rng: np.random.Generator, config: StrongConfig, factor: WeakConfig
) -> tuple[Step, ...]:
    target = even_size(factor.sample_size(frames_FHWC.shape[1:3], rng), 1)
    return sample_strong(rng, config, target=target, frames=len(frames_FHWC))


def apply_steps(drawn: Sequence[Step], frames_FHWC: np.ndarray) -> np.ndarray:
    """Applies the steps of a strong degradation, rounds to 8-bit levels and resizes to the original size.

    Args:
      drawn: the steps (`sample_strong`).
      frames_FHWC: float32 in [-1, 1].

    Returns:
      float32 of the same shape and range.
    """
    out = np.empty(frames_FHWC.shape, np.float32)
    count = 0
    for levels in _degraded_frames(drawn, frames_FHWC):
        small = levels * np.float32(2 / 255) - 1
        out[count] = resize_bilinear(small[None], frames_FHWC.shape[1:3])[0]
        count += 1
    assert count == len(out), f'{count} of {len(out)} frames came back'
    return out


def _degraded_frames(drawn: Sequence[Step], frames_FHWC: np.ndarray) -> Iterator[np.ndarray]:
    """Applies the steps; yields whole levels from 0 to 255, float32 (h, w, 3)."""
    stream = ((frame.astype(np.float32) + 1) * np.float32(127.5) for frame in frames_FHWC)
    for frame in functools.reduce(lambda frames, step: step(frames), drawn, stream):
        yield np.rint(np.clip(frame, 0, 255))


def sample_strong(
    rng: np.random.Generator, config: StrongConfig, *, target: tuple[int, int], frames: int
) -> tuple[Step, ...]:
    """Draws the steps of a strong degradation for one clip.

    Args:
      rng: draws the parameters.
      config: ranges of the parameters.
      target: (height, width) of the degraded frames before the upsampling.
      frames: of the clip; 1 is an image.

    Returns:
      The steps, in order, for `apply_steps`.
    """

    def codec(pass_config: DegradationPassConfig) -> list[Step]:
        if frames == 1:
            return [steps.Jpeg(_sample_integer(rng, pass_config.quality))]
        name = CODECS[rng.choice(len(CODECS), p=_normalize(config.video.codecs))]
        return [steps.Video(name, rng.uniform(*config.video.bits_per_pixel))]

    first = [*_sample_pass(rng, config.first), *codec(config.first)]
    second = _sample_pass(rng, config.second)
    compress = codec(config.second)
    shrink = [steps.Resize(_sample_interpolation(rng), size=target), *_sample_sinc(rng, config.sinc)]
    last = [compress, shrink] if rng.random() < 0.5 else [shrink, compress]
    return (*first, *second, *last[0], *last[1])


def _sample_pass(rng: np.random.Generator, config: DegradationPassConfig) -> list[Step]:
    return [
        *_sample_blur(rng, config.blur),
        *_sample_resize(rng, config.resize),
        _sample_noise(rng, config.noise),
        steps.Jpeg(_sample_integer(rng, config.quality)),
    ]


def _sample_blur(rng: np.random.Generator, config: BlurConfig) -> list[Step]:
    if rng.random() >= config.probability:
        return []
    size = _sample_odd(rng, config.sizes)
    shape = SHAPES[rng.choice(len(SHAPES), p=_normalize(config.shapes))]
    if shape == 'sinc':
        lowest = math.pi / 3 if size < SMALL_KERNEL else math.pi / 5
        omega = rng.uniform(lowest, math.pi)
        return [steps.Blur(blur_kernels.sinc_kernel(size, omega), f'sinc {omega:.2f}')]
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
    kernel = blur_kernels.blur_kernel(size, profile, (sigma, across), angle, _sample_around_one(rng, beta))
    return [steps.Blur(kernel, f'{shape} {sigma:.1f}')]


def _sample_around_one(rng: np.random.Generator, between: Range) -> float:
    """Draws below 1 as often as above 1 if the range contains 1, like the official code of Real-ESRGAN."""
    low, high = between
    if low < 1 < high:
        return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return rng.uniform(low, high)


def _sample_resize(rng: np.random.Generator, config: ResizeConfig) -> list[Step]:
    mode = rng.choice(3, p=_normalize(config.modes))
    if mode == 2:
        return []
    scale = rng.uniform(1, config.scale[1]) if mode == 0 else rng.uniform(config.scale[0], 1)
    return [steps.Resize(_sample_interpolation(rng), scale=scale)]


def _sample_noise(rng: np.random.Generator, config: NoiseConfig) -> Step:
    grey, seed = bool(rng.random() < config.grey), int(rng.integers(2**63))
    if rng.random() < config.poisson:
        return steps.PoissonNoise(rng.uniform(*config.poisson_scale), grey, seed)
    return steps.GaussianNoise(rng.uniform(*config.gaussian_sigma), grey, seed)


def _sample_sinc(rng: np.random.Generator, config: SincConfig) -> list[Step]:
    if rng.random() >= config.probability:
        return []
    omega = rng.uniform(*config.omega)
    return [steps.Blur(blur_kernels.sinc_kernel(_sample_odd(rng, config.sizes), omega), f'sinc {omega:.2f}')]


def _sample_interpolation(rng: np.random.Generator) -> str:
    return list(steps.INTERPOLATIONS)[rng.integers(len(steps.INTERPOLATIONS))]


def _sample_odd(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    return int(rng.choice(np.arange(sizes[0], sizes[1] + 1, 2)))


def _sample_integer(rng: np.random.Generator, between: tuple[int, int]) -> int:
    return int(rng.integers(between[0], between[1] + 1))


def _normalize(shares: Sequence[float]) -> np.ndarray:
    return np.asarray(shares) / np.sum(shares)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Degradation(DegradationConfig):
    """Degrades clips, each by one kind of degradation."""

    @classmethod
    def of(cls, config: DegradationConfig) -> 'Degradation':
        """Returns the degradation of a configuration that has more fields."""
        return cls(**{name: getattr(config, name) for name in DEGRADATION_FIELDS})

    def degrade(self, frames_FHWC: np.ndarray, rng: np.random.Generator) -> 'np.ndarray | GuidedByModel':
        """Degrades a clip.

        Args:
          frames_FHWC: float32 in [-1, 1].
          rng: draws the degradation.

        Returns:
          float32 of the same shape and range; or what a model has to do for it.

        Raises:
          ValueError: a side of the clip is shorter than the downsampling factor.
        """
        kind = self.sample_kind(rng)
        if kind == 'model_guided' and len(frames_FHWC) > 1:
            return GuidedByModel(int(rng.integers(2**32)))
        if kind == 'strong':
            return degrade_strong(frames_FHWC, rng, self.strong, self.weak)
        if kind == 'flow_based':
            return degrade_flow_based(frames_FHWC, rng, self.flow_based, self.weak)
        return degrade_weak(frames_FHWC, rng, self.weak)

    def sample_kind(self, rng: np.random.Generator) -> str:
        """Draws one of KINDS, or 'weak'."""
        probabilities = self.probabilities()
        # Without other kinds nothing is drawn, so that weak degradation alone depends on the generator only.
        if not any(probabilities.values()):
            return 'weak'
        drawn = rng.random()
        for kind, below in zip(probabilities, itertools.accumulate(probabilities.values()), strict=True):
            if drawn < below:
                return kind
        return 'weak'


@dataclasses.dataclass(frozen=True)
class GuidedByModel:
    """A degraded clip that a `PreviewModel` has yet to make; seed: of all that it draws."""

    seed: int


class PreviewModel(Protocol):
    """Degrades clips by a model that generates previews."""

    def __call__(self, frames_FHWC: np.ndarray, drawn: GuidedByModel, text_LD: np.ndarray | None) -> np.ndarray:
        """Degrades a clip.

        Args:
          frames_FHWC: float32 in [-1, 1].
          drawn: the seed.
          text_LD: the embedding of its caption; None without one.

        Returns:
          float32 of the same shape and range.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Degrade:
    """A transform that adds low_res_FHWC, the degraded high_res_FHWC.

    Attributes:
      degradation: without a model: the loader's threads must not start JAX.
    """

    degradation: Degradation

    def __post_init__(self):
        assert not self.degradation.model_guided_probability, 'clips are degraded by the model when they are encoded'

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return record | {'low_res_FHWC': self.degradation.degrade(record['high_res_FHWC'], rng)}
