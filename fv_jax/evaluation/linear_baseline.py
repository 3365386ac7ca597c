"""Linear-regression baseline of the velocity, which a small network must beat.

Least squares predicts the velocity at a position from the 3x3x3 neighbourhood of x_t (zero padding, all channels, and a
constant), with separate coefficients for each stratum of t. A batch of K copies of a clip has example k in stratum k of
t (`time_grids.stratified_times`).
"""

import dataclasses

import numpy as np

from fv_jax.diffusion import process
from fv_jax.stages.latent_stage import NoisedPair

_RIDGE = 1e-4  # relative to the mean of the diagonal


@dataclasses.dataclass
class LinearPredictor:
    """Accumulates the normal equations of ridge regression, one system per stratum.

    Attributes:
      strata: number of strata of t.
      gram: sums of X^T X, (strata, 27 C + 1, 27 C + 1).
      moment: sums of X^T y, (strata, 27 C + 1, C).
    """

    strata: int
    gram: np.ndarray | None = None
    moment: np.ndarray | None = None

    def add(self, noised: NoisedPair) -> None:
        """Adds a batch of `strata` examples, one per stratum, to the fit."""
        for k, (features, target) in enumerate(_regressions(noised, self.strata)):
            if self.gram is None:
                size = features.shape[1]
                self.gram = np.zeros((self.strata, size, size))
                self.moment = np.zeros((self.strata, size, target.shape[1]))
            self.gram[k] += features.T @ features
            self.moment[k] += features.T @ target

    def loss(self, noised: NoisedPair) -> float:
        """Returns the mean squared error of the velocity over a batch of `strata` examples."""
        errors = []
        for k, (features, target) in enumerate(_regressions(noised, self.strata)):
            gram = self.gram[k]
            ridge = _RIDGE * np.trace(gram) / len(gram)
            weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), self.moment[k])
            errors.append(np.mean(np.square(features @ weights.astype(np.float32) - target)))
        return float(np.mean(errors))


def _regressions(noised: NoisedPair, strata: int):
    if noised.t_B.shape[0] != strata:
        raise ValueError(f'batch size {noised.t_B.shape[0]}: must be {strata}, the number of strata')
    x_t = np.asarray(process.interpolate(noised.source_BFHWC, noised.data_BFHWC, noised.t_B))
    target = np.asarray(process.velocity(noised.source_BFHWC, noised.data_BFHWC))
    for x_FHWC, target_FHWC in zip(x_t, target, strict=True):
        yield _features(x_FHWC), target_FHWC.reshape(-1, target_FHWC.shape[-1])


def _features(x_FHWC: np.ndarray) -> np.ndarray:
    """Returns the 3x3x3 neighbourhoods and a constant, (F H W, 27 C + 1)."""
    frames, height, width, channels = x_FHWC.shape
    padded = np.pad(x_FHWC, ((1, 1), (1, 1), (1, 1), (0, 0)))
    shifts = [
        padded[f : f + frames, h : h + height, w : w + width].reshape(-1, channels)
        for f in range(3)
        for h in range(3)
        for w in range(3)
    ]
    return np.concatenate([*shifts, np.ones((shifts[0].shape[0], 1), np.float32)], axis=1)
