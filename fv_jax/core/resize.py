"""Bilinear resizing with antialiasing.

A triangle filter of half-pixel centres, widened by the ratio when the image shrinks (model guide 5.4). Along one axis,
with r the ratio input/output and w = max(r, 1):

    centre_i = r (i + 1/2)                              (1)
    weight_ij ~ max(0, 1 - |j + 1/2 - centre_i| / w)    (2)   over the input pixels j that exist, each row summing to 1

Both axes are therefore small matrices, and resizing is two matrix products. Edges need no padding: the weights of the
pixels that exist are renormalised. (1) and (2) are evaluated in float32, on the host, as the official code does it:
at a ratio like 16/80 the rounding of a centre moves the result by 3e-6, and with float64 that would be the largest
difference left.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fv_jax.core.checks import require


def resize_matrix(size_in: int, size_out: int, ratio: float | None = None) -> np.ndarray:
    """Computes the weights (2), float32 of shape (size_out, size_in); each row sums to 1.

    Args:
      size_in, size_out: numbers of pixels.
      ratio: input pixels per output pixel; None is size_in / size_out.

    Raises:
      ValueError: a size is not positive, or the output reaches beyond the input.
    """
    require(size_in >= 1 and size_out >= 1, f'cannot resize {size_in} pixels to {size_out}: both must be at least 1')
    ratio = np.float32(size_in) / np.float32(size_out) if ratio is None else np.float32(ratio)
    half, one = np.float32(0.5), np.float32(1)
    centres = ratio * (np.arange(size_out, dtype=np.float32) + half)  # (1)
    offsets = (np.arange(size_in, dtype=np.float32)[None, :] - centres[:, None]) + half
    weights = np.maximum(0, one - np.abs(offsets) / np.maximum(ratio, one))  # (2)
    totals = weights.sum(axis=1, keepdims=True)
    if not np.all(totals > 0):
        raise ValueError(f'{size_out} pixels of {ratio} input pixels each reach outside of {size_in} input pixels')
    return weights / totals


def resize(
    image_HWC: jax.Array, height: int, width: int, *, ratio: float | tuple[float, float] | None = None
) -> jax.Array:
    """Resizes images bilinearly. Values are neither rounded nor clipped.

    Args:
      image_HWC: (..., H, W, C), floating point, of any range.
      height, width: of the output in pixels.
      ratio: input pixels per output pixel, one for both axes or (height, width); None is input size / output size.

    Returns:
      (..., height, width, C) in the dtype of the input; computed in float32.

    Raises:
      ValueError: fewer than three axes, values that are not floating point, or a size that is not positive.
    """
    require(image_HWC.ndim >= 3, f'expected (..., height, width, channels), got shape {image_HWC.shape}')
    if not jnp.issubdtype(image_HWC.dtype, jnp.floating):
        raise ValueError(f'expected floating point values, got {image_HWC.dtype}; convert to float32 first')
    ratio_h, ratio_w = ratio if isinstance(ratio, tuple) else (ratio, ratio)
    rows = resize_matrix(image_HWC.shape[-3], height, ratio_h)
    columns = resize_matrix(image_HWC.shape[-2], width, ratio_w)
    # Float32 products on every device: a TPU would round the inputs to bfloat16 by default.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    out = product('ph,...hwc->...pwc', rows, image_HWC.astype(jnp.float32))
    out = product('qw,...pwc->...pqc', columns, out)
    return out.astype(image_HWC.dtype)
