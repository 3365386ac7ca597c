"""The causal 3-D VAE: video to latents, smaller in space and time, and back (model guide 4).

Dimensions: B batch, F frames, H height, W width, C channels (legend of `conv.py`); `z_` marks latents.
Each level but the last halves height and width, and the first `temporal_levels` of them the frames too: `VAEConfig`
carries what follows from that, the latents' geometry (`core/latent_spec`). One call here is one *chunk*: group norms
take their statistics over it, and the causal convolutions' caches go in and come out. `vae_chunking` cuts a clip into
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
from fv_jax.models.conv import CausalConv3d, FrameConv, Frames, GroupNorm, PointwiseConv, zeros
from fv_jax.models.layers import DtypeName

# Where training from scratch starts. Offsets of +1 and -1 in turn make up most of a group's variance, so that its norm
# hardly depends on what is in the picture: networks trained on small crops then serve whole frames (the loss from 64x64
# tiles to 256x480 fell from 2.0 to 0.9 dB). A norm's bias keeps silu near its linear part.
INITIAL_LOGVAR = -8.0
INITIAL_OFFSET = 1.0
INITIAL_NORM_BIAS = 0.5

Cache = dict  # nested: the name of a submodule -> its cache; a convolution's is an array, {} starts a clip


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Defaults are the official sizes: 215,583,907 parameters; 4 frames of 8x8 pixels to a latent.

    multipliers: each level's channels, in units of base_channels, from the finest; there is a downsampling between two
      levels. temporal_levels: how many downsamplings, from the finest, act on time too; and as many upsamplings, from
      the coarsest.
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
        return tuple(self.base_channels * m for m in self.multipliers)

    @property
    def latent_spec(self) -> LatentSpec:
        """The geometry of the latents."""
        return LatentSpec(self.latent_channels, 2**self.temporal_levels, 2 ** (len(self.multipliers) - 1))


OFFICIAL = VAEConfig()


def _group_norm(channels: int, config: VAEConfig) -> GroupNorm:
    return GroupNorm(channels, config.groups, bias=INITIAL_NORM_BIAS)


def _offsets(channels: int) -> jax.Array:
    return INITIAL_OFFSET * (1 - 2 * (jnp.arange(channels) % 2))


def _stretch(x: jax.Array, axis: int, size: int) -> jax.Array:
    # Every ratio in the decoder is whole; a broadcast's gradient is a sum, a gather's a slow scatter.
    axis %= x.ndim
    assert size % x.shape[axis] == 0, (x.shape, axis, size)
    repeats = size // x.shape[axis]
    wide = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*x.shape[: axis + 1], repeats, *x.shape[axis + 1 :]))
    return wide.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :])


def stretch_time(z_BFHWC: jax.Array, frames: int) -> jax.Array:
    """Nearest neighbour as the decoder does it: output i reads input floor(i * in / out); an odd number of
    frames above one keeps the first frame apart (model guide 4)."""
    if frames > 1 and frames % 2:
        return jnp.concatenate([z_BFHWC[:, :1], _stretch(z_BFHWC[:, 1:], 1, frames - 1)], axis=1)
    return _stretch(z_BFHWC, 1, frames)


def stretch_space(z: jax.Array, height: int, width: int) -> jax.Array:
    """(..., H, W, C) to another size, in the same way."""
    return _stretch(_stretch(z, -3, height), -2, width)


class SpatialNorm(nnx.Module):
    """A group norm whose scale and offset are read from the latents."""

    def __init__(self, channels: int, config: VAEConfig, *, rngs: nnx.Rngs):
        self.norm_layer = _group_norm(channels, config)
        # From scratch this is a plain group norm at first.
        sizes, dtype = (config.latent_channels, channels), config.dtype
        self.conv_y = PointwiseConv(*sizes, dtype=dtype, rngs=rngs, kernel_init=zeros, bias=1.0)
        self.conv_b = PointwiseConv(*sizes, dtype=dtype, rngs=rngs, kernel_init=zeros)

    def __call__(self, x_BFHWC: jax.Array, z_BFHWC: jax.Array) -> Frames:
        frames, height, width = x_BFHWC.shape[1:4]
        normed = self.norm_layer(x_BFHWC)
        # A pointwise map commutes with nearest resizing; on the latents it costs less.
        scale, offset = (stretch_time(conv(z_BFHWC), frames) for conv in (self.conv_y, self.conv_b))

        def make(scale: jax.Array, offset: jax.Array, *parts: jax.Array) -> jax.Array:
            return normed.make(*parts) * stretch_space(scale, height, width) + stretch_space(offset, height, width)

        return Frames(make, (scale, offset, *normed.parts))


class ResBlock(nnx.Module):
    """Residual block; with latents `z` its norms are spatial norms (the decoder's), without, group norms."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, *, spatial: bool, rngs: nnx.Rngs):
        def norm(channels):
            return SpatialNorm(channels, config, rngs=rngs) if spatial else _group_norm(channels, config)

        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, dtype=config.dtype, rngs=rngs)
        self.norm2 = norm(out_channels)
        # From scratch every block starts as its shortcut, and the network as a nearly linear codec.
        self.conv2 = CausalConv3d(out_channels, out_channels, dtype=config.dtype, rngs=rngs, kernel_init=zeros)
        if in_channels != out_channels:
            self.nin_shortcut = PointwiseConv(in_channels, out_channels, dtype=config.dtype, rngs=rngs)
        self.project = in_channels != out_channels

    def __call__(self, x_BFHWC: jax.Array, cache: Cache, *z_BFHWC: jax.Array) -> tuple[jax.Array, Cache]:
        h, cache1 = self.conv1(self.norm1(x_BFHWC, *z_BFHWC).map(jax.nn.silu), cache.get('conv1'))
        h, cache2 = self.conv2(self.norm2(h, *z_BFHWC).map(jax.nn.silu), cache.get('conv2'))
        skip = self.nin_shortcut(x_BFHWC) if self.project else x_BFHWC
        return skip + h, {'conv1': cache1, 'conv2': cache2}


