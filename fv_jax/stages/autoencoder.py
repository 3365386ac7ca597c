"""Training the causal VAE: reconstruction with a faint pull of the latents towards a unit Gaussian.

With z = mean + std * noise, x the video and C the latents' channels:

    loss = mean (x - decode(z))^2 + kl_weight * mean KL(N(mean, std^2) || N(0, 1))                 (1)

Each mean is over all elements, so `kl_weight` is also the share of squared error that the latents' own noise settles
at: about kl_weight / 2. No adversarial or perceptual term: the small VAE is judged by PSNR.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.config import ConfigError
from fv_jax.core.parallel_context import Rules
from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAE, VAEConfig, collapse_temporal_kernels, sample_latents, split_moments
from fv_jax.stages.protocol import Batch, Metrics, row_normal


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """kl_weight: of (1).

    from_pictures: `init_from` was trained on single pictures; see `vae.collapse_temporal_kernels`.
    """

    kl_weight: float = 1e-4
    from_pictures: bool = False

    def __post_init__(self):
        if self.kl_weight < 0:
            raise ConfigError(f'kl_weight={self.kl_weight}: must not be negative')


class Draw(NamedTuple):
    """A batch, with a random key for each row."""

    video_BFHWC: jax.Array
    keys_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The stage. A batch holds `high_res_BFHWC`, video in [-1, 1]."""

    config: AutoencoderConfig
    vae: VAEConfig

    def init(self, rngs: nnx.Rngs) -> VAE:
        return VAE(self.vae, rngs=rngs)

    def trainable(self) -> Filter:
        return nnx.Param

    def start_from(self, model: VAE) -> None:
        if self.config.from_pictures:
            collapse_temporal_kernels(model)

    def encode(self, batch: Batch) -> Batch:
        return batch

    def draw(self, batch: Batch, keys_B: jax.Array) -> Draw:
        """The videos, and the keys of their latents' noise."""
        return Draw(batch['high_res_BFHWC'], keys_B)

    def loss_of(self, model: VAE, draw: Draw, *, rules: Rules) -> tuple[jax.Array, Metrics]:
        """The loss (1). Metrics: `psnr` of its first term, `kl` of its second, `latent_std` of the means."""
        video = draw.video_BFHWC
        moments = vae_chunking.encode(model, video)
        mean, std = split_moments(moments)
        decoded = vae_chunking.decode(model, sample_latents(moments, row_normal(draw.keys_B, mean.shape)))
        error = jnp.mean(jnp.square(decoded.astype(jnp.float32) - video))
        kl = jnp.mean(0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std))
        metrics = {'psnr': -10 * jnp.log10(error / 4), 'kl': kl, 'latent_std': jnp.std(mean)}
        return error + self.config.kl_weight * kl, metrics

    def sample(self, model: VAE, batch: Batch, key: jax.Array, *, rules: Rules) -> dict[str, jax.Array]:
        """`decoded_BFHWC`, the video from the latents' means, beside the video."""
        mean, _ = split_moments(vae_chunking.encode(model, batch['high_res_BFHWC']))
        return {'high_res_BFHWC': batch['high_res_BFHWC'], 'decoded_BFHWC': vae_chunking.decode(model, mean)}
