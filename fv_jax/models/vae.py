"""The causal 3-D VAE: video to latents, smaller in space and time, and back (model guide 4).

Dimensions: B batch, F frames, H height, W width, C channels (legend of `conv.py`); `z_` marks latents.
Each level but the last halves height and width, and the first `temporal_levels` of them also halve the frames;
`VAEConfig.latent_spec` is the resulting geometry of the latents. One call processes one *chunk*: group norms take their
statistics over it, and the causal convolutions' caches are passed in and returned. `vae_chunking` cuts a clip into
chunks as the official system does. The network is CogVideoX's (arXiv:2408.06072), the decoder's norm MoVQ's
(arXiv:2209.09002).

    residual block   x + conv2(silu(norm2(conv1(silu(norm1(x))))))
    decoder's norm   group_norm(x) * conv_y(z) + conv_b(z), z resized to x by nearest neighbour
    latents          z = mean + exp(logvar / 2) * noise, logvar clipped to [-30, 20]
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, check_range
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.conv import CausalConv3d, FrameConv, GroupNorm, PointwiseConv, zeros
from fv_jax.models.layers import DtypeName
from fv_jax.models.lazy_frames import LazyFrames

# Initialization for training from scratch. Alternating offsets of +1 and -1 make up most of a group's variance, so that
# its norm hardly depends on the image's content and networks trained on small crops work on whole frames (the loss from
# 64x64 tiles to 256x480 fell from 2.0 to 0.9 dB). A norm's bias keeps silu near its linear part.
INITIAL_LOGVAR = -8.0
INITIAL_OFFSET = 1.0
INITIAL_NORM_BIAS = 0.5

Cache = dict  # nested: submodule name -> its cache, an array for a convolution; {} at the start of a clip


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of a VAE. The defaults are the official ones: 215,583,907 parameters, 4 frames of 8x8 pixels to a latent.

    Attributes:
      base_channels: the unit of `multipliers`.
      multipliers: each level's channels in units of base_channels, from the finest level; there is a downsampling
        between two levels.
      temporal_levels: how many downsamplings, from the finest, and as many upsamplings, from the coarsest, also act on
        time.
      num_res_blocks: residual blocks in each level of the encoder; the decoder's levels have one more.
      latent_channels: channels of the latents.
      groups: groups of a group norm; divides every level's width.
      dtype: computation dtype of convolutions; parameters and group norms are float32.
    """

    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    temporal_levels: int = 2
    num_res_blocks: int = 3
    latent_channels: int = 16
    groups: int = 32
    dtype: DtypeName = 'float32'

    def __post_init__(self):
        check_range(self, 'base_channels', 'num_res_blocks', 'latent_channels', 'groups', low=1)
        wrong = f'multipliers={self.multipliers}: give one for each level, all at least 1'
        require(min(self.multipliers, default=0) >= 1, wrong, ConfigError)
        check_range(self, 'temporal_levels', low=0, high=len(self.multipliers) - 1, hint='or give more multipliers')
        for width in self.widths:
            wrong = f'groups={self.groups}: does not divide the width {width}; choose a divisor of all'
            require(width % self.groups == 0, wrong, ConfigError)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the finest."""
        return tuple(self.base_channels * m for m in self.multipliers)

    @property
    def latent_spec(self) -> LatentSpec:
        """The geometry of this VAE's latents."""
        return LatentSpec(self.latent_channels, 2**self.temporal_levels, 2 ** (len(self.multipliers) - 1))


OFFICIAL = VAEConfig()


def _group_norm(channels: int, config: VAEConfig) -> GroupNorm:
    return GroupNorm(channels, config.groups, bias=INITIAL_NORM_BIAS)


def _alternating_offsets(channels: int) -> jax.Array:
    return INITIAL_OFFSET * (1 - 2 * (jnp.arange(channels) % 2))


def _repeat_nearest(x: jax.Array, axis: int, size: int) -> jax.Array:
    # A broadcast, since every ratio in the decoder is whole: its gradient is a sum, that of a gather a slow scatter.
    axis %= x.ndim
    assert size % x.shape[axis] == 0, (x.shape, axis, size)
    repeats = size // x.shape[axis]
    wide = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :]))
    return wide.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :])


