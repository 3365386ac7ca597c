"""Which stages there are, by name: the one place where a name becomes a class."""

import dataclasses
from typing import Literal

from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.dit import DiTConfig
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAEConfig
from fv_jax.stages.autoencoder import Autoencoder, AutoencoderConfig
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.protocol import Encoder, Stage
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.text.encoder import TextConfig


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage and its networks; what a checkpoint needs to be used.

    kind: 'lowres' takes `dit`, `lowres` and `vae`; 'superres' `dit`, `superres` and `vae`; 'autoencoder'
      `autoencoder_net` and `autoencoder`.
    vae: whose latents the stage works on: 'embedded' (the small one in the package) or a 3d-vae.pt. vae_dtype: what it
      convolves in; its parameters are float32.
    text: whose embeddings of captions the stage takes; without an encoder it works without texts.
    """

    kind: Literal['lowres', 'superres', 'autoencoder']
    dit: DiTConfig | None = None
    lowres: LowResConfig | None = None
    superres: SuperResConfig | None = None
    vae: str | None = None
    vae_dtype: DtypeName = 'float32'
    autoencoder_net: VAEConfig | None = None
    autoencoder: AutoencoderConfig | None = None
    text: TextConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self):
        wanted = _FIELDS[self.kind]
        for field in dataclasses.fields(self):
            given = getattr(self, field.name) not in (None, '')
            if field.name not in ('kind', 'text', 'vae_dtype') and given != (field.name in wanted):
                raise ConfigError(f'{field.name}: {"missing from" if not given else "not part of"} stage {self.kind!r}')
        if self.text.encoder and 'dit' not in wanted:
            raise ConfigError(f'text.encoder={self.text.encoder}: not part of stage {self.kind!r}')


_FIELDS = {
    'lowres': ('dit', 'lowres', 'vae'),
    'superres': ('dit', 'superres', 'vae'),
    'autoencoder': ('autoencoder_net', 'autoencoder'),
}


def needs_vae(config: StageConfig) -> bool:
    """Whether the stage works on a frozen VAE's latents."""
    return config.vae is not None


def latent_spec(config: StageConfig, frozen_vae: VAEConfig | None) -> LatentSpec:
    """The latents that the stage works on, in the patches of its DiT; of a stage that is a VAE, its own.

    frozen_vae: of the VAE that the stage names, if it needs one.
    """
    if config.autoencoder_net is not None:
        return config.autoencoder_net.latent_spec
    return frozen_vae.latent_spec.with_patch(config.dit.patch_size)


def needs_low_res(config: StageConfig) -> bool:
    """Whether the stage is trained on pairs: a clip and its low-quality twin."""
    return config.superres is not None


def build(config: StageConfig, *, encoder: Encoder | None = None) -> Stage:
    """The stage. encoder: the frozen VAE's, for batches that hold video."""
    if config.kind == 'lowres':
        return LowRes(config.lowres, config.dit, encoder)
    if config.kind == 'superres':
        return SuperRes(config.superres, config.dit, encoder)
    return Autoencoder(config.autoencoder, config.autoencoder_net)
