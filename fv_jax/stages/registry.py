"""Which kinds of stages there are: the one table in which a name becomes a class."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError, did_you_mean
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models.dit import DiTConfig
from fv_jax.models.layers import DtypeName
from fv_jax.models.vae import VAEConfig
from fv_jax.stages.autoencoder import Autoencoder, AutoencoderConfig
from fv_jax.stages.low_res import LowRes, LowResConfig
from fv_jax.stages.protocol import Encoder, NetworkConfig, Stage
from fv_jax.stages.super_res import SuperRes, SuperResConfig
from fv_jax.text.encoder import TextConfig


class StageKind(NamedTuple):
    """stage: the class. options: of its own configuration. network: of its network's."""

    stage: type[Stage]
    options: type
    network: type[NetworkConfig]


KINDS: dict[str, StageKind] = {
    'lowres': StageKind(LowRes, LowResConfig, DiTConfig),
    'superres': StageKind(SuperRes, SuperResConfig, DiTConfig),
    'autoencoder': StageKind(Autoencoder, AutoencoderConfig, VAEConfig),
}


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage and its network; what a checkpoint needs to be used.

    Attributes:
      kind: one of `KINDS`, which says what classes the next two are.
      network: the network's configuration.
      options: how the stage is trained and sampled.
      vae: whose latents the stage works on: 'embedded' (the small one in the package) or a 3d-vae.pt; None for a stage
        that works on videos.
      vae_dtype: what that VAE convolves in; its parameters are float32.
      text: whose embeddings of captions the stage takes; without an encoder it works without texts.
    """

    kind: str
    network: NetworkConfig
    options: Any
    vae: str | None = None
    vae_dtype: DtypeName = 'float32'
    text: TextConfig = dataclasses.field(default_factory=TextConfig)

    @classmethod
    def field_types(cls, values: Mapping[str, Any]) -> dict[str, type]:
        """What `config.build` makes of `network` and `options`. Raises ConfigError for an unknown kind."""
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
        takes_text = build(self).text_shape is not None
        require(takes_text or not self.text.encoder, f'text.encoder={self.text.encoder}: not part of {of}', ConfigError)


def needs_vae(config: StageConfig) -> bool:
    """Whether the stage works on a frozen VAE's latents."""
    return bool(KINDS[config.kind].stage.latents_of)


def latent_spec(config: StageConfig, frozen_vae: VAEConfig | None) -> LatentSpec:
    """The latents that the stage works on, in the patches of its DiT; of a stage that is a VAE, its own.

    frozen_vae: of the VAE that the stage names, if it needs one.
    """
    if frozen_vae is None:
        return config.network.latent_spec
    return frozen_vae.latent_spec.with_patch(config.network.patch_size)


def needs_low_res(config: StageConfig) -> bool:
    """Whether the stage is trained on pairs: a clip and its degraded version."""
    return 'low_res_BFHWC' in KINDS[config.kind].stage.latents_of


def takes_average(config: StageConfig) -> bool:
    """Whether the stage's loss is given the network with averaged parameters as well."""
    return KINDS[config.kind].stage.takes_average


def default_strategy(config: StageConfig) -> str:
    """The sharding strategy of runs that name none."""
    return KINDS[config.kind].stage.strategy


def kinds_of(base: type) -> list[str]:
    """The kinds whose stages are of a class, such as `latent_stage.EnhancementStage`."""
    return [name for name, kind in KINDS.items() if issubclass(kind.stage, base)]


def official_kinds(network: NetworkConfig) -> list[str]:
    """The kinds whose network in the official release is of this configuration's sort."""
    return [
        name
        for name, kind in KINDS.items()
        if (official := kind.stage.official) is not None
        and isinstance(network, kind.network)
        and all(getattr(network, field) == value for field, value in official.network.items())
    ]


def build(config: StageConfig, *, encoder: Encoder | None = None) -> Stage:
    """The stage. encoder: the frozen VAE's, for batches that hold video."""
    stage = KINDS[config.kind].stage(config.options, config.network)
    return stage if encoder is None else dataclasses.replace(stage, encoder=encoder)