def resize_time_nearest(z_BFHWC: jax.Array, frames: int) -> jax.Array:
    """Resizes along time by nearest neighbour as the official decoder does: output i reads input floor(i * in / out).

    If `frames` is odd and above 1, the first frame is not repeated and the others are resized to frames - 1 (model
    guide 4).
    """
    if frames > 1 and frames % 2:
        return jnp.concatenate([z_BFHWC[:, :1], _repeat_nearest(z_BFHWC[:, 1:], 1, frames - 1)], axis=1)
    return _repeat_nearest(z_BFHWC, 1, frames)


def resize_space_nearest(z: jax.Array, height: int, width: int) -> jax.Array:
    """Resizes (..., H, W, C) to whole multiples of H and W by nearest neighbour."""
    return _repeat_nearest(_repeat_nearest(z, -3, height), -2, width)


class SpatialNorm(nnx.Module):
    """A group norm whose scale and offset are pointwise convolutions of the latents, resized to the input."""

    def __init__(self, channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        self.norm_layer = _group_norm(channels, config)
        # Initialized as a plain group norm: scale 1, offset 0.
        sizes, dtype = (config.latent_channels, channels), config.dtype
        self.conv_y = PointwiseConv(*sizes, dtype=dtype, rngs=rngs, kernel_init=zeros, bias=1.0)
        self.conv_b = PointwiseConv(*sizes, dtype=dtype, rngs=rngs, kernel_init=zeros)

    def __call__(self, x_BFHWC: jax.Array, z_BFHWC: jax.Array) -> LazyFrames:
        frames, height, width = x_BFHWC.shape[1:4]
        normed = self.norm_layer(x_BFHWC)
        # A pointwise convolution commutes with nearest-neighbour resizing, and is cheaper before it.
        scale, offset = (resize_time_nearest(conv(z_BFHWC), frames) for conv in (self.conv_y, self.conv_b))

        def make(scale: jax.Array, offset: jax.Array, *parts: jax.Array) -> jax.Array:
            return normed.make(*parts) * resize_space_nearest(scale, height, width) + resize_space_nearest(
                offset, height, width
            )

        return LazyFrames(make, (scale, offset, *normed.parts))


class ResBlock(nnx.Module):
    """A residual block. Its norms are group norms in the encoder and spatial norms, which read the latents, in the
    decoder.
    """

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, *, spatial: bool, rngs: nnx.Rngs):
        def norm(channels):
            return SpatialNorm(channels, config, rngs=rngs) if spatial else _group_norm(channels, config)

        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, dtype=config.dtype, rngs=rngs)
        self.norm2 = norm(out_channels)
        # Zeros make every new block its shortcut, and a new network a nearly linear codec.
        self.conv2 = CausalConv3d(out_channels, out_channels, dtype=config.dtype, rngs=rngs, kernel_init=zeros)
        if in_channels != out_channels:
            self.nin_shortcut = PointwiseConv(in_channels, out_channels, dtype=config.dtype, rngs=rngs)
        self.project = in_channels != out_channels

    def __call__(self, x_BFHWC: jax.Array, cache: Cache, *z_BFHWC: jax.Array) -> tuple[jax.Array, Cache]:
        h, cache1 = self.conv1(self.norm1(x_BFHWC, *z_BFHWC).map(jax.nn.silu), cache.get('conv1'))
        h, cache2 = self.conv2(self.norm2(h, *z_BFHWC).map(jax.nn.silu), cache.get('conv2'))
        skip = self.nin_shortcut(x_BFHWC) if self.project else x_BFHWC
        return skip + h, {'conv1': cache1, 'conv2': cache2}


