"""Figures of known videos."""

import numpy as np
import pytest

from fv_jax.evaluation.metrics import detail, flicker, psnr


def test_psnr():
    x = np.zeros((2, 4, 4, 3), np.float32)
    assert psnr(x, x + 0.2) == pytest.approx(20)  # 10 log10 (4 / 0.04)
    assert psnr(x - 1, x + 1) == pytest.approx(0)
    assert psnr(x, x) == float('inf')
    assert psnr(x + 0.2, x) == psnr(x, x + 0.2)


def test_detail_of_a_ramp_is_its_slope():
    rows, columns = np.mgrid[:6, :8].astype(np.float32)
    grey = np.repeat((0.03 * rows + 0.04 * columns)[None, ..., None], 3, axis=-1)
    assert detail(grey) == pytest.approx(0.05, rel=1e-4)
    assert detail(2 * grey) == pytest.approx(0.1, rel=1e-4)
    assert detail(np.ones((1, 4, 4, 3), np.float32)) == pytest.approx(0, abs=1e-6)


def test_detail_is_computed_on_luma():
    """Green weighs 0.587, blue 0.114."""
    ramp = np.zeros((1, 4, 8, 3), np.float32)
    ramp[..., 1] = 0.1 * np.arange(8)
    assert detail(ramp) == pytest.approx(0.0587, rel=1e-4)
    assert detail(ramp[..., [0, 2, 1]]) == pytest.approx(0.0114, rel=1e-4)


def test_flicker():
    video = np.zeros((3, 2, 2, 3), np.float32)
    video[1] = 0.3
    assert flicker(video) == pytest.approx(0.3)
    assert flicker(video[:1]) == 0
