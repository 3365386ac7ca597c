"""Kernels against their equations."""

import numpy as np
import pytest

from fv_jax.data.degradation import blur_kernels
from fv_jax.data.degradation.blur_kernels import blur_kernel, sinc_kernel


def moments(kernel: np.ndarray) -> np.ndarray:
    """The covariance of a kernel taken as a distribution, [[xx, xy], [xy, yy]]."""
    half = len(kernel) // 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    return np.array(
        [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    )


@pytest.mark.parametrize(
    'kernel', [blur_kernel(9, 'gaussian', (2, 1), 0.4), blur_kernel(7, 'plateau', (3, 3), beta=2), sinc_kernel(21, 1.0)]
)
def test_blur_kernels_sum_to_one_and_are_centred(kernel: np.ndarray) -> None:
    np.testing.assert_allclose(kernel.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-9)
    assert kernel.dtype == np.float32 and kernel.argmax() == kernel.size // 2


def test_gaussian_kernel_has_the_requested_covariance() -> None:
    angle = 0.6
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = turn @ np.diag([2.0**2, 1.2**2]) @ turn.T
    np.testing.assert_allclose(moments(blur_kernel(41, 'gaussian', (2.0, 1.2), angle)), expected, atol=1e-3)


def test_generalized_kernel_with_exponent_one_is_gaussian() -> None:
    plain = blur_kernel(15, 'gaussian', (2, 2))
    np.testing.assert_allclose(blur_kernel(15, 'generalized', (2, 2), beta=1.0), plain, atol=1e-8)
    middle = plain[7, 7] / plain[7, 8]
    flat = blur_kernel(15, 'generalized', (2, 2), beta=3.0)
    assert 1 <= flat[7, 7] / flat[7, 8] < middle
    plateau = blur_kernel(15, 'plateau', (2, 2), beta=1.0)
    np.testing.assert_allclose(plateau[7, 7] / plateau[7, 9], 2, atol=1e-5)  # 1 + m, where m = 1


def test_sinc_kernel_is_a_low_pass_filter() -> None:
    kernel = sinc_kernel(41, 1.2)
    half = np.arange(-20, 21)

    def response(frequency: float) -> float:
        return float((kernel * np.cos(frequency * half)[None, :]).sum())

    assert response(0.6) > 0.9 and abs(response(2.2)) < 0.1
    assert kernel.min() < -1e-3  # it rings


def test_blur_kernels_refuse_even_sizes() -> None:
    with pytest.raises(ValueError, match='size=8: the size of a kernel must be odd'):
        blur_kernels.sinc_kernel(8, 1.0)
