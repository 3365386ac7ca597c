"""The registry of stages, by kind, and their configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, did_you_mean
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.core.paths import PathText
from fv_jax.models.dit import DiTConfig
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAEConfig
from fv_jax.stages.autoencoder import Autoencoder, AutoencoderConfig
from fv_jax.stages.flow_map import FlowMap, FlowMapConfig
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.protocol import Encoder, NetworkConfig, Stage
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.text.encoder import TextConfig


class StageKind(NamedTuple):
    """A kind of stage.

    Attributes:
      stage: the class.
      options: the class of its own configuration.
      network: the class of the configuration of its network.
    """

    stage: type[Stage]
    options: type
    network: type[NetworkConfig]


KINDS: dict[str, StageKind] = {
    'lowres': StageKind(LowRes, LowResConfig, DiTConfig),
    'superres': StageKind(SuperRes, SuperResConfig, DiTConfig),
    'flow_map': StageKind(FlowMap, FlowMapConfig, DiTConfig),
    'autoencoder': StageKind(Autoencoder, AutoencoderConfig, VAEConfig),
}


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage and its network; all that a checkpoint needs to be sampled.

    Attributes:
      kind: one of `KINDS`, which determines the classes of the next two.
      network: the network's configuration.
      options: how the stage is trained and sampled.
      vae: whose latents the stage works on: 'embedded' (the small one in the package) or a 3d-vae.pt; None for a stage
        that works on videos.
      vae_dtype: the compute dtype of that VAE; its parameters are float32.
      text: the text encoder; a stage without one is trained and sampled without text.
    """

    kind: str
    network: NetworkConfig
    options: Any
    vae: PathText | None = None
    vae_dtype: DtypeName = 'float32'
    text: TextConfig = dataclasses.field(default_factory=TextConfig)

    @classmethod
    def field_types(cls, values: Mapping[str, Any]) -> dict[str, type]:
        """Returns the classes of `network` and `options` for `config.build`. Raises ConfigError for an unknown kind."""
        if (kind := values.get('kind')) not in KINDS:
            raise ConfigError(f'kind={kind}: {did_you_mean(str(kind), KINDS)}')
        types = {'network': KINDS[kind].network, 'options': KINDS[kind].options}
        for name, wanted in types.items():
            fields, given = {field.name for field in dataclasses.fields(wanted)}, values.get(name)
            foreign = sorted(given.keys() - fields) if isinstance(given, Mapping) else []
            if len(foreign) > 1:  # more than a slip of the pen: the fields of another kind
                raise ConfigError(f'{name}: has {", ".join(foreign[:3])}, which are not part of stage {kind!r}')
        return types

    def __post_init__(self):
        kind, of = KINDS[self.kind], f'stage {self.kind!r}'
        for name, wanted in (('network', kind.network), ('options', kind.options)):
            require(isinstance(getattr(self, name), wanted), f'{name}: {of} takes a {wanted.__name__}', ConfigError)
        there = 'not part of' if self.vae else 'missing from'
        require(bool(self.vae) == bool(kind.stage.latents_of), f'vae: {there} {of}', ConfigError)
        stage = build(self)
        takes_text = stage.text_shape is not None
        require(takes_text or not self.text.encoder, f'text.encoder={self.text.encoder}: not part of {of}', ConfigError)
        without = 'without embedded captions guidance has no effect: name their encoder, or set a guidance scale of 1'
        needs_text = takes_text and stage.needs_text()
        require(not needs_text or self.text.encoder, f'text.encoder: missing from {of}; {without}', ConfigError)


def needs_vae(config: StageConfig) -> bool:
    """Returns whether the stage works on the latents of a frozen VAE."""
    return bool(KINDS[config.kind].stage.latents_of)


def latent_spec(config: StageConfig, frozen_vae: VAEConfig | None) -> LatentSpec:
    """Returns the geometry of the latents that a stage works on, with the patch size of its DiT.

    Args:
      config: of the stage.
      frozen_vae: the config of the VAE that the stage names; None for a stage that is a VAE itself.
    """
    if frozen_vae is None:
        return config.network.latent_spec
    return frozen_vae.latent_spec.with_patch(config.network.patch_size)


def needs_low_res(config: StageConfig) -> bool:
    """Returns whether the stage is trained on pairs of a clip and its degraded version."""
    return 'low_res_BFHWC' in KINDS[config.kind].stage.latents_of


def takes_average(config: StageConfig) -> bool:
    """Returns whether the stage's loss takes the network with averaged parameters too."""
    return KINDS[config.kind].stage.takes_average


def is_distilled(config: StageConfig) -> bool:
    """Returns whether the stage is trained on the output of a teacher."""
    return KINDS[config.kind].stage.is_distilled


def default_strategy(config: StageConfig) -> str:
    """Returns the sharding strategy of runs that name none."""
    return KINDS[config.kind].stage.strategy


def find_kinds(base: type) -> list[str]:
    """Lists the kinds whose stages extend a class, such as `latent_stage.EnhancementStage`."""
    return [name for name, kind in KINDS.items() if issubclass(kind.stage, base)]


def official_kinds(network: NetworkConfig) -> list[str]:
    """Lists the kinds whose network in the official release has a configuration of this class and these embeddings."""
    return [
        name
        for name, kind in KINDS.items()
        if (official := kind.stage.official) is not None
        and isinstance(network, kind.network)
        and all(getattr(network, field) == value for field, value in official.network.items())
    ]


def sampling_config(config: StageConfig) -> StageConfig:
    """Returns the configuration of the stage without the part of its network that only training needs."""
    if not is_distilled(config):
        return config
    return dataclasses.replace(config, options=dataclasses.replace(config.options, has_teacher=False))


def build(config: StageConfig, *, encoder: Encoder | None = None) -> Stage:
    """Builds the stage of a configuration.

    Args:
      config: of the stage.
      encoder: of the frozen VAE, for batches that contain video.
    """
    stage = KINDS[config.kind].stage(config.options, config.network)
    return stage if encoder is None else dataclasses.replace(stage, encoder=encoder)
