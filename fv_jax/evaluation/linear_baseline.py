"""The rival a small network must beat: the best linear predictor of the velocity.

From the 3x3x3 neighbourhood of every position of x_t (zeros outside, all channels, and a constant), least squares gives
the velocity at that position, with coefficients of their own for each stratum of t. A batch of K equal clips has its
rows in K strata of t (`times.stratified_times`), so row k belongs to stratum k.
"""

import dataclasses

import numpy as np

from fv_jax.diffusion import process
from fv_jax.stages.latent_stage import NoisedPair

_RIDGE = 1e-4  # relative to the mean of the diagonal


@dataclasses.dataclass
class LinearPredictor:
    """Sums of the normal equations, one pair for each stratum."""

    strata: int
    gram: np.ndarray | None = None
    moment: np.ndarray | None = None

    def add(self, noised: NoisedPair) -> None:
        """Takes one batch of `strata` rows into the fit."""
        for k, (features, target) in enumerate(_problems(noised, self.strata)):
            if self.gram is None:
                size = features.shape[1]
                self.gram = np.zeros((self.strata, size, size))
                self.moment = np.zeros((self.strata, size, target.shape[1]))
            self.gram[k] += features.T @ features
            self.moment[k] += features.T @ target

    def loss(self, noised: NoisedPair) -> float:
        """Mean squared error of the velocity over a batch of `strata` rows, as the stage's loss counts it."""
        errors = []
        for k, (features, target) in enumerate(_problems(noised, self.strata)):
            gram = self.gram[k]
            ridge = _RIDGE * np.trace(gram) / len(gram)
            weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), self.moment[k])
            errors.append(np.mean(np.square(features @ weights.astype(np.float32) - target)))
        return float(np.mean(errors))


def _problems(noised: NoisedPair, strata: int):
    if noised.t_B.shape[0] != strata:
        raise ValueError(f'a batch of {noised.t_B.shape[0]} rows; the predictor has {strata} strata')
    x_t = np.asarray(process.interpolate(noised.source_BFHWC, noised.data_BFHWC, noised.t_B))
    target = np.asarray(process.velocity(noised.source_BFHWC, noised.data_BFHWC))
    for x_FHWC, target_FHWC in zip(x_t, target, strict=True):
        yield _neighbourhoods(x_FHWC), target_FHWC.reshape(-1, target_FHWC.shape[-1])


def _neighbourhoods(x_FHWC: np.ndarray) -> np.ndarray:
    """(F H W, 27 C + 1)."""
    frames, height, width, channels = x_FHWC.shape
    padded = np.pad(x_FHWC, ((1, 1), (1, 1), (1, 1), (0, 0)))
    shifts = [
        padded[f : f + frames, h : h + height, w : w + width].reshape(-1, channels)
        for f in range(3)
        for h in range(3)
        for w in range(3)
    ]
    return np.concatenate([*shifts, np.ones((shifts[0].shape[0], 1), np.float32)], axis=1)
