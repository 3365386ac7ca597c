"""The best linear predictor, on velocities that are linear in what it sees."""

import numpy as np
import pytest

from fv_jax.evaluation.linear_baseline import LinearPredictor
from fv_jax.stages.latent_stage import NoisedPair

STRATA = 2


def noised(seed, shape=(STRATA, 2, 6, 6, 2)):
    rng = np.random.default_rng(seed)
    source, data = rng.standard_normal((2, *shape)).astype(np.float32)
    times = np.float32([0.3, 0.8])
    return NoisedPair(source, data, np.zeros((STRATA, 1, 1)), times, np.zeros(STRATA, int))


def fit(draws):
    predictor = LinearPredictor(STRATA)
    for d in draws:
        predictor.add(d)
    return predictor


def test_linear_baseline_is_exact_for_a_linear_velocity():
    """With data = 0.5 everywhere x_t = t source + (1 - t) / 2, and source - 0.5 = (x_t - 0.5) / t: another line for
    each stratum, which one set of coefficients could not be.
    """
    draws = [noised(i) for i in range(4)]
    draws = [d._replace(data_BFHWC=np.full_like(d.data_BFHWC, 0.5)) for d in draws]
    assert fit(draws[:3]).loss(draws[3]) < 1e-4


def test_linear_baseline_uses_neighbours_in_all_directions():
    """Where the data are the source moved by one pixel or frame, the velocity is linear in the neighbourhood's x_t only
    up to the moved pixel's own neighbours; what matters is that it is far better than its centre alone.
    """
    for axis in (1, 2, 3):
        draws = [noised(i, (STRATA, 6, 6, 6, 1)) for i in range(6)]
        moved = [d._replace(data_BFHWC=np.roll(d.source_BFHWC, 1, axis=axis)) for d in draws]
        constant = np.mean([np.square(d.source_BFHWC - d.data_BFHWC).mean() for d in moved])
        assert fit(moved[:5]).loss(moved[5]) < 0.75 * constant


def test_linear_baseline_is_optimal_for_independent_noise():
    """For unit Gaussians the best estimate of source - data from x_t is (2 t - 1) / (t^2 + (1 - t)^2) x_t, with the
    mean square error 2 - (2 t - 1)^2 / (t^2 + (1 - t)^2).
    """
    predictor = fit([noised(i, (STRATA, 4, 16, 16, 2)) for i in range(8)])
    t = np.array([0.3, 0.8])
    best = np.mean(2 - (2 * t - 1) ** 2 / (t**2 + (1 - t) ** 2))
    measured = np.mean([predictor.loss(noised(100 + i, (STRATA, 4, 16, 16, 2))) for i in range(4)])
    assert measured == pytest.approx(best, rel=0.05)


def test_linear_baseline_requires_one_example_per_stratum():
    with pytest.raises(ValueError, match='batch size 2: must be 3, the number of strata'):
        LinearPredictor(3).add(noised(0))
