"""Sharpness, noise level, blockiness and NIQE of known frames, and what is refused."""

import numpy as np
import pytest

from fv_jax.evaluation import niqe
from fv_jax.evaluation.no_reference import blockiness, noise_level, sharpness
from tests.evaluation.extra import needs_file

GREY = np.zeros((1, 64, 96, 3), np.float32)
PARAMETERS = niqe.NIQEParameters(np.zeros(36), np.eye(36))


def white_noise(sigma: float, shape: tuple[int, ...] = (1, 64, 96)) -> np.ndarray:
    """Grey noise of a standard deviation in grey levels."""
    noise = np.random.default_rng(0).normal(0, sigma / 127.5, shape)
    return np.repeat(noise[..., None], 3, axis=-1).astype(np.float32)


def test_noise_level_is_the_standard_deviation_of_white_noise() -> None:
    ramp = np.linspace(-0.5, 0.5, 96, dtype=np.float32)[None, None, :, None]
    for sigma in (2, 10):
        assert noise_level(ramp + white_noise(sigma))[0] == pytest.approx(sigma, rel=0.05)
    assert noise_level(GREY + ramp)[0] == pytest.approx(0, abs=1e-3)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    """White noise of variance s^2 has 20 s^2: the squares of the weights sum to 20."""
    assert sharpness(white_noise(3))[0] == pytest.approx(20 * 9, rel=0.05)
    assert sharpness(GREY)[0] == 0


def test_blockiness_is_the_ratio_of_steps() -> None:
    blocks = np.kron(white_noise(10, (1, 8, 12))[..., 0], np.ones((1, 8, 8)))[..., None].repeat(3, -1)
    assert blockiness(blocks.astype(np.float32))[0] > 1000
    assert blockiness(blocks[:, 4:, 4:].astype(np.float32))[0] < 1e-2, 'the grid starts at the edges'
    assert blockiness(white_noise(10))[0] == pytest.approx(1, abs=0.05)
    assert blockiness(GREY)[0] == 1


@pytest.mark.parametrize('level', [-1, 0, 0.2])
def test_niqe_refuses_a_frame_of_one_colour(level: float) -> None:
    frames = np.full((2, 200, 300, 3), level, np.float32)
    frames[0] += white_noise(5, (1, 200, 300))[0]
    with pytest.raises(ValueError, match='NIQE: frame 1 has 0 patch'):
        niqe.niqe(np.clip(frames, -1, 1), PARAMETERS)


def test_niqe_ignores_a_patch_of_one_colour() -> None:
    """Bars beside a video do not change its score."""
    needs_file(niqe.weight_files.NIQE)
    video = white_noise(20, (1, 192, 288))
    bars = np.concatenate([video, np.full((1, 192, 192, 3), -1, np.float32)], axis=2)
    parameters = niqe.load_niqe()
    np.testing.assert_allclose(niqe.niqe(bars, parameters), niqe.niqe(video, parameters), rtol=0.02)


@pytest.mark.parametrize(
    'metric, video, parts',
    [
        (lambda x: niqe.niqe(x, PARAMETERS), GREY, ['NIQE', '64x96', '192x192']),
        (blockiness, GREY[:, :8], ['blockiness', '8x96', '9x9']),
        (sharpness, GREY * np.nan, ['sharpness', 'not finite']),
        (noise_level, GREY[..., :1], ['noise level', '1 channel(s)']),
    ],
)
def test_bad_input_is_refused_in_one_line(metric, video, parts) -> None:
    with pytest.raises(ValueError) as caught:
        metric(video)
    assert all(part in str(caught.value) for part in parts) and '\n' not in str(caught.value)
