"""Convolutions of the causal video VAE (model guide 4).

Dimensions: B batch, F frames, H height, W width, C channels; kernels are (time, height, width, in, out)
or (height, width, in, out). A causal convolution reads the current and earlier frames only. Before a
clip's first frame it reads copies of that frame; before a later chunk it reads the *cache*, the last two
frames of its input so far, which is passed in and returned.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fv_jax.core import axes
from fv_jax.models.blocked_conv import conv_blocks
from fv_jax.models.lazy_frames import LazyFrames

Init = Callable[[jax.Array, tuple[int, ...]], jax.Array]  # (key, shape) -> a kernel

HISTORY = 2  # earlier frames that a kernel of three taps in time reads
NARROW = 32  # channels, below which a convolution on CPU concatenates three frames along the channels


def fan_in(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws a kernel (..., in, out) from a uniform distribution of mean 0 and variance 1 / fan_in."""
    # Uniform and drawn flat: XLA for CPU compiles a truncated normal, or counters of five dimensions, for minutes.
    limit = math.sqrt(3 / math.prod(shape[:-1]))
    return jax.random.uniform(key, (math.prod(shape),), jnp.float32, -limit, limit).reshape(shape)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns a float32 kernel of zeros; `key` is ignored."""
    del key
    return jnp.zeros(shape)


def _conv2d(x_NHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolves images with zero padding: on all sides with stride 1, right and bottom only with stride 2."""
    side = (1, 1) if stride == 1 else (0, 1)
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x_NHWC, kernel, (stride, stride), (side, side), dimension_numbers=numbers)


def _conv_concat_taps(frames: Sequence[jax.Array], kernel: jax.Array, stride: int) -> jax.Array:
    return _conv2d(jnp.concatenate(frames, axis=-1), jnp.concatenate(list(kernel), axis=-2), stride)


def _conv_per_tap(frames: Sequence[jax.Array], kernel: jax.Array, stride: int) -> jax.Array:
    return sum(_conv2d(frame, kernel[i], stride) for i, frame in enumerate(frames))