def average_pool_time(x_BFHWC: jax.Array) -> jax.Array:
    """Averages consecutive frames in pairs; the first frame of an odd number is kept as it is."""
    head = x_BFHWC.shape[1] % 2
    # Not the mean along an axis of pairs: XLA for TPU writes that in float32, after a copy of all frames but the first.
    one, other = (x_BFHWC[:, head + i :: 2].astype(jnp.float32) for i in range(2))
    return jnp.concatenate([x_BFHWC[:, :head], ((one + other) / 2).astype(x_BFHWC.dtype)], axis=1)


def upsample_nearest(x_BFHWC: jax.Array, *, time: bool) -> LazyFrames:
    """Doubles height and width and, with `time`, the frames; the first frame of an odd number is not repeated."""
    frames, height, width = x_BFHWC.shape[1:4]
    if time and frames > 1:
        frames = 2 * frames - frames % 2

    def double(x: jax.Array) -> jax.Array:
        # Columns along the channels: XLA for TPU writes a broadcast between columns and channels at a fraction of the
        # rate of memory. Where it fuses with what reads it, as in a spatial norm, the broadcast is faster.
        wide = jnp.concatenate([x, x], axis=-1).reshape(*x.shape[:-2], 2 * width, x.shape[-1])
        return _repeat_nearest(wide, -3, 2 * height)

    return LazyFrames.from_array(resize_time_nearest(x_BFHWC, frames)).map(double)


