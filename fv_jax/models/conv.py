"""Convolutions of the causal video VAE (model guide 4).

Dimensions: B batch, F frames, H height, W width, C channels; kernels are (time, height, width, in, out)
or (height, width, in, out). A causal convolution sees the present and the past only: the past of a
clip's first frame is that frame repeated; the past of a later chunk is its *cache*, the last two frames
that the convolution saw before, a value that goes in and comes out.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

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


@dataclasses.dataclass(frozen=True)
class Frames:
    """A clip whose frames are made when they are read.

    A convolution on TPU and GPU takes one frame after another: what lies between it and what is in memory, norms and
    activations in float32 at full size, then never is there as a whole clip. 9 frames of 1072x1920 decoded on eight
    chips take 3.4 GiB of each so and 10.3 at once, in less than half of the cycles (as the compiler counts them).

    parts: (B, F, ...) each, with 1 for B or F where all share it. make: these, or a frame of each, to the clip's
    frames (B, F, H, W, C), or to its frame (B, H, W, C).
    """

    make: Callable[..., jax.Array]
    parts: tuple[jax.Array, ...]

    @classmethod
    def of(cls, x_BFHWC: jax.Array) -> 'Frames':
        return cls(lambda x: x, (x_BFHWC,))

    def map(self, function: Callable[[jax.Array], jax.Array]) -> 'Frames':
        """function: frames (..., H, W, C) to others."""
        make = self.make
        return Frames(lambda *parts: function(make(*parts)), self.parts)

    @property
    def length(self) -> int:
        return max(part.shape[1] for part in self.parts)

    @property
    def first(self) -> jax.Array:
        """(B, H, W, C)."""
        return self.make(*(part[:, 0] for part in self.parts))

    def whole(self) -> jax.Array:
        """(B, F, H, W, C)."""
        return self.make(*self.parts)


def _conv2d(x_NHWC: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Zeros around; halving, right and below only."""
    side = (1, 1) if stride == 1 else (0, 1)
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x_NHWC, kernel, (stride, stride), (side, side), dimension_numbers=numbers)


def _side_by_side(frames: Sequence[jax.Array], kernel: jax.Array, stride: int) -> jax.Array:
    return _conv2d(jnp.concatenate(frames, axis=-1), jnp.concatenate(list(kernel), axis=-2), stride)


def _each_by_itself(frames: Sequence[jax.Array], kernel: jax.Array, stride: int) -> jax.Array:
    return sum(_conv2d(frame, kernel[i], stride) for i, frame in enumerate(frames))


def _at_once(
    x: Frames, past: jax.Array | None, kernel: jax.Array, bias: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    x_BFHWC = x.whole()
    batch, length = x_BFHWC.shape[:2]
    past = jnp.repeat(x_BFHWC[:, :1], len(kernel) - 1, axis=1) if past is None else past
    seen = jnp.concatenate([past, x_BFHWC], axis=1)
    frames = [seen[:, i : i + length].reshape(-1, *seen.shape[2:]) for i in range(len(kernel))]
    # Few channels leave the vector units half empty: three frames side by side take half the time, and memory to spare.
    convolved = _side_by_side if seen.shape[-1] < NARROW else _each_by_itself
    y_NHWC = convolved(frames, kernel, stride) + bias
    return y_NHWC.reshape(batch, length, *y_NHWC.shape[1:]), seen[:, length:]


def _one_by_one(
    x: Frames, past: jax.Array | None, kernel: jax.Array, bias: jax.Array, stride: int
) -> tuple[jax.Array, jax.Array]:
    def step(past: tuple[jax.Array, ...], parts: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], jax.Array]:
        seen = (*past, x.make(*parts))
        return seen[1:], _side_by_side(seen, kernel, stride) + bias

    past = jnp.repeat(x.first[:, None], len(kernel) - 1, axis=1) if past is None else past
    parts = [jnp.broadcast_to(part, (part.shape[0], x.length, *part.shape[2:])) for part in x.parts]
    # A gradient makes the frames again: kept, they took more memory than whole clips do, and so they take half of it.
    step = jax.checkpoint(step, prevent_cse=False)
    last, y_FBHWC = lax.scan(step, tuple(jnp.moveaxis(past, 1, 0)), tuple(jnp.moveaxis(part, 1, 0) for part in parts))
    # Of a kernel of one frame, none.
    last = jnp.concatenate([past[:, :0], *(frame[:, None] for frame in last)], axis=1)
    return jnp.moveaxis(y_FBHWC, 0, 1), last