def _conv_batched(
    x: LazyFrames, past: jax.Array | None, kernel: jax.Array, bias: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    x_BFHWC = x.materialize()
    batch, length = x_BFHWC.shape[:2]
    past = jnp.repeat(x_BFHWC[:, :1], len(kernel) - 1, axis=1) if past is None else past
    seen = jnp.concatenate([past, x_BFHWC], axis=1)
    frames = [seen[:, i : i + length].reshape(-1, *seen.shape[2:]) for i in range(len(kernel))]
    # Few channels leave the vector units half empty: concatenating three frames takes half the time, but more memory.
    convolved = _conv_concat_taps if seen.shape[-1] < NARROW else _conv_per_tap
    y_NHWC = convolved(frames, kernel, stride) + bias
    return y_NHWC.reshape(batch, length, *y_NHWC.shape[1:]), seen[:, length:]


def _conv_scan_frames(
    x: LazyFrames, past: jax.Array | None, kernel: jax.Array, bias: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    def step(past: tuple[jax.Array, ...], parts: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        seen = (*past, x.make(*parts))
        return seen[1:], _conv_concat_taps(seen, kernel, stride) + bias

    past = jnp.repeat(x.frame(0)[:, None], len(kernel) - 1, axis=1) if past is None else past
    # The backward pass recomputes the frames: saved, they take more memory than whole clips do; recomputed, half of it.
    step = jax.checkpoint(step, prevent_cse=False)
    last, y_FBHWC = lax.scan(step, tuple(jnp.moveaxis(past, 1, 0)), x.frame_parts())
    # The slice is empty, but gives the result its shape where the kernel has one tap and `last` has no frames.
    last = jnp.concatenate([past[:, :0], *(frame[:, None] for frame in last)], axis=1)
    return jnp.moveaxis(y_FBHWC, 0, 1), last


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv_blocks(
    make: Callable[..., jax.Array],
    stride: int,
    shards: int,
    parts: tuple[jax.Array, ...],
    past: jax.Array | None,
    kernel: jax.Array,
    bias: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Convolves as `conv_blocks`, with the gradient of `_conv_scan_frames`, for which no buffer of frames is saved."""
    return conv_blocks(LazyFrames(make, parts), past, kernel, bias, stride, shards)


def _conv_blocks_forward(make: Callable[..., jax.Array], stride: int, shards: int, *arrays):
    return _conv_blocks(make, stride, shards, *arrays), arrays


def _conv_blocks_backward(make: Callable[..., jax.Array], stride: int, shards: int, arrays, gradients):
    del shards
    _, pull_back = jax.vjp(lambda parts, *others: _conv_scan_frames(LazyFrames(make, parts), *others, stride), *arrays)
    return pull_back(gradients)


_conv_blocks.defvjp(_conv_blocks_forward, _conv_blocks_backward)


def convolve(
    x: LazyFrames,
    past_BFHWC: jax.Array | None,
    kernel: jax.Array,
    bias: jax.Array,
    stride: int = 1,
    column_shards: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Convolves causally in time, with zero padding in space, as a sum of one 2-D convolution for each tap in time.

    XLA for CPU runs a 3-D convolution 3 to 6 times slower than the three 2-D ones that it is the sum of, and the
    gradients of convolutions in a loop 8 times slower than without a loop. So a CPU takes all frames in one batch, and
    every other platform scans over them (`LazyFrames`); a TPU in blocks (`blocked_conv`).

    Args:
      x: F frames (B, F, H, W, C).
      past_BFHWC: the T - 1 frames before the first; None repeats the first.
      kernel: (T, 3, 3, C, C'); the last tap reads the current frame.
      bias: (C',).
      stride: in space, 1 or 2.
      column_shards: the number of devices that the columns are divided among.

    Returns:
      (B, F, H', W', C') with H' = H / stride, and the T - 1 frames that a next chunk needs as its past.
    """
    return lax.platform_dependent(
        x.parts,
        past_BFHWC,
        kernel,
        bias.reshape(1, 1, 1, -1),
        cpu=lambda parts, *others: _conv_batched(LazyFrames(x.make, parts), *others, stride),
        tpu=functools.partial(_conv_blocks, x.make, stride, column_shards),
        default=lambda parts, *others: _conv_scan_frames(LazyFrames(x.make, parts), *others, stride),
    )


def _per_channel(vector: nnx.Param, dtype: str = 'float32') -> jax.Array:
    return vector[...].astype(dtype).reshape(1, 1, 1, 1, -1)


class CausalConv3d(nnx.Module):
    """A 3x3x3 convolution, causal in time and zero-padded in space."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: str, rngs: nnx.Rngs, kernel_init: Init = fan_in):
        shape = (3, 3, 3, in_channels, out_channels)
        self.kernel = axes.param(kernel_init(rngs.params(), shape), (None, None, None, axes.CONV_IN, axes.CONV_OUT))
        self.bias = axes.param(jnp.zeros(out_channels), (axes.CONV_OUT,))
        self.dtype = dtype
        self.column_shards = 1

    def __call__(self, x: LazyFrames, cache_BFHWC: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Convolves one chunk.

        Args:
          x: frames (B, F, H, W, in).
          cache_BFHWC: what the previous chunk returned, (B, 2, H, W, in); None at the start of a clip.

        Returns:
          (B, F, H, W, out), and the cache for the next chunk.
        """
        x, kernel = x.map(lambda frames: frames.astype(self.dtype)), self.kernel[...]
        bias = self.bias[...].astype(self.dtype)
        if cache_BFHWC is None and x.length == 1:
            # A single frame's past is the frame itself, so that all taps in time read it: their sum does a third of the
            # work.
            image_kernel = kernel.sum(0, keepdims=True).astype(self.dtype)
            y, _ = convolve(x, None, image_kernel, bias, column_shards=self.column_shards)
            return y, jnp.repeat(x.materialize(), HISTORY, axis=1)
        return convolve(x, cache_BFHWC, kernel.astype(self.dtype), bias, column_shards=self.column_shards)


class PointwiseConv(nnx.Module):
    """A 1x1x1 convolution, which is a linear map of the channels."""

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
    """A 3x3 convolution of each frame; `stride` 2 halves height and width and pads right and bottom only."""

    def __init__(self, channels: int, *, stride: int = 1, dtype: str, rngs: nnx.Rngs):
        shape = (3, 3, channels, channels)
        self.kernel = axes.param(fan_in(rngs.params(), shape), (None, None, axes.CONV_IN, axes.CONV_OUT))
        self.bias = axes.param(jnp.zeros(channels), (axes.CONV_OUT,))
        self.stride = stride
        self.dtype = dtype
        self.column_shards = 1

    def __call__(self, x: LazyFrames) -> jax.Array:
        """Convolves frames (B, F, H, W, C) to (B, F, H / stride, W / stride, C)."""
        kernel, bias = (value[...].astype(self.dtype) for value in (self.kernel, self.bias))
        x = x.map(lambda frames: frames.astype(self.dtype))
        y, _ = convolve(x, None, kernel[None], bias, self.stride, self.column_shards)
        return y


class GroupNorm(nnx.Module):
    """Normalizes over a group's channels and all frames, rows and columns of the chunk, in float32 with eps 1e-6."""

    eps = 1e-6

    def __init__(self, channels: int, groups: int, *, bias: float = 0.0):
        self.scale = axes.param(jnp.ones(channels), (axes.NORM,))
        self.bias = axes.param(jnp.full(channels, bias, jnp.float32), (axes.NORM,))
        self.groups = groups

    def __call__(self, x_BFHWC: jax.Array) -> LazyFrames:
        # Channels stay the last dimension throughout: only the (B, C) statistics are reshaped into groups.
        wide = x_BFHWC.astype(jnp.float32)
        mean = self._over_groups(wide.mean((1, 2, 3), keepdims=True))
        var = self._over_groups(jnp.square(wide - mean).mean((1, 2, 3), keepdims=True))
        scale = lax.rsqrt(var + self.eps) * _per_channel(self.scale)

        def make(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            return (x.astype(jnp.float32) - mean) * scale + bias

        return LazyFrames(make, (x_BFHWC, mean, scale, _per_channel(self.bias)))

    def _over_groups(self, stat_B111C: jax.Array) -> jax.Array:
        grouped = stat_B111C.reshape(*stat_B111C.shape[:-1], self.groups, -1).mean(-1, keepdims=True)
        return jnp.broadcast_to(grouped, (*grouped.shape[:-1], stat_B111C.shape[-1] // self.groups)).reshape(
            stat_B111C.shape
        )
