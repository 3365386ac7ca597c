"""The Frechet distance of known Gaussians, and what FVD refuses."""

import numpy as np
import pytest

from fv_jax.evaluation import i3d


def gaussian(clips: int, mean: float, scale: float, seed: int) -> np.ndarray:
    """Features of three dimensions whose sample mean and covariance are exact."""
    x = np.random.default_rng(seed).normal(0, 1, (clips, 3))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + scale * x


def test_distance_of_gaussians() -> None:
    """3 (m_x - m_y)^2 + 3 (s_x - s_y)^2."""
    x, y = gaussian(64, 0.5, 1, 0), gaussian(80, 2.5, 3, 1)
    assert i3d.frechet_distance(x, y) == pytest.approx(3 * 4 + 3 * 4)
    assert i3d.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_fewer_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r'FVD: 63 clip\(s\); needs at least 64'):
        i3d.frechet_distance(gaussian(64, 0, 1, 0), gaussian(63, 0, 1, 1))


def test_short_clips_are_refused() -> None:
    with pytest.raises(ValueError, match=r'FVD: 9 frame\(s\); needs at least 10'):
        i3d.logits(np.zeros((9, 32, 32, 3), np.float32), {})
