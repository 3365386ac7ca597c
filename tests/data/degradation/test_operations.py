"""Each step does what its numbers say, measured."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fv_jax.data.degradation import blur_kernels, compression
from fv_jax.data.degradation import operations as steps
from tests.data import sample_videos


def flat(level: float, size: int = 256, frames: int = 2) -> list[np.ndarray]:
    return [np.full((size, size, 3), level, np.float32)] * frames


def texture(frames: int = 3, height: int = 64, width: int = 96) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    video = sample_videos.pattern(frames, height, width) + rng.normal(0, 12, (1, height, width, 1))
    return list(np.clip(video, 0, 255).astype(np.float32))


def gradient_energy(frames: list[np.ndarray]) -> float:
    return float(np.mean([np.mean(np.diff(frame, axis=a) ** 2) for frame in frames for a in (0, 1)]))


def psnr(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return float(10 * np.log10(255**2 / np.mean((np.stack(a) - np.stack(b)) ** 2)))


@pytest.mark.parametrize('grey', [False, True])
@pytest.mark.parametrize('sigma', [1.0, 7.0, 25.0])
def test_gaussian_noise_has_the_requested_deviation(sigma: float, grey: bool) -> None:
    noise = np.stack(list(steps.GaussianNoise(sigma, grey, seed=1)(flat(128)))) - 128
    np.testing.assert_allclose(noise.std(), sigma, rtol=0.02)
    assert abs(noise.mean()) < 0.02 * sigma
    assert (noise == noise[..., :1]).all() == grey
    between = np.corrcoef(noise[0, ..., 0].ravel(), noise[1, ..., 0].ravel())[0, 1]
    assert abs(between) < 0.02
    kurtosis = np.mean((noise / noise.std()) ** 4)
    np.testing.assert_allclose(kurtosis, 3, atol=0.15)


@pytest.mark.parametrize('scale', [0.5, 2.0])
@pytest.mark.parametrize('level', [3, 40, 128])
def test_poisson_noise_has_the_variance_of_the_level(level: int, scale: float) -> None:
    noise = np.stack(list(steps.PoissonNoise(scale, False, seed=1)(flat(level)))) - level
    if scale * np.sqrt(level) * 4 < level:  # where clipping at black does not cut it
        np.testing.assert_allclose(noise.var(), scale**2 * level, rtol=0.03)
        assert abs(noise.mean()) < 0.03 * scale * np.sqrt(level)
    assert noise.min() >= -level
    (black,) = steps.PoissonNoise(scale, False, seed=1)(flat(0, frames=1))
    assert (black == 0).all()


def test_poisson_noise_is_skewed_at_dark_levels() -> None:
    (dark,) = steps.PoissonNoise(1.0, False, seed=2)(flat(4, frames=1))
    noise = dark - 4
    np.testing.assert_allclose(np.mean(noise**3) / noise.std() ** 3, 1 / np.sqrt(4), atol=0.05)
    (grey,) = steps.PoissonNoise(1.0, True, seed=2)(flat(100, frames=1))
    assert (grey == grey[..., :1]).all()


def test_degradation_steps_keep_8_bit_levels() -> None:
    for step in (steps.GaussianNoise(30.0, False, 1), steps.PoissonNoise(3.0, True, 1)):
        for level in (0, 255):
            (out,) = step(flat(level, frames=1))
            assert out.min() >= 0 and out.max() <= 255


@pytest.mark.parametrize('name', ['gaussian', 'generalized', 'plateau'])
def test_wider_blur_leaves_less_gradient_energy(name: str) -> None:
    frames = texture()
    energies = [gradient_energy(frames)]
    for sigma in (0.6, 1.5, 3.0):
        kernel = blur_kernels.blur_kernel(21, name, (sigma, sigma), beta=1.5)
        energies.append(gradient_energy(list(steps.Blur(kernel, name)(frames))))
    assert all(after < 0.9 * before for before, after in itertools.pairwise(energies))


def test_separable_and_full_blur_are_equal() -> None:
    frames = texture(1)
    kernel = blur_kernels.blur_kernel(13, 'gaussian', (1.4, 1.4))
    assert blur_kernels.separable_factors(kernel) is not None
    turned = blur_kernels.blur_kernel(13, 'gaussian', (1.4, 3.0), angle=0.7)
    assert blur_kernels.separable_factors(turned) is None
    (quick,) = steps.Blur(kernel, '')(frames)
    slow = np.stack([_convolve(frames[0][..., c], kernel) for c in range(3)], axis=-1)
    np.testing.assert_allclose(quick, slow, atol=1e-3)
    (quick,) = steps.Blur(turned, '')(frames)
    slow = np.stack([_convolve(frames[0][..., c], turned) for c in range(3)], axis=-1)
    np.testing.assert_allclose(quick, slow, atol=1e-3)


def _convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    half = len(kernel) // 2
    padded = np.pad(image, half, mode='reflect')
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return np.einsum('hwij,ij->hw', windows, kernel)


def test_resize_step_sizes_and_limits() -> None:
    frames = texture(2)
    assert [f.shape for f in steps.Resize('bicubic', scale=0.5)(frames)] == [(32, 48, 3)] * 2
    assert [f.shape for f in steps.Resize('area', size=(20, 30))(frames)] == [(20, 30, 3)] * 2
    assert steps.even_size((64, 96), 0.15) == (16, 16)
    assert steps.even_size((101, 203), 0.5) == (50, 102)
    assert gradient_energy(list(steps.Resize('bilinear', size=(64, 96))(frames))) == gradient_energy(frames)


def test_jpeg_loses_more_at_lower_quality() -> None:
    frames = texture()
    found = [psnr(frames, list(steps.Jpeg(quality)(frames))) for quality in (95, 70, 30, 5)]
    assert all(a > b + 0.5 for a, b in itertools.pairwise(found)) and found[0] > 27
    colour = np.zeros((32, 32, 3), np.uint8)
    colour[...] = 200, 60, 20
    np.testing.assert_allclose(compression.compress_jpeg(colour, 95), colour, atol=4)  # red stays red


@pytest.mark.parametrize('codec', compression.CODECS)
def test_codecs_lose_more_at_lower_rates(codec: compression.Codec) -> None:
    frames = texture(9)
    found = []
    for bits in (3.0, 0.8, 0.1):
        out = list(steps.Video(codec, bits)(frames))
        assert len(out) == 9 and out[0].shape == frames[0].shape
        found.append(psnr(frames, out))
    assert all(a > b + 0.2 for a, b in itertools.pairwise(found)) and found[0] > 25
    # Each frame comes back at its place.
    out = list(steps.Video(codec, 4.0)(frames))
    errors = [[psnr([a], [b]) for b in frames] for a in out]
    assert [int(np.argmax(row)) for row in errors] == list(range(9))


_HASHES = """
import hashlib
import numpy as np
from fv_jax.data.degradation import compression
from tests.data import sample_videos
noise = np.random.default_rng(0).normal(0, 20, (9, 36, 54, 3))
frames = np.clip(sample_videos.pattern(9, 36, 54) + noise, 0, 255).astype(np.uint8)
for codec in compression.CODECS:
    print(hashlib.sha256(np.stack(list(compression.compress_video(frames, codec, 0.3)))).hexdigest())
"""


def test_codecs_are_deterministic() -> None:
    """glibc fills new memory with a byte of our choice: an encoder that reads what it has not written shows it."""
    found = [
        subprocess.run(
            [sys.executable, '-c', _HASHES],
            env=os.environ | {'MALLOC_PERTURB_': byte},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for byte in ('1', '170')
    ]
    assert found[0] == found[1] and len(found[0]) == 2


@pytest.mark.parametrize('codec', compression.CODECS)
def test_codecs_accept_the_smallest_size_and_no_frames(codec: compression.Codec) -> None:
    frames = texture(2)
    smallest = [frame[:16, :16] for frame in frames[:2]]
    assert len(list(steps.Video(codec, 0.01)(smallest))) == 2
    assert list(compression.compress_video([], codec, 1.0)) == []
