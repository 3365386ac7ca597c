"""Low-quality twins: what stage 2 learns to undo.

weak: antialiased bilinear down by a factor drawn from U(low, high), one for the whole clip, and back up to the size it
had. This is what the first stage's output looks like after the resize between the stages (FACTS 5.4, 7). The smaller
size is floor(size / factor) on each side.
"""

import dataclasses
import math

import numpy as np

from fv_jax.core.config import ConfigError
from fv_jax.data.records import Record
from fv_jax.data.resizing import resize_bilinear


@dataclasses.dataclass(frozen=True)
class WeakConfig:
    """low, high: the range of the factor; equal numbers fix it."""

    low: float = 4.0
    high: float = 8.0

    def __post_init__(self):
        if not 1 <= self.low <= self.high < math.inf:
            raise ConfigError(f'low={self.low}: must be 1 <= low <= high (here {self.high})')


def weak(frames_FHWC: np.ndarray, rng: np.random.Generator, config: WeakConfig) -> np.ndarray:
    """The weak twin of a clip: float32 of the same shape and range.

    Raises ValueError when the clip has fewer pixels than the factor.
    """
    factor = rng.uniform(config.low, config.high)
    size = frames_FHWC.shape[1:3]
    small = int(size[0] / factor), int(size[1] / factor)
    if min(small) < 1:
        raise ValueError(f'a clip of {size[0]}x{size[1]} cannot be made {factor:.2f} times smaller')
    return resize_bilinear(resize_bilinear(frames_FHWC, small), size)


@dataclasses.dataclass(frozen=True)
class WeakTwin:
    """The transform: adds low_res_FHWC, the weak twin of high_res_FHWC."""

    config: WeakConfig

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return record | {'low_res_FHWC': weak(record['high_res_FHWC'], rng, self.config)}
