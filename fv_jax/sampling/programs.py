"""Both stages between text and pixels; each stage's whole walk is one jitted call, and each chunk of the VAE one.

    z_preview = generate(text, noise)                                stage 1: its sampler and guidance   model guide 5.2
    preview   = clip(decode(z_preview), -1, 1)                       official chunks                     model guide 4.3
    x         = resize(preview)                                      antialiased bilinear, never rounded model guide 5.4
    z_low     = mean or sample of the VAE's latents of x             official chunks                     model guide 4
    z_high    = transport(source(z_low, noise), text)                stage 2: its sampler and grid       model guide 5.3
    video     = clip(decode(z_high), -1, 1)                          in slices of the width, if wanted   model guide 4.3

Encode and decode of the large video take whole frames or tiles of them (`models/vae_tiling`).

All latents are as the VAE makes them, not scaled.
"""

import dataclasses
import functools
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from fv_jax.core.parallel_context import Rules
from fv_jax.core.resize import resize
from fv_jax.models.dit import DiT
from fv_jax.models.vae import sample_latents, split_moments
from fv_jax.models.vae_tiling import Tiling
from fv_jax.sampling.noise import PreviewNoise, SourceNoise
from fv_jax.stages.frozen_vae import JittedVAE
from fv_jax.stages.low_res import LowRes
from fv_jax.stages.super_res import SuperRes

S = TypeVar('S', LowRes, SuperRes)


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded(Generic[S]):
    """A stage and its network. Executables are shared by all networks of one graph, so that loading again compiles
    nothing.
    """

    stage: S
    graphdef: Any
    state: nnx.State

    @classmethod
    def of(cls, stage: S, model: DiT) -> 'Loaded[S]':
        # A stage is a key of the executables, which would keep its encoder's weights.
        return cls(dataclasses.replace(stage, encoder=None), *nnx.split(model))

    def sampled_as(self, stage: S) -> 'Loaded[S]':
        """The same network under other settings."""
        return dataclasses.replace(self, stage=dataclasses.replace(stage, encoder=None))


def generate(
    first: Loaded[LowRes], text_BLD: jax.Array, noise: PreviewNoise, latent_size: tuple[int, int, int], *, rules: Rules
) -> jax.Array:
    """A preview's latents (B, F', H', W', C), float32. latent_size: (F', H', W')."""
    shape = (text_BLD.shape[0], *latent_size, first.stage.dit.latent_channels)
    return _generate(first.state, text_BLD, noise, first.stage, first.graphdef, shape, rules)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _generate(state, text_BLD, noise, stage, graphdef, shape, rules):
    start, noise_fn = noise.preview(shape)
    return stage.generate(nnx.merge(graphdef, state), start, text_BLD, noise_fn, rules=rules)


def transport(
    second: Loaded[SuperRes], z_low_BFHWC: jax.Array, text_BLD: jax.Array | None, noise: SourceNoise, *, rules: Rules
) -> jax.Array:
    """The high-res latents of an upsampled video's, float32. text_BLD: None for all zeros."""
    stage = second.stage
    if text_BLD is None:
        # All-zero text is the unconditional input too, so that guidance would mix two equal velocities at twice the
        # cost.
        text_BLD, stage = stage.text({'z_low_BFHWC': z_low_BFHWC}), stage.sampled_with(guidance_scale=1.0)
    return _transport(second.state, z_low_BFHWC, text_BLD, noise, stage, second.graphdef, rules)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _transport(state, z_low_BFHWC, text_BLD, noise, stage, graphdef, rules):
    source = stage.source(z_low_BFHWC, noise.source(z_low_BFHWC.shape))
    return stage.unscaled(stage.transport(nnx.merge(graphdef, state), source, text_BLD, rules=rules))


def low_res_latents(
    vae: JittedVAE,
    video_BFHWC: jax.Array,
    size: tuple[int, int],
    noise: SourceNoise | None = None,
    tiling: Tiling | None = None,
) -> jax.Array:
    """The latents of a video in [-1, 1] made larger, to (height, width): their means or, given noise, a sample."""
    moments = vae.moments(_resized(video_BFHWC, *size), tiling)
    return split_moments(moments)[0] if noise is None else _sampled(moments, noise)


@jax.jit
def _sampled(moments_BFHWC: jax.Array, noise: SourceNoise) -> jax.Array:
    *dims, channels = moments_BFHWC.shape
    return sample_latents(moments_BFHWC, noise.posterior((*dims, channels // 2)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resized(video_BFHWC: jax.Array, height: int, width: int) -> jax.Array:
    return resize(video_BFHWC, height, width)


def decoded(vae: JittedVAE, z_BFHWC: jax.Array, tiling: Tiling | None = None, *, width_slices: int = 1) -> jax.Array:
    """Latents to video in [-1, 1], float32."""
    return jnp.clip(vae.video(z_BFHWC, tiling, width_slices=width_slices).astype(jnp.float32), -1, 1)
