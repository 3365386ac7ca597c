"""Convolutions of the causal video VAE (FACTS 4).

Dimensions: B batch, F frames, H height, W width, C channels; kernels are (time, height, width, in, out)
or (height, width, in, out). A causal convolution sees the present and the past only: the past of a
clip's first frame is that frame repeated; the past of a later chunk is its *cache*, the last two frames
that the convolution saw before, a value that goes in and comes out.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fv_jax.core import axes

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]  # (key, shape) -> a kernel

HISTORY = 2  # frames of the past that a kernel of three needs
NARROW = 32  # channels, below which a convolution on CPU takes three frames as one of three times the channels


def fan_in(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A kernel (..., in, out) of variance 1 / fan_in, uniform."""
    # Uniform and drawn flat: XLA for CPU compiles a truncated normal, or counters of five dimensions, for minutes.
    limit = math.sqrt(3 / math.prod(shape[:-1]))
    return jax.random.uniform(key, (math.prod(shape),), jnp.float32, -limit, limit).reshape(shape)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A kernel of zeros."""
    del key
    return jnp.zeros(shape)


def _conv2d(x_BFHWC: jax.Array, kernel: jax.Array, stride: int = 1, padding=((1, 1), (1, 1))) -> jax.Array:
    """The same 2-D convolution on every frame."""
    batch, frames, *image = x_BFHWC.shape
    y = lax.conv_general_dilated(
        x_BFHWC.reshape(batch * frames, *image),
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y.reshape(batch, frames, *y.shape[1:])


def _conv3d_native(x_BFHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x_BFHWC,
        kernel,
        window_strides=(1, 1, 1),
        padding=((0, 0), (1, 1), (1, 1)),
        dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'),
    )


def _conv3d_by_frames(x_BFHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    frames = x_BFHWC.shape[1] - HISTORY
    taps = [x_BFHWC[:, i : i + frames] for i in range(3)]
    if x_BFHWC.shape[-1] >= NARROW:
        return sum(_conv2d(tap, kernel[i]) for i, tap in enumerate(taps))
    # Few channels leave the vector units half empty: three frames side by side take half the time, and memory to spare.
    return _conv2d(jnp.concatenate(taps, axis=-1), jnp.concatenate(list(kernel), axis=-2))


def conv3d(x_BFHWC: jax.Array, kernel: jax.Array) -> jax.Array:
    """3x3x3 convolution, valid in time and zero-padded in space: F frames give F - 2.

    XLA for CPU runs a 3-D convolution 3 to 6 times slower than the three 2-D ones it is the sum of.
    """
    return lax.platform_dependent(x_BFHWC, kernel, cpu=_conv3d_by_frames, default=_conv3d_native)


def _per_channel(vector: nnx.Param, dtype: str = 'float32') -> jax.Array:
    return vector[...].astype(dtype).reshape(1, 1, 1, 1, -1)


class CausalConv3d(nnx.Module):
    """3x3x3 convolution, causal in time, zero-padded in space."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: str, rngs: nnx.Rngs, kernel_init: Init = fan_in):
        shape = (3, 3, 3, in_channels, out_channels)
        self.kernel = axes.param(kernel_init(rngs.params(), shape), (None, None, None, axes.CONV_IN, axes.CONV_OUT))
        self.bias = axes.param(jnp.zeros(out_channels), (axes.CONV_OUT,))
        self.dtype = dtype

    def __call__(self, x_BFHWC: jax.Array, cache_BFHWC: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the result and the cache for the chunk that follows. A cache of None starts a clip."""
        x_BFHWC = x_BFHWC.astype(self.dtype)
        past = jnp.repeat(x_BFHWC[:, :1], HISTORY, axis=1) if cache_BFHWC is None else cache_BFHWC
        padded = jnp.concatenate([past, x_BFHWC], axis=1)
        if cache_BFHWC is None and x_BFHWC.shape[1] == 1:
            # Every tap in time sees the one picture: a third of the work.
            y = _conv2d(x_BFHWC, self.kernel[...].sum(0).astype(self.dtype))
        else:
            y = conv3d(padded, self.kernel[...].astype(self.dtype))
        return y + _per_channel(self.bias, self.dtype), padded[:, -HISTORY:]


class PointwiseConv(nnx.Module):
    """1x1x1 convolution: a linear map of the channels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
        kernel_init: Init = fan_in,
        bias: float = 0.0,
    ):
        shape = (in_channels, out_channels)
        self.kernel = axes.param(kernel_init(rngs.params(), shape), (axes.CONV_IN, axes.CONV_OUT))
        self.bias = axes.param(jnp.full(out_channels, bias, jnp.float32), (axes.CONV_OUT,))
        self.dtype = dtype

    def __call__(self, x_BFHWC: jax.Array) -> jax.Array:
        return x_BFHWC.astype(self.dtype) @ self.kernel[...].astype(self.dtype) + _per_channel(self.bias, self.dtype)


class FrameConv(nnx.Module):
    """3x3 convolution of each frame; `stride` 2 halves the size and pads right and bottom only."""

    def __init__(self, channels: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs):
        shape = (3, 3, channels, channels)
        self.kernel = axes.param(fan_in(rngs.params(), shape), (None, None, axes.CONV_IN, axes.CONV_OUT))
        self.bias = axes.param(jnp.zeros(channels), (axes.CONV_OUT,))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x_BFHWC: jax.Array) -> jax.Array:
        padding = ((1, 1), (1, 1)) if self.stride == 1 else ((0, 1), (0, 1))
        kernel = self.kernel[...].astype(self.dtype)
        return _conv2d(x_BFHWC.astype(self.dtype), kernel, self.stride, padding) + _per_channel(self.bias, self.dtype)


class GroupNorm(nnx.Module):
    """Normalises over a group's channels and all frames, rows and columns of the chunk; eps 1e-6, float32."""

    eps = 1e-6

    def __init__(self, channels: int, groups: int, *, bias: float = 0.0):
        self.scale = axes.param(jnp.ones(channels), (axes.NORM,))
        self.bias = axes.param(jnp.full(channels, bias, jnp.float32), (axes.NORM,))
        self.groups = groups

    def __call__(self, x_BFHWC: jax.Array) -> jax.Array:
        # Channels stay the last dimension throughout; only (B, C) statistics are ever regrouped.
        x_BFHWC = x_BFHWC.astype(jnp.float32)
        centred = x_BFHWC - self._over_groups(x_BFHWC.mean((1, 2, 3), keepdims=True))
        var = self._over_groups(jnp.square(centred).mean((1, 2, 3), keepdims=True))
        normed = centred * lax.rsqrt(var + self.eps)
        return normed * _per_channel(self.scale) + _per_channel(self.bias)

    def _over_groups(self, stat_B111C: jax.Array) -> jax.Array:
        grouped = stat_B111C.reshape(*stat_B111C.shape[:-1], self.groups, -1).mean(-1, keepdims=True)
        return jnp.broadcast_to(grouped, (*grouped.shape[:-1], stat_B111C.shape[-1] // self.groups)).reshape(
            stat_B111C.shape
        )
