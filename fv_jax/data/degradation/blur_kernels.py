"""The blur kernels of the published degradation model (Real-ESRGAN, arXiv:2107.10833, section 3.1 and 3.3).

With x the offset from the centre in pixels, R a rotation and C = R diag(sigma_x^2, sigma_y^2) R^T,

  m(x)        = x^T C^-1 x
  gaussian    ~ exp(-m / 2)                                        (1)
  generalized ~ exp(-m^beta / 2)                                   (2)
  plateau     ~ 1 / (1 + m^beta)                                   (3)
  sinc        ~ omega J_1(omega |x|) / (2 pi |x|)                  (4)   the ideal low-pass of cutoff omega, which rings

each normalised to sum 1. Isotropic kernels have sigma_x = sigma_y.
"""

from typing import Literal

import numpy as np
import scipy.special

from fv_jax.core.checks import require

Profile = Literal['gaussian', 'generalized', 'plateau']


def blur_kernel(
    size: int, profile: Profile, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """Computes a kernel (1), (2) or (3), float32 (size, size) with sum 1.

    Args:
      size: side in pixels, odd.
      profile: 'gaussian' is (1), 'generalized' (2), 'plateau' (3).
      sigma: standard deviations (x, y) in pixels, before the rotation.
      angle: of the rotation, radians.
      beta: exponent of (2) and (3).
    """
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin], [sin, cos]])
    inverse = rotation @ np.diag([sigma[0] ** -2.0, sigma[1] ** -2.0]) @ rotation.T
    y, x = _offsets(size)
    distance = inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y
    if profile == 'gaussian':
        kernel = np.exp(-distance / 2)
    elif profile == 'generalized':
        kernel = np.exp(-(distance**beta) / 2)
    else:
        kernel = 1 / (1 + distance**beta)
    return _normalize(kernel)


def sinc_kernel(size: int, omega: float) -> np.ndarray:
    """Computes the kernel (4), float32 (size, size) with sum 1.

    Args:
      size: side in pixels, odd.
      omega: cutoff frequency in radians per pixel, up to pi.
    """
    y, x = _offsets(size)
    radius = np.hypot(x, y)
    away = np.where(radius > 0, radius, 1)
    kernel = np.where(radius > 0, omega * scipy.special.j1(omega * away) / (2 * np.pi * away), omega**2 / (4 * np.pi))
    return _normalize(kernel)


def separable_factors(kernel_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Factors a kernel with sum 1.

    Args:
      kernel_HW: the kernel.

    Returns:
      (column (H,), row (W,)) whose outer product is the kernel; None if it is not separable.
    """
    column, row = kernel_HW.sum(axis=1), kernel_HW.sum(axis=0)  # the factors, if the kernel is separable
    return (column, row) if np.allclose(np.outer(column, row), kernel_HW, atol=1e-7) else None


def _offsets(size: int) -> tuple[np.ndarray, np.ndarray]:
    require(size >= 1 and size % 2 != 0, f'size={size}: the size of a kernel must be odd, so that it has a centre')
    half = size // 2
    return np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)


def _normalize(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum()).astype(np.float32)
