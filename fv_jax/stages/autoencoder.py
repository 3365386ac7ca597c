"""Trains the causal VAE: reconstruction with a weak KL penalty (arXiv:1312.6114).

With z = mean + std * noise, x the video, y = decode(z), d_t y = y_(t+1) - y_t and C the latents' channels:

    loss = mean rho(y - x) + motion_weight * mean rho(d_t y - d_t x)
           + kl_weight * mean KL(N(mean, std^2) || N(0, 1))                                         (1)

    squared       rho(e) = e^2
    charbonnier   rho(e) = sqrt(e^2 + 0.01^2) - 0.01, of which large errors at edges take less (arXiv:1704.03915)

Each mean is over all elements, so the squared error that the noise of the latents causes settles at about
kl_weight / 2. There is no adversarial or perceptual term: the small VAE is evaluated by PSNR.

With `trainable='decoder'` the encoder is frozen: latents stay as they are, and so does what was trained on them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.filterlib import Filter

from fv_jax.core.config import check_range
from fv_jax.core.parallel_context import ParallelContext
from fv_jax.models import vae_chunking
from fv_jax.models.vae import VAE, VAEConfig, collapse_temporal_kernels, sample_latents, split_moments
from fv_jax.stages.noise import per_example_normal
from fv_jax.stages.protocol import Batch, BatchSize, ExportedFunction, Metrics, OfficialStage, Program, Shape

CHARBONNIER = 0.01  # below it the penalty is quadratic, in units of [-1, 1]


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """How the VAE is trained.

    Attributes:
      kl_weight, motion_weight: of (1).
      reconstruction: rho of (1).
      trainable: 'decoder' freezes the encoder.
      init_from_image_vae: whether `init_from` is a VAE of single images; see `vae.collapse_temporal_kernels`.
    """

    kl_weight: float = 1e-4
    motion_weight: float = 0.0
    reconstruction: Literal['squared', 'charbonnier'] = 'squared'
    trainable: Literal['all', 'decoder'] = 'all'
    init_from_image_vae: bool = False

    def __post_init__(self):
        check_range(self, 'kl_weight', 'motion_weight', low=0)


class KeyedVideos(NamedTuple):
    """A batch of videos (B, F, H, W, 3) in [-1, 1], with a random key (B,) for each."""

    video_BFHWC: jax.Array
    keys_B: jax.Array


@dataclasses.dataclass(frozen=True)
class Autoencoder:
    """The training of a VAE. A batch holds `high_res_BFHWC`, video in [-1, 1]."""

    config: AutoencoderConfig
    network: VAEConfig

    latents_of: ClassVar[Mapping[str, str]] = {}
    strategy: ClassVar[str] = 'replicated_split_frames'
    takes_average: ClassVar[bool] = False
    pipeline_tag: ClassVar[str] = ''
    is_distilled: ClassVar[bool] = False
    official: ClassVar[OfficialStage] = OfficialStage('3d-vae.pt', AutoencoderConfig(), clip={'frames': 49})

    def init(self, rngs: nnx.Rngs) -> VAE:
        return VAE(self.network, rngs=rngs)

    def trainable(self) -> Filter:
        if self.config.trainable == 'decoder':
            return nnx.All(nnx.Param, nnx.PathContains('decoder'))
        return nnx.Param

    def adapt_initial_params(self, model: VAE) -> None:
        if self.config.init_from_image_vae:
            collapse_temporal_kernels(model)

    @property
    def text_shape(self) -> None:
        return None

    def inputs(self, size: BatchSize) -> dict[str, Shape]:
        return {'high_res_BFHWC': (size.examples, *size.video, 3)}

    def encode(self, batch: Batch) -> Batch:
        return batch

    def sample_noise_and_time(self, batch: Batch, keys_B: jax.Array, progress: jax.Array | None = None) -> KeyedVideos:
        """Returns the videos and the keys of the noise of their latents."""
        return KeyedVideos(batch['high_res_BFHWC'], keys_B)

    def loss(
        self, model: VAE, noised: KeyedVideos, *, context: ParallelContext, average: VAE | None = None
    ) -> tuple[jax.Array, Metrics]:
        """Computes the loss (1). Metrics: `psnr` of the videos, `kl` of its last term, `latent_std` of the means."""
        video = noised.video_BFHWC
        moments = vae_chunking.encode(model, video)
        mean, std = split_moments(moments)
        decoded = vae_chunking.decode(model, sample_latents(moments, per_example_normal(noised.keys_B, mean.shape)))
        errors = decoded.astype(jnp.float32) - video
        kl = jnp.mean(0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std))
        loss = self._penalty(errors) + self.config.kl_weight * kl
        if self.config.motion_weight and video.shape[1] > 1:
            loss += self.config.motion_weight * self._penalty(jnp.diff(errors, axis=1))
        psnr = -10 * jnp.log10(jnp.mean(jnp.square(errors)) / 4)
        return loss, {'psnr': psnr, 'kl': kl, 'latent_std': jnp.std(mean)}

    def _penalty(self, errors: jax.Array) -> jax.Array:
        """Returns the mean of rho of (1)."""
        if self.config.reconstruction == 'charbonnier':
            return jnp.mean(jnp.sqrt(jnp.square(errors) + CHARBONNIER**2) - CHARBONNIER)
        return jnp.mean(jnp.square(errors))

    def sample(self, model: VAE, batch: Batch, keys_B: jax.Array, *, context: ParallelContext) -> dict[str, jax.Array]:
        """Returns `decoded_BFHWC`, the video decoded from the means of the latents, beside the video."""
        mean, _ = split_moments(vae_chunking.encode(model, batch['high_res_BFHWC']))
        return {'high_res_BFHWC': batch['high_res_BFHWC'], 'decoded_BFHWC': vae_chunking.decode(model, mean)}

    def programs(self, size: BatchSize) -> Sequence[Program]:
        return ()

    def exported_functions(self, size: BatchSize, *, context: ParallelContext) -> list[ExportedFunction]:
        """Returns the functions `encode` and `decode`.

        encode   video_BFHWC in [-1, 1] -> moments (mean | logvar)
        decode   unscaled z_BFHWC -> video
        """
        video, z = (size.examples, *size.video, 3), (size.examples, *size.latents, self.network.latent_channels)
        return [
            ExportedFunction('encode', vae_chunking.encode, {'video_BFHWC': video}),
            ExportedFunction('decode', vae_chunking.decode, {'z_BFHWC': z}),
        ]

    def diffusers_pipeline(self) -> None:
        return None
