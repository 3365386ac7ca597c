"""The stages of a pipeline as they are sampled, without weights: what `api.FlashVideo` opens."""

import dataclasses
from collections.abc import Sequence
from typing import Generic, TypeVar

from fv_jax.core import config as config_lib
from fv_jax.core.checks import require
from fv_jax.core.config import ConfigError
from fv_jax.core.latent_spec import LatentSpec
from fv_jax.models import vae as vae_lib
from fv_jax.models.dit import STAGE1, STAGE2
from fv_jax.models.vae import VAEConfig
from fv_jax.planning.vae_programs import vae_config
from fv_jax.sampling.settings import EnhanceSettings, PreviewSettings
from fv_jax.stages import registry
from fv_jax.stages.latent_stage import EnhancementStage, PreviewStage
from fv_jax.text.encoder import TextConfig
from fv_jax.training.run.setup import TrainConfig
from fv_jax.weights import t5_text, text_encoders

S = TypeVar('S', PreviewStage, EnhancementStage)
T = TypeVar('T', PreviewSettings, EnhanceSettings)
Size = tuple[int, int, int]  # frames, height, width

_OFFICIAL_TEXT = TextConfig('t5-v1_1-xxl')


@dataclasses.dataclass(frozen=True)
class SampledStage(Generic[S, T]):
    """A stage and how it is sampled.

    Attributes:
      name: for display, and in flags.
      stage: with the dtypes that its weights are sampled in.
      settings: of its sampler and its videos.
      vae: of its latents.
      text: the text encoder; without one an enhancement stage is sampled without text.
      clip_frames: length of the clips that it was trained on.
    """

    name: str
    stage: S
    settings: T
    vae: VAEConfig
    text: TextConfig
    clip_frames: int

    @property
    def latent_spec(self) -> LatentSpec:
        """The geometry of the latents and tokens that the stage works on."""
        return self.vae.latent_spec.with_patch(self.stage.network.patch_size)

    @property
    def uses_t5(self) -> bool:
        """Whether the stage's text encoder is T5."""
        return bool(self.text.encoder) and text_encoders.find_kind(self.text, 'config.stage.text') is t5_text.KIND

    @property
    def sampled(self) -> S:
        """The stage with the settings of its sampler."""
        return self.stage.with_sampler_config(self.settings)


@dataclasses.dataclass(frozen=True)
class SampledPipeline:
    """One stage or both, in the order in which they are sampled.

    Attributes:
      preview, enhancement: the stages; None for one that is not sampled.
      batch_size: the number of prompts that are sampled at once.
    """

    preview: SampledStage[PreviewStage, PreviewSettings] | None
    enhancement: SampledStage[EnhancementStage, EnhanceSettings] | None
    batch_size: int = 1

    @property
    def stages(self) -> list[SampledStage]:
        return [stage for stage in (self.preview, self.enhancement) if stage is not None]

    @property
    def t5_stages(self) -> list[SampledStage]:
        """The stages whose text encoder is T5."""
        return [stage for stage in self.stages if stage.uses_t5]

    @property
    def preview_size(self) -> Size:
        """(frames, height, width) of the previews; for an enhancement alone, of what becomes `scale` times larger."""
        if self.preview is not None:
            return self.preview.settings.frames, *self.preview.settings.size
        spec, scale = self.enhancement.latent_spec, self.enhancement.settings.scale
        frames, *size = self.enhanced_size
        return frames, *spec.round_down(*(max(side / scale, spec.pixel_multiple) for side in size))

    @property
    def enhanced_size(self) -> Size:
        """(frames, height, width) of the enhanced videos.

        Raises:
          ConfigError: an enhancement alone whose settings have no size.
        """
        alone, settings = self.enhancement, self.enhancement.settings
        if self.preview is not None:
            frames, *small = self.preview_size
            return frames, *settings.size_for(*small, alone.latent_spec)
        size = f'--{alone.name}.size=none: is not known without a preview; give the size of the result'
        require(settings.size, size, ConfigError)
        return alone.clip_frames, *settings.size

    def check(self) -> None:
        """Raises ConfigError for settings that the stages do not take, and sizes that do not fit each other."""
        for stage in self.stages:
            stage.settings.check(stage.latent_spec, f'{stage.name}.')
            _ = stage.sampled
        if self.enhancement is not None:
            _ = self.enhanced_size


def official_stages(names: Sequence[str]) -> list[SampledStage]:
    """Returns both stages of the official release with the official settings, in bfloat16 except for the VAE.

    Args:
      names: of the stages.
    """
    found = []
    for name, sizes, settings in zip(names, (STAGE1, STAGE2), (PreviewSettings(), EnhanceSettings()), strict=True):
        (kind,) = registry.official_kinds(sizes)
        official = registry.KINDS[kind].stage.official
        network = dataclasses.replace(sizes, dtype='bfloat16', param_dtype='bfloat16')
        stage = registry.KINDS[kind].stage(official.options, network)
        found.append(SampledStage(name, stage, settings, vae_lib.OFFICIAL, _OFFICIAL_TEXT, official.clip['frames']))
    return found


def stage_of_run(config: TrainConfig, names: Sequence[str]) -> SampledStage:
    """Returns the stage of a run with the settings of its config, as its checkpoints are sampled.

    Args:
      config: of the run.
      names: of stages that sample previews, and of those that enhance.

    Raises:
      ConfigError: the stage cannot be sampled from text or a preview.
    """
    stage, data = registry.build(config.stage), config_lib.to_dict(config.data)
    sampler, vae = stage.sampler_config(), vae_config(config.stage)
    if isinstance(stage, PreviewStage):
        settings = PreviewSettings.from_config(sampler, data)
    else:
        settings = EnhanceSettings.from_config(sampler, data)
        # Crops of clips do not say how large the results are.
        settings = dataclasses.replace(settings, size=settings.size or (config.data.height, config.data.width))
    name = names[isinstance(stage, EnhancementStage)]
    return SampledStage(name, stage, settings, vae, config.stage.text, config.data.frames)