def halve_time(x_BFHWC: jax.Array) -> jax.Array:
    """Averages consecutive frames in pairs; of an odd number the first stays alone."""
    head = x_BFHWC.shape[1] % 2
    first, rest = x_BFHWC[:, :head], x_BFHWC[:, head:]
    pairs = rest.reshape(rest.shape[0], -1, 2, *rest.shape[2:])
    return jnp.concatenate([first, pairs.mean(2)], axis=1)


def upsample_nearest(x_BFHWC: jax.Array, *, time: bool) -> Frames:
    """Twice the size in space and, with `time`, twice the frames; of an odd number the first stays single."""
    frames, height, width = x_BFHWC.shape[1:4]
    if time and frames > 1:
        frames = 2 * frames - frames % 2
    return Frames.of(stretch_time(x_BFHWC, frames)).map(lambda x: stretch_space(x, 2 * height, 2 * width))


class Encoder(nnx.Module):
    """Video chunk to moments."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths, self.temporal_levels = config.widths, config.temporal_levels
        self.conv_in = CausalConv3d(3, widths[0], dtype=config.dtype, rngs=rngs)
        self.conv_in.bias[...] = _offsets(widths[0])
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
        # From scratch the latents start almost free of noise: at a deviation of 1 it would drown them.
        logvar = jnp.arange(2 * config.latent_channels) >= config.latent_channels
        self.conv_out.bias[...] = jnp.where(logvar, INITIAL_LOGVAR, 0.0)

    def __call__(self, x_BFHWC: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        new = {}
        h, new['conv_in'] = self.conv_in(Frames.of(x_BFHWC), cache.get('conv_in'))
        for level, blocks in enumerate(self.down):
            h, new[f'down{level}'] = _run(blocks, h, cache.get(f'down{level}', {}))
            if level < len(self.downsample):
                h = halve_time(h) if level < self.temporal_levels and h.shape[1] > 1 else h
                h = self.downsample[level](Frames.of(h))
        h, new['mid'] = _run(self.mid, h, cache.get('mid', {}))
        moments, new['conv_out'] = self.conv_out(self.norm_out(h).map(jax.nn.silu), cache.get('conv_out'))
        return moments, new


class Decoder(nnx.Module):
    """Latent chunk to video, nominally in [-1, 1]."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        widths, self.temporal_levels = config.widths[::-1], config.temporal_levels
        self.conv_in = CausalConv3d(config.latent_channels, widths[0], dtype=config.dtype, rngs=rngs)
        self.conv_in.bias[...] = _offsets(widths[0])
        self.mid = nnx.List([ResBlock(widths[0], widths[0], config, spatial=True, rngs=rngs) for _ in range(2)])
        levels, samplers = [], []
        for level, width in enumerate(widths):  # from the coarsest
            inputs = [widths[max(level - 1, 0)]] + [width] * config.num_res_blocks
            levels.append(nnx.List([ResBlock(i, width, config, spatial=True, rngs=rngs) for i in inputs]))
            if level < len(widths) - 1:
                samplers.append(FrameConv(width, dtype=config.dtype, rngs=rngs))
                samplers[-1].bias[...] = _offsets(width)
        self.up, self.upsample = nnx.List(levels), nnx.List(samplers)
        self.norm_out = SpatialNorm(widths[-1], config, rngs=rngs)
        self.conv_out = CausalConv3d(widths[-1], 3, dtype=config.dtype, rngs=rngs)

    def __call__(self, z_BFHWC: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        new = {}
        h, new['conv_in'] = self.conv_in(Frames.of(z_BFHWC), cache.get('conv_in'))
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
        # A block's caches are cut out before the next block runs. Left to the compiler they are cut at the network's
        # end, up to which what they are cut from stays in memory: 1.3 GiB a chip more for 1072x1920 on eight chips.
        h, new[str(i)] = jax.lax.optimization_barrier(block(h, cache.get(str(i), {}), *z_BFHWC))
    return h, new


class VAE(nnx.Module):
    """Encoder and decoder. `encoder(chunk, cache)` gives moments, `decoder(chunk, cache)` video, each with the
    cache for the next chunk; see `vae_chunking` for whole clips."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)


def split_moments(moments_BFHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moments (2C channels) to the latents' mean and standard deviation (C channels each), float32."""
    mean, logvar = jnp.split(moments_BFHWC.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(logvar, -30.0, 20.0))


def sample_latents(moments_BFHWC: jax.Array, noise_BFHWC: jax.Array) -> jax.Array:
    """z = mean + std * noise, as the official encode always does (model guide 4)."""
    mean, std = split_moments(moments_BFHWC)
    return mean + std * noise_BFHWC


def compute_in(vae: VAE, dtype: DtypeName) -> VAE:
    """The same network and parameters (float32), convolving in another dtype; group norms stay float32. Changed in
    place, and returned.
    """
    vae.config = dataclasses.replace(vae.config, dtype=dtype)
    for _, module in nnx.iter_modules(vae):
        if isinstance(module, CausalConv3d | FrameConv | PointwiseConv):
            module.dtype = dtype
    return vae


def forget_past(vae: VAE) -> None:
    """Lets every causal convolution see the present frame alone, in place. On single pictures nothing changes.

    A picture's past is the picture again, so that pictures teach all taps in time the same, and on a clip they blur
    motion. Summed into the present one they make a codec of single frames, a better start for clips (9 frames of the
    held-out film, trained on pictures only: 21.0 dB before, 24.1 dB after).
    """
    for _, module in nnx.iter_modules(vae):
        if isinstance(module, CausalConv3d):
            kernel = module.kernel[...]
            module.kernel[...] = jnp.zeros_like(kernel).at[-1].set(kernel.sum(0))