class Encoder(nnx.Module):
    """Encodes a chunk of video (B, F, H, W, 3) as moments (B, F', H', W', 2C), mean and log-variance."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths, self.temporal_levels = config.widths, config.temporal_levels
        self.conv_in = CausalConv3d(3, widths[0], dtype=config.dtype, rngs=rngs)
        self.conv_in.bias[...] = _alternating_offsets(widths[0])
        levels, samplers = [], []
        for level, width in enumerate(widths):
            inputs = [widths[max(level - 1, 0)]] + [width] * (config.num_res_blocks - 1)
            levels.append(nnx.List([ResBlock(i, width, config, spatial=False, rngs=rngs) for i in inputs]))
            if level < len(widths) - 1:
                samplers.append(FrameConv(width, stride=2, dtype=config.dtype, rngs=rngs))
        self.down, self.downsample = nnx.List(levels), nnx.List(samplers)
        self.mid = nnx.List([ResBlock(widths[-1], widths[-1], config, spatial=False, rngs=rngs) for _ in range(2)])
        self.norm_out = _group_norm(widths[-1], config)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels, dtype=config.dtype, rngs=rngs)
        # Latents of a new network have almost no noise: a standard deviation of 1 would exceed the signal's.
        logvar = jnp.arange(2 * config.latent_channels) >= config.latent_channels
        self.conv_out.bias[...] = jnp.where(logvar, INITIAL_LOGVAR, 0.0)

    def __call__(self, x_BFHWC: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        new = {}
        h, new['conv_in'] = self.conv_in(LazyFrames.from_array(x_BFHWC), cache.get('conv_in'))
        for level, blocks in enumerate(self.down):
            h, new[f'down{level}'] = _run(blocks, h, cache.get(f'down{level}', {}))
            if level < len(self.downsample):
                h = average_pool_time(h) if level < self.temporal_levels and h.shape[1] > 1 else h
                h = self.downsample[level](LazyFrames.from_array(h))
        h, new['mid'] = _run(self.mid, h, cache.get('mid', {}))
        moments, new['conv_out'] = self.conv_out(self.norm_out(h).map(jax.nn.silu), cache.get('conv_out'))
        return moments, new


class Decoder(nnx.Module):
    """Decodes a chunk of latents (B, F', H', W', C) as video (B, F, H, W, 3), nominally in [-1, 1]."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths, self.temporal_levels = config.widths[::-1], config.temporal_levels
        self.conv_in = CausalConv3d(config.latent_channels, widths[0], dtype=config.dtype, rngs=rngs)
        self.conv_in.bias[...] = _alternating_offsets(widths[0])
        self.mid = nnx.List([ResBlock(widths[0], widths[0], config, spatial=True, rngs=rngs) for _ in range(2)])
        levels, samplers = [], []
        for level, width in enumerate(widths):  # from the coarsest
            inputs = [widths[max(level - 1, 0)]] + [width] * config.num_res_blocks
            levels.append(nnx.List([ResBlock(i, width, config, spatial=True, rngs=rngs) for i in inputs]))
            if level < len(widths) - 1:
                samplers.append(FrameConv(width, dtype=config.dtype, rngs=rngs))
                samplers[-1].bias[...] = _alternating_offsets(width)
        self.up, self.upsample = nnx.List(levels), nnx.List(samplers)
        self.norm_out = SpatialNorm(widths[-1], config, rngs=rngs)
        self.conv_out = CausalConv3d(widths[-1], 3, dtype=config.dtype, rngs=rngs)

    def __call__(self, z_BFHWC: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        new = {}
        h, new['conv_in'] = self.conv_in(LazyFrames.from_array(z_BFHWC), cache.get('conv_in'))
        h, new['mid'] = _run(self.mid, h, cache.get('mid', {}), z_BFHWC)
        for level, blocks in enumerate(self.up):
            h, new[f'up{level}'] = _run(blocks, h, cache.get(f'up{level}', {}), z_BFHWC)
            if level < len(self.upsample):
                h = self.upsample[level](upsample_nearest(h, time=level < self.temporal_levels))
        video, new['conv_out'] = self.conv_out(self.norm_out(h, z_BFHWC).map(jax.nn.silu), cache.get('conv_out'))
        return video, new


def _run(blocks: nnx.List, h: jax.Array, cache: Cache, *z_BFHWC: jax.Array) -> tuple[jax.Array, Cache]:
    new = {}
    for i, block in enumerate(blocks):
        # The barrier slices a block's caches out of its activations before the next block runs. Without it the compiler
        # slices at the network's end and keeps the activations until then: 1.3 GiB more on each chip for 1072x1920 on
        # eight chips.
        h, new[str(i)] = jax.lax.optimization_barrier(block(h, cache.get(str(i), {}), *z_BFHWC))
    return h, new


class VAE(nnx.Module):
    """Encoder and decoder: `encoder(chunk, cache)` returns moments and `decoder(chunk, cache)` video, each with the
    cache for the next chunk; `vae_chunking` processes whole clips.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)


def split_moments(moments_BFHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits moments (2C channels) into the latents' mean and standard deviation (C channels each), float32."""
    mean, logvar = jnp.split(moments_BFHWC.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0))


def sample_latents(moments_BFHWC: jax.Array, noise_BFHWC: jax.Array) -> jax.Array:
    """Samples the posterior, z = mean + std * noise, as the official encoder always does (model guide 4)."""
    mean, std = split_moments(moments_BFHWC)
    return mean + std * noise_BFHWC


def set_compute_dtype(vae: VAE, dtype: DtypeName) -> VAE:
    """Sets the dtype that convolutions compute in, in place, and returns the VAE. Parameters and group norms stay
    float32.
    """
    vae.config = dataclasses.replace(vae.config, dtype=dtype)
    for _, module in nnx.iter_modules(vae):
        if isinstance(module, CausalConv3d | FrameConv | PointwiseConv):
            module.dtype = dtype
    return vae


def set_column_shards(network: nnx.Module, shards: int) -> None:
    """Sets, in place, the number of devices that the columns of a network's frames are divided among."""
    for _, module in nnx.iter_modules(network):
        if isinstance(module, CausalConv3d | FrameConv):
            module.column_shards = shards


def collapse_temporal_kernels(vae: VAE) -> None:
    """Sums every causal kernel's taps in time into the last, in place, so that it reads the current frame alone.

    The output for single images does not change. An image's past is the image itself, so that training on images gives
    all taps the same gradient, and on a clip such taps blur motion. Summed into the last tap they are an image VAE, a
    better initialization for training on clips (9 frames of the held-out video, trained on images only: 21.0 dB before,
    24.1 dB after).
    """
    for _, module in nnx.iter_modules(vae):
        if isinstance(module, CausalConv3d):
            kernel = module.kernel[...]
            module.kernel[...] = jnp.zeros_like(kernel).at[-1].set(kernel.sum(0))