def convolve(
    x: Frames, past_BFHWC: jax.Array | None, kernel: jax.Array, bias: jax.Array, stride: int = 1
) -> tuple[jax.Array, jax.Array]:
    """3x3 in space, padded with zeros, and over as many frames, the present one and those before it, as the kernel has.

    XLA for CPU runs a 3-D convolution 3 to 6 times slower than the three 2-D ones it is the sum of, and the gradients
    of convolutions in a loop 8 times slower than without one: there, all frames are taken at once.

    Args:
      x: F frames.
      past_BFHWC: the T - 1 frames before the first; None for the first, repeated.
      kernel: (T, 3, 3, C, C'); bias (C').

    Returns:
      (B, F, H', W', C'), and the past of the frame that follows.
    """
    return lax.platform_dependent(
        x.parts,
        past_BFHWC,
        kernel,
        bias.reshape(1, 1, 1, -1),
        cpu=lambda parts, *others: _at_once(Frames(x.make, parts), *others, stride),
        default=lambda parts, *others: _one_by_one(Frames(x.make, parts), *others, stride),
    )


def _per_channel(vector: nnx.Param, dtype: str = 'float32') -> jax.Array:
    return vector[...].astype(dtype).reshape(1, 1, 1, 1, -1)


class CausalConv3d(nnx.Module):
    """3x3x3 convolution, causal in time, zero-padded in space."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: str, rngs: nnx.Rngs, kernel_init: Init = fan_in):
        shape = (3, 3, 3, in_channels, out_channels)
        self.kernel = axes.param(kernel_init(rngs.params(), shape), (None, None, None, axes.CONV_IN, axes.CONV_OUT))
        self.bias = axes.param(jnp.zeros(out_channels), (axes.CONV_OUT,))
        self.dtype = dtype

    def __call__(self, x: Frames, cache_BFHWC: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Returns the result and the cache for the chunk that follows. A cache of None starts a clip."""
        x, kernel = x.map(lambda frames: frames.astype(self.dtype)), self.kernel[...]
        bias = self.bias[...].astype(self.dtype)
        if cache_BFHWC is None and x.length == 1:
            # Every tap in time sees the one picture: a third of the work.
            y, _ = convolve(x, None, kernel.sum(0, keepdims=True).astype(self.dtype), bias)
            return y, jnp.repeat(x.whole(), HISTORY, axis=1)
        return convolve(x, cache_BFHWC, kernel.astype(self.dtype), bias)


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

    def __call__(self, x: Frames) -> jax.Array:
        """(B, F, H', W', C)."""
        kernel, bias = (value[...].astype(self.dtype) for value in (self.kernel, self.bias))
        y, _ = convolve(x.map(lambda frames: frames.astype(self.dtype)), None, kernel[None], bias, self.stride)
        return y


class GroupNorm(nnx.Module):
    """Normalises over a group's channels and all frames, rows and columns of the chunk; eps 1e-6, float32."""

    eps = 1e-6

    def __init__(self, channels: int, groups: int, *, bias: float = 0.0):
        self.scale = axes.param(jnp.ones(channels), (axes.NORM,))
        self.bias = axes.param(jnp.full(channels, bias, jnp.float32), (axes.NORM,))
        self.groups = groups

    def __call__(self, x_BFHWC: jax.Array) -> Frames:
        # Channels stay the last dimension throughout; only (B, C) statistics are ever regrouped.
        wide = x_BFHWC.astype(jnp.float32)
        mean = self._over_groups(wide.mean((1, 2, 3), keepdims=True))
        var = self._over_groups(jnp.square(wide - mean).mean((1, 2, 3), keepdims=True))
        scale = lax.rsqrt(var + self.eps) * _per_channel(self.scale)

        def make(x: jax.Array, mean: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            return (x.astype(jnp.float32) - mean) * scale + bias

        return Frames(make, (x_BFHWC, mean, scale, _per_channel(self.bias)))

    def _over_groups(self, stat_B111C: jax.Array) -> jax.Array:
        grouped = stat_B111C.reshape(*stat_B111C.shape[:-1], self.groups, -1).mean(-1, keepdims=True)
        return jnp.broadcast_to(grouped, (*grouped.shape[:-1], stat_B111C.shape[-1] // self.groups)).reshape(
            stat_B111C.shape
        )
